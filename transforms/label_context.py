"""Adds to each record what was known of labels when it happened: the last label that had become known, and its record.

A version is learnt from a window of labels; between two versions labels go on becoming known. A record that brings the last of
them with it lets the model use it at once. The column follows from event times alone: a label counts as known to a record if
its (label time, sequence) is below the record's (event time, sequence), so a record never sees its own label, nor one that
became known later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.signal import lfilter

from models.learners.experts.inputs import CONTEXT
from transforms.batches import MAX_WATERMARK_US, SEQUENCE
from transforms.grouping import Int64s, concat, require_columns
from transforms.operators import State, Tables
from transforms.windowing import times_of

HALF_LIVES_LABELS = (4.0, 20.0)  # of the decayed rates, in labels
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LabelContext:
    """Adds the column `known_labels` to input `records`; input `labels` as `own_labels` gives it.

    The records come in order (after `InOrder`) and are given at once. `known_labels` is float32 `[k]` a row: the last known
    label (one-hot, or its value where `classes` is 0), its decayed mean by each half-life, and the features of the
    record that it belongs to. Before the first label: zeros, and NaN for the features.

    State: `labels` whose record has not come yet, `waiting`, the records whose label is not known yet, and `latest`.

    Attributes:
        label: the label column, in `labels`.
        features: the numeric columns of `records` that are remembered.
        delay_us: how long after its record a label becomes known.
        classes: number of classes; 0 for labels that are numbers to be estimated.
        vocabulary: the labels by class; empty for integers from 0. A label that is not among them counts for no class.
    """

    label: str
    features: tuple[str, ...]
    delay_us: int
    classes: int = 0
    vocabulary: tuple[str, ...] = ()
    outputs: ClassVar[tuple[str, ...]] = ("out",)

    def check(self, records: pa.Schema) -> pa.Schema:
        """Gives the schema of `out` for records of this schema; ValueError if a column is missing."""
        return self.advance({}, {"records": records.empty_table()}, MAX_WATERMARK_US)[1]["out"].schema

    def wake_us(self, state: State) -> int | None:
        return None

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        records, labels = inputs.get("records"), self._labels(state, inputs)
        waiting = [state["waiting"]] if "waiting" in state else []
        if records is not None and records.num_rows and labels is not None:
            labels, matched = self._match(records, labels)
            waiting.append(matched)
        new_state = {name: table for name, table in state.items() if name == "latest"}
        if labels is not None:
            # A record is given when its time is at the watermark: one that has not come by then was late or bad.
            new_state["labels"] = labels.filter(pa.array(labels.column("known_us").to_numpy() - self.delay_us >= watermark_us))
        known = concat(waiting).sort_by([("known_us", "ascending"), ("sequence", "ascending")]) if waiting else None
        if known is not None:
            new_state["waiting"] = known
        if records is None:
            return new_state, {}
        require_columns("label context", self.features, records.schema)
        counts = _known_before(records, known)
        used = int(counts.max(initial=0))
        latest = self._latest(state)
        context = latest[None, :]
        if known is not None and used:
            context = np.concatenate([context, self._contexts(known.slice(0, used), latest)])
            new_state["waiting"] = known.slice(used)
            new_state["latest"] = pa.table({"values": pa.array(context[-1])})
        # The sums stay double in the state; the column is what the model takes.
        column = self._column(context)[counts]
        values = pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column.shape[1])
        return new_state, {"out": records.append_column(CONTEXT, values)}

    @property
    def _outputs(self) -> int:
        return self.classes or 1

    def _labels(self, state: State, inputs: Tables) -> pa.Table | None:
        """The labels that wait for their record: sequence, known_us and value."""
        tables = [state["labels"]] if "labels" in state else []
        came = inputs.get("labels")
        if came is not None and came.num_rows:
            values = came.column(self.label)
            if self.vocabulary:
                codes = pa.compute.index_in(values.cast(pa.string()), pa.array(self.vocabulary))
                values = codes.fill_null(-1)
            columns = {"sequence": came.column(SEQUENCE), "known_us": times_of(came), "value": values.cast(pa.float64())}
            tables.append(pa.table(columns))
        return concat(tables) if tables else None

    def _match(self, records: pa.Table, labels: pa.Table) -> tuple[pa.Table, pa.Table]:
        """The labels that go on waiting, and the others with their records' features."""
        numbers = records.column(SEQUENCE).to_numpy()
        order = np.argsort(numbers, kind="stable")
        place = np.searchsorted(numbers, labels.column("sequence").to_numpy(), sorter=order)
        place = order[np.minimum(place, len(order) - 1)]
        found = numbers[place] == labels.column("sequence").to_numpy()
        rows = records.take(pa.array(place[found]))
        matched = labels.filter(pa.array(found))
        for number, name in enumerate(self.features):
            matched = matched.append_column(str(number), rows.column(name).cast(pa.float32()))
        return labels.filter(pa.array(~found)), matched

    def _latest(self, state: State) -> npt.NDArray[np.float64]:
        """The context before the first new label: label, sums and weights of each half-life, features."""
        if "latest" in state:
            return state["latest"].column("values").to_numpy()
        zeros = np.zeros(self._outputs + len(HALF_LIVES_LABELS) * (self._outputs + 1))
        return np.concatenate([zeros, np.full(len(self.features), np.nan)])

    def _contexts(self, known: pa.Table, latest: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The context after each of these labels."""
        values = known.column("value").to_numpy()
        labels = values[:, None] if not self.classes else (values[:, None] == np.arange(self.classes)).astype(np.float64)
        parts, at = [labels], self._outputs
        for half_life in HALF_LIVES_LABELS:
            kept = 0.5 ** (1.0 / half_life)
            for column in (*labels.T, np.ones(len(values))):
                # One after the other, with the same rounding however the stream is cut.
                parts.append(lfilter([1.0], [1.0, -kept], column, zi=[kept * latest[at]])[0][:, None])
                at += 1
        features = [known.column(str(number)).to_numpy()[:, None] for number in range(len(self.features))]
        return np.concatenate([*parts, *features], axis=1)

    def _column(self, context: npt.NDArray[np.float64]) -> Floats:
        """The column's values, from contexts with sums and weights."""
        parts, at = [context[:, : self._outputs]], self._outputs
        for _ in HALF_LIVES_LABELS:
            weight = np.maximum(context[:, at + self._outputs], 1.0)
            parts.append(context[:, at : at + self._outputs] / weight[:, None])
            at += self._outputs + 1
        return np.concatenate([*parts, context[:, at:]], axis=1).astype(np.float32)


def _known_before(records: pa.Table, known: pa.Table | None) -> Int64s:
    """For each record how many of the labels, in order of (known_us, sequence), were known before it."""
    if known is None or not records.num_rows:
        return np.zeros(records.num_rows, np.int64)
    labels = known.num_rows
    times = np.concatenate([known.column("known_us").to_numpy(), times_of(records)])
    numbers = np.concatenate([known.column("sequence").to_numpy(), records.column(SEQUENCE).to_numpy()])
    is_label = np.arange(len(times)) < labels
    # A record with the same time and sequence goes before the label: it is its own.
    order = np.lexsort((is_label, numbers, times))
    before = np.cumsum(is_label[order])
    counts = np.empty(len(times), np.int64)
    counts[order] = before
    return counts[labels:]
