"""Records that wait for the first version of a model, instead of going without a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from transforms.batches import MAX_WATERMARK_US, SEQUENCE
from transforms.grouping import concat
from transforms.operators import State, Tables

RECORDS, LABELS, ACTIVATED = "records", "labels", "activated"


@dataclass(frozen=True)
class HoldUntilActivated:
    """An `Operator`: inputs `records` and `labels` are given, as they came, once there was a row in input `activated`, or at
    the end of the stream. Labels wait along: they are what the records' predictions will be compared with.

    State: the rows that wait, by input; `begun`, once none needs to.
    """

    outputs: ClassVar[tuple[str, ...]] = (RECORDS, LABELS)

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        rows = {}
        for name in self.outputs:
            pieces = [table for table in (state.get(name), inputs.get(name)) if table is not None and table.num_rows]
            if pieces:
                rows[name] = concat(pieces)
        begun = "begun" in state or (ACTIVATED in inputs and inputs[ACTIVATED].num_rows > 0)
        if not begun and watermark_us < MAX_WATERMARK_US:
            return rows, {}
        return {"begun": pa.table({"begun": [True]})}, rows

    def wake_us(self, state: State) -> int | None:
        return None


def as_rows(activations: pa.RecordBatch) -> pa.RecordBatch:
    """Activations with the column that every operator's input has."""
    return activations.append_column(SEQUENCE, activations.column("version"))
