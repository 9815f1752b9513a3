"""Which version serves which record: the activation log as a side input.

The log comes as a stream of timelines and activations. A record's version follows from its event time and from the log
alone (`Timeline.as_of`), so a replay, a micro-batch and a batch give it the same one. Rows that one batch shares between
versions are split here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics

import transforms.batch_coder  # noqa: F401  how the rows of a request travel
from models.activation_log import Activation
from models.timeline import COLD_START, Timeline
from transforms.batches import SEQUENCE, event_time_us
from transforms.keys import places


class Request(NamedTuple):
    """Rows to predict with one version.

    Attributes:
        version: the version, or `COLD_START`.
        batch: the rows.
        previous: the version that was live before, should this one not load; `COLD_START` for none.
        policy: how the version was chosen, where that is not what the job usually does.
    """

    version: int
    batch: pa.RecordBatch
    previous: int = COLD_START
    policy: str | None = None


class Choice(NamedTuple):
    """Which of a record's versions is meant.

    Attributes:
        kind: `live`, canaries included; `first`, the frozen model that a live one is compared with; or `beside`, the version
            to compare each record's own with.
        key: columns that decide who is served by a canary.
        guard_us: for so long after an activation `beside` is the version that was live before.
        hold: a record from before the first activation has waited for it, and is predicted by that version.
    """

    kind: Literal["live", "first", "beside"] = "live"
    key: tuple[str, ...] = (SEQUENCE,)
    guard_us: int = 0
    hold: bool = False


LIVE = Choice()


class AssignVersions(beam.PTransform):
    """RecordBatches to `Request`s, with the timeline as side input.

    Args of the constructor:
        timelines: PCollection of `Timeline` and `Activation`, which together are the log as far as this run needs it.
        choice: which version is meant.
    """

    def __init__(self, timelines: beam.PCollection, choice: Choice = LIVE) -> None:
        super().__init__()
        self._timelines, self._choice = timelines, choice

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        return batches | beam.ParDo(Assign(self._choice), beam.pvalue.AsIter(self._timelines)).with_output_types(Request)


class Assign(beam.DoFn):
    """Cuts a batch into its versions, given the log."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._swaps = Metrics.counter("midstream", "swaps")
        self._latest: int | None = None
        self._merged: tuple[list[Timeline | Activation], Timeline] | None = None

    def process(self, batch: pa.RecordBatch, entries: Iterable[Timeline | Activation]) -> Iterator[Request]:
        timeline = self._timeline(list(entries))
        times = event_time_us(batch).to_numpy()
        earliest = timeline.first() if self._choice.hold and self._choice.kind != "beside" else None
        if earliest is not None:
            waited = times < earliest.effective_from_us
            if waited.any():
                yield Request(earliest.version, batch.filter(pa.array(waited)), policy="hold")
                batch, times = batch.filter(pa.array(~waited)), times[~waited]
        versions = self._versions(timeline, batch, times)
        changes = np.flatnonzero(np.diff(versions)) + 1
        if len(changes) == 0 or np.all(np.diff(versions[np.concatenate([[0], changes])]) > 0):
            # In order of time each version is one run of rows: slices, without a copy.
            bounds = [0, *changes.tolist(), len(versions)]
            pieces = [(lo, batch.slice(lo, hi - lo)) for lo, hi in pairwise(bounds) if hi > lo]
        else:
            rows_of = [np.flatnonzero(versions == version) for version in np.unique(versions)]
            pieces = [(int(rows[0]), batch.take(pa.array(rows))) for rows in rows_of]
        for first, rows in pieces:
            version = int(versions[first])
            if self._latest is not None and version != self._latest and self._choice.kind == "live":
                self._swaps.inc()
            self._latest = version
            live = int(timeline.as_of(times[first : first + 1])[0])
            yield Request(version, rows, timeline.previous(times[first]) if version == live else live)

    def _versions(self, timeline: Timeline, batch: pa.RecordBatch, times: np.ndarray) -> np.ndarray:
        kind, key, guard_us, _ = self._choice
        if kind == "first" or (kind == "live" and not timeline.has_trials):
            return timeline.as_of(times)
        found = places(batch, key, "") if timeline.has_trials else np.zeros(len(times), np.int64)
        return timeline.serving(times, found) if kind == "live" else timeline.beside(times, found, guard_us)

    def _timeline(self, entries: list[Timeline | Activation]) -> Timeline:
        # The side input is the same object-wise for all batches of a bundle; merging it once is enough.
        if self._merged is None or self._merged[0] != entries:
            timeline = Timeline.of([entry for entry in entries if isinstance(entry, Activation)])
            for entry in entries:
                if isinstance(entry, Timeline):
                    timeline = entry.merge(timeline)
            if self._choice.kind == "first":
                first = timeline.first()
                timeline = Timeline.of([first] if first is not None else [])
            self._merged = entries, timeline
        return self._merged[1]
