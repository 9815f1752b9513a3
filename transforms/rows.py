"""Steps that look at one row at a time: map, filter, lookup. They fuse with what comes before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput

from transforms.dead_letters import dead_letters
from transforms.expressions import Filter, Map
from transforms.lookup import Lookup

RowStep = Map | Filter | Lookup
_DEAD = "dead"


def check(steps: Sequence[RowStep], schema: pa.Schema) -> pa.Schema:
    """The schema behind the steps.

    Raises:
        ValueError: a step does not fit the columns it gets.
    """
    for step in steps:
        schema = step.check(schema)
    return schema


class RowSteps(beam.PTransform):
    """RecordBatches to (RecordBatches, dead letters). A row on which a step fails becomes a dead letter; the others go on."""

    def __init__(self, steps: Sequence[RowStep]) -> None:
        super().__init__()
        self._steps = tuple(steps)

    def expand(self, batches: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
        given = batches | beam.ParDo(_Apply(self._steps)).with_output_types(pa.RecordBatch).with_outputs(_DEAD, main="rows")
        return given["rows"], given[_DEAD]


class _Apply(beam.DoFn):
    def __init__(self, steps: tuple[RowStep, ...]) -> None:
        self._steps = steps
        self._filtered = Metrics.counter("midstream", "filtered")

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch | TaggedOutput]:
        try:
            rows, dead, filtered = self._apply(batch)
        except (ValueError, pa.ArrowInvalid) as error:
            if batch.num_rows == 1:
                yield TaggedOutput(_DEAD, dead_letters(batch, "step_failed", str(error)))
                return
            # The step fits the columns, so it is a value: halving finds it in log2(rows) tries.
            half = batch.num_rows // 2
            yield from self.process(batch.slice(0, half))
            yield from self.process(batch.slice(half))
            return
        self._filtered.inc(filtered)
        for letters in dead:
            yield TaggedOutput(_DEAD, letters)
        if rows.num_rows:
            yield rows

    def _apply(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[pa.RecordBatch], int]:
        dead, filtered = [], 0
        for step in self._steps:
            if not batch.num_rows:
                break
            if isinstance(step, Lookup):
                batch, missed = step(batch)
                if missed.num_rows:
                    dead.append(missed)
            else:
                before = batch.num_rows
                batch = step(batch)
                filtered += before - batch.num_rows
        return batch, dead, filtered
