"""Which version predicts a record, in a stream without end: the activation log itself is read on, once a batch.

In bounded runs the log comes as a side input. A continuous job on Flink cannot have one: with Beam's runner every checkpoint of
a job with a side input fails (a ClassCastException in its coder), and what a side input holds is never removed. Here the job
seals the log up to the batch's last event time; from then on what the log says of that time stays as it is, so reading it is as
good as having been told, on every worker and after every recovery.
"""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa

from models.opened import shared_log
from transforms.batches import event_time_us
from transforms.model_timeline import LIVE, Assign, Choice, Request


class AssignVersionsLive(beam.PTransform):
    """RecordBatches to `Request`s."""

    def __init__(self, registry: str, model: str, by: str, choice: Choice = LIVE) -> None:
        """Creates the transform.

        Args:
            registry: root folder of the registry.
            model: name of the model.
            by: name of the job, which seals what it predicts.
            choice: see `AssignVersions`.
        """
        super().__init__()
        self._assign = _AssignLive(registry, model, by, choice)

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        return batches | beam.ParDo(self._assign).with_output_types(Request)


class _AssignLive(beam.DoFn):
    def __init__(self, registry: str, model: str, by: str, choice: Choice) -> None:
        self._registry, self._model, self._by, self._assign = registry, model, by, Assign(choice)

    def process(self, batch: pa.RecordBatch) -> Iterator[Request]:
        log = shared_log(self._registry, self._model)
        log.seal(int(event_time_us(batch).to_numpy().max()) + 1, by=self._by)
        yield from self._assign.process(batch, [log.timeline()])
