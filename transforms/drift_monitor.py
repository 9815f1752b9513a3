"""Inputs and scores of a stream against the training window of the version that predicted them: rows of figures, some alarms.

The rows are cut into windows of so many, in order. Each column of a window is compared with what the version's registry entry
keeps of its training rows (`models.drift`). A version that came without is compared with the first rows that it predicted.

A column gives an alarm if its difference is both significant and large: the level is shared among the tests of a window, so
that without drift at most about `significance` of all windows have an alarm at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from models.drift import Reference
from models.opened import shared_registry
from models.registry import REFERENCE
from transforms.batches import EVENT_TIME, SEQUENCE, TIME_TYPE, WATERMARK
from transforms.grouping import concat
from transforms.operators import State, Tables

DRIFT = "drift"
FEWEST_REFERENCE_ROWS = 200  # with fewer the training window says too little
PUBLISHED, FIRST_ROWS = "training", "first rows"
SCHEMA = pa.schema(
    [
        pa.field(EVENT_TIME, TIME_TYPE),  # of the window's last row
        pa.field(SEQUENCE, pa.int64()),  # of that row
        pa.field("window_start", TIME_TYPE),
        pa.field("rows", pa.int64()),  # of the window
        pa.field("column", pa.string()),
        pa.field("role", pa.string()),  # input or output
        pa.field("statistic", pa.string()),  # see `models.drift.Finding`
        pa.field("distance", pa.float64()),
        pa.field("p_value", pa.float64()),
        pa.field("threshold", pa.float64()),  # p-values below this are significant
        pa.field("alarm", pa.bool_()),
        pa.field("version", pa.int64()),  # that predicted most of the window, and whose reference it is
        pa.field("reference", pa.string()),  # the version's training rows, or the first rows that it predicted
        pa.field("reference_rows", pa.int64()),
    ]
)


@dataclass(frozen=True)
class DriftMonitor:
    """An `Operator`: input `in`, predictions in order; output `drift` (schema `SCHEMA`).

    State: `rows` of the window that is not full yet; `first`, the rows that stand for the training of version `first_version`.

    Attributes:
        registry: root folder of the registry.
        model: name of the model.
        inputs: columns that the model takes.
        outputs_: columns that it gives.
        every_rows: rows of a window.
        significance: share of windows with a false alarm, at most.
        min_distance: smaller differences, however sure, are no alarm.
        first_rows: how many rows stand in for a training window that was not published.
    """

    registry: str
    model: str
    inputs: tuple[str, ...]
    outputs_: tuple[str, ...]
    every_rows: int = 1000
    significance: float = 0.01
    min_distance: float = 0.1
    first_rows: int = 2000
    outputs: ClassVar[tuple[str, ...]] = (DRIFT,)

    @property
    def columns(self) -> list[str]:
        """What it wants of its input."""
        return list(dict.fromkeys([EVENT_TIME, SEQUENCE, *self.inputs, *self.outputs_, "version"]))

    def wake_us(self, state: State) -> int | None:
        return None

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        pieces = [t for t in (state.get("rows"), inputs.get("in")) if t is not None and t.num_rows]
        if not pieces:
            return state, {}
        rows = concat([piece.select(self.columns) for piece in pieces])
        new_state = {name: table for name, table in state.items() if name != "rows"}
        given: list[dict[str, Any]] = []
        full = rows.num_rows // self.every_rows * self.every_rows
        for start in range(0, full, self.every_rows):
            given += self._window(rows.slice(start, self.every_rows), new_state)
        new_state["rows"] = rows.slice(full)
        return new_state, {DRIFT: pa.Table.from_pylist(given, SCHEMA)} if given else {}

    def _window(self, window: pa.Table, state: dict[str, pa.Table]) -> list[dict[str, Any]]:
        versions = window.column("version").fill_null(0).to_numpy()
        distinct, counts = np.unique(versions, return_counts=True)
        version = int(distinct[len(counts) - 1 - np.argmax(counts[::-1])])
        if not version:
            return []  # the cold start: nobody was trained yet
        window = window.filter(pa.array(versions != 0))
        reference, kind = self._reference(version, window, state), PUBLISHED
        if reference is None:
            reference, kind = self._first(version, window, state), FIRST_ROWS
        if reference is None or reference.rows < FEWEST_REFERENCE_ROWS:
            return []
        found = [
            (name, role, finding)
            for role, names in (("input", self.inputs), ("output", self.outputs_))
            for name in names
            if name in reference.columns
            for finding in reference.columns[name].compare(window.column(name))
        ]
        threshold = self.significance / max(len(found), 1)
        stamp = {
            EVENT_TIME: window.column(EVENT_TIME)[-1].as_py(),
            SEQUENCE: window.column(SEQUENCE)[-1].as_py(),
            "window_start": window.column(EVENT_TIME)[0].as_py(),
            "rows": window.num_rows,
            "threshold": threshold,
            "version": version,
            "reference": kind,
            "reference_rows": reference.rows,
        }
        return [
            stamp
            | {"column": name, "role": role, **finding._asdict()}
            | {"alarm": bool(finding.p_value < threshold and finding.distance >= self.min_distance)}
            for name, role, finding in found
        ]

    def _reference(self, version: int, window: pa.Table, state: dict[str, pa.Table]) -> Reference | None:
        text = shared_registry(self.registry).note(self.model, version, REFERENCE)
        return None if text is None else Reference.from_json(text)

    def _first(self, version: int, window: pa.Table, state: dict[str, pa.Table]) -> Reference | None:
        """The first rows that the version predicted, once there are enough; those it is still gathering are not tested."""
        first = state.get("first")
        if first is None or first.schema.metadata != _named(version):
            first = None
        if first is None or first.num_rows < self.first_rows:
            gathered = window if first is None else concat([first, window])
            state["first"] = gathered.replace_schema_metadata(_named(version))
            return None
        return Reference.of(first, [*self.inputs, *self.outputs_])


def _named(version: int) -> dict[bytes, bytes]:
    return {b"midstream.version": str(version).encode()}


def narrow(batch: pa.RecordBatch, columns: list[str]) -> pa.RecordBatch:
    """Only what the monitor wants of a batch of predictions."""
    return batch.select([*columns, *({WATERMARK} & set(batch.schema.names))])
