"""Which version predicts a record, in a stream without end: the activation log itself is read on, once a batch.

In bounded runs the log comes as a side input. A continuous job on Flink cannot have one: with Beam's runner every checkpoint of
a job with a side input fails (a ClassCastException in its coder), and what a side input holds is never removed. Here the job
seals the log up to the batch's last event time; from then on what the log says of that time stays as it is, so reading it is as
good as having been told, on every worker and after every recovery.

A registry that is away is waited for. A version that cannot be loaded is taken back before its time is sealed (`settle`). One
that served already and is gone when a worker starts anew cannot be: the job goes back to a checkpoint and has to give the same
again, so those records wait until it is put back (`transforms.inference`, hold).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa

from models.opened import shared_log
from models.patience import patiently
from models.preflight import settle
from models.serving import shared_cache
from transforms.batches import event_time_us
from transforms.model_timeline import LIVE, Assign, Choice, Request

_LOG = logging.getLogger("midstream")


@dataclass(frozen=True)
class LiveLog:
    """A model's activation log, as a job reads it while it runs.

    Attributes:
        registry: root folder of the registry.
        model: name of the model.
        by: name of the job, which seals what it predicts.
        patience_s: how long a registry that is away is waited for.
        block_rows, max_versions: of the cache that predicts.
        takes_back: whether a version that cannot be loaded is taken back by an entry in the log.
    """

    registry: str
    model: str
    by: str
    patience_s: float
    block_rows: int
    max_versions: int
    takes_back: bool

    def seal(self, until_us: int) -> None:
        """From here on what the log says of event times below this stays as it is."""
        patiently(lambda: self._seal(until_us), self.patience_s)

    def _seal(self, until_us: int) -> None:
        log = shared_log(self.registry, self.model)
        before_us = log.sealed_us(self.by)
        if until_us <= before_us:
            return
        if self.takes_back:
            cache = shared_cache(self.registry, block_rows=self.block_rows, max_versions=self.max_versions)
            for told in settle(log, cache, self.model, self.by, before_us, until_us, redone=False):
                _LOG.warning("%s: %s", self.by, told)
        log.seal(until_us, by=self.by)


class AssignVersionsLive(beam.PTransform):
    """RecordBatches to `Request`s.

    Args of the constructor:
        log: what says it.
        choice: see `AssignVersions`.
    """

    def __init__(self, log: LiveLog, choice: Choice = LIVE) -> None:
        super().__init__()
        self._assign = _AssignLive(log, choice)

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        return batches | beam.ParDo(self._assign).with_output_types(Request)


class _AssignLive(beam.DoFn):
    def __init__(self, log: LiveLog, choice: Choice) -> None:
        self._log, self._assign = log, Assign(choice)

    def process(self, batch: pa.RecordBatch) -> Iterator[Request]:
        log = self._log
        log.seal(int(event_time_us(batch).to_numpy().max()) + 1)
        timeline = patiently(shared_log(log.registry, log.model).timeline, log.patience_s)
        yield from self._assign.process(batch, [timeline])
