"""Adds to each record what was known of labels when it happened: the last label that had become known, and its record.

A version is learnt from a window of labels; between two versions labels go on becoming known. A record that brings the last of
them with it lets the model use it at once. The column follows from event times alone: a label counts as known to a record if
its (label time, sequence) is below the record's (event time, sequence), so a record never sees its own label, nor one that
became known later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.learners.experts.inputs import CONTEXT, KnownLabels
from models.learners.experts.online import Rows
from transforms.batches import MAX_WATERMARK_US, SEQUENCE
from transforms.decayed import Doubles, decayed_sums
from transforms.error_alarm import ErrorAlarm
from transforms.grouping import Int64s, class_codes, concat, places_of, require_columns
from transforms.operators import State, Tables
from transforms.windowing import times_of

HALF_LIVES_LABELS = (4.0, 20.0)  # of the decayed rates, in labels
ONLINE = "online_"  # prefix of the tables of the state that are the online experts' arrays
Floats = npt.NDArray[np.float32]


class _Known(NamedTuple):
    """Labels in order of (known_us, sequence), with what their records were when they were to be predicted.

    Attributes:
        known_us, sequence: (labels,) int64.
        value: (labels,) the class, or the number.
        rows: (labels, width) float32, the record's columns, and its context without the experts' answers.
    """

    known_us: Int64s
    sequence: Int64s
    value: Doubles
    rows: Floats

    def take(self, places: slice | Int64s) -> _Known:
        return _Known(self.known_us[places], self.sequence[places], self.value[places], self.rows[places])

    def and_then(self, others: _Known) -> _Known:
        return _Known(
            np.concatenate([self.known_us, others.known_us]),
            np.concatenate([self.sequence, others.sequence]),
            np.concatenate([self.value, others.value]),
            np.concatenate([self.rows, others.rows]),
        )


@dataclass(frozen=True)
class LabelContext:
    """Adds the column `known_labels` to input `records`; input `labels` as `own_labels` gives it.

    The records come in order (after `InOrder`) and are given at once. `known_labels` is float32 `[k]` a row: the last known
    label (one-hot, or its value where `classes` is 0), its decayed mean by each half-life, what the online experts answer
    (`models.learners.experts.online`), and the features of the record that the label belongs to. Before the first label: zeros,
    and NaN for the features.

    State: `labels` whose record has not come yet, `waiting`, the records whose label is not known yet, `latest`, and the arrays
    of the online experts.

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

    def alarm(self) -> ErrorAlarm:
        """What sees in the column that a concept has changed."""
        return ErrorAlarm(self.label, self._layout, self.vocabulary)

    def wake_us(self, state: State) -> int | None:
        return None

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        records, labels = inputs.get("records"), self._labels(state, inputs)
        new_state = {name: table for name, table in state.items() if name != "labels"}
        if records is None or not records.num_rows:
            if labels is not None:
                new_state["labels"] = self._still_to_come(labels, watermark_us)
            return new_state, {} if records is None else {"out": self._with_column(records, np.zeros((0, self._layout.width)))}
        require_columns("label context", self.features, records.schema)
        x = self._features(records)
        known, places = self._waiting(state), np.zeros(0, np.int64)
        before = len(known.value)
        if labels is not None:
            labels, matched, places = self._match(records, labels, x)
            new_state["labels"] = self._still_to_come(labels, watermark_us)
            known = known.and_then(matched)
        order = np.lexsort((known.sequence, known.known_us))
        in_order = known.take(order)
        counts = _known_before(records, in_order)
        used = int(counts.max(initial=0))
        latest = self._latest(state)
        contexts = np.concatenate([latest[None, :], self._contexts(in_order.take(slice(used)), latest)])
        context = self._column(contexts)[counts]
        if len(places):
            known.rows[before:, len(self.features) :] = context[places]
        in_order = known.take(order)
        online, answers = self._layout.online.advance(
            self._online(state), self._rows(in_order.rows[:used]), in_order.value[:used], self._rows(x, context), counts
        )
        new_state |= {ONLINE + name: pa.table({"values": values.ravel()}) for name, values in online.items()}
        new_state["latest"] = pa.table({"values": contexts[-1]})
        new_state["waiting"] = _to_table(in_order.take(slice(used, None)))
        column = np.concatenate([context[:, : self._layout.labels], answers, context[:, self._layout.labels :]], axis=1)
        return new_state, {"out": self._with_column(records, column)}

    @property
    def _layout(self) -> KnownLabels:
        return KnownLabels.of(len(self.features), self.classes)

    def _with_column(self, records: pa.Table, column: npt.NDArray[Any]) -> pa.Table:
        # The sums stay double in the state; the column is what the model takes.
        values = pa.array(np.ascontiguousarray(column, np.float32).reshape(-1))
        return records.append_column(CONTEXT, pa.FixedSizeListArray.from_arrays(values, self._layout.width))

    def _features(self, records: pa.Table) -> Floats:
        columns = [records.column(name).cast(pa.float32()).to_numpy() for name in self.features]
        return np.stack(columns, axis=1) if columns else np.zeros((records.num_rows, 0), np.float32)

    def _rows(self, x: Floats, context: Floats | None = None) -> Rows:
        """Records for the online experts; x with the context behind it where that is not given."""
        width = len(self.features)
        if context is None:
            x, context = x[:, :width], x[:, width:]
        parts = (x, context[:, : self._layout.labels], context[:, self._layout.labels :])
        return Rows(*(part.astype(np.float64) for part in parts))

    def _online(self, state: State) -> dict[str, Doubles]:
        begun = self._layout.online.begin()
        if ONLINE + "seen" not in state:
            return begun
        kept = {name: state[ONLINE + name].column("values").to_numpy() for name in begun}
        return {name: values.reshape(-1, *begun[name].shape[1:]) for name, values in kept.items()}

    def _waiting(self, state: State) -> _Known:
        width = 2 * len(self.features) + self._layout.labels
        if "waiting" not in state:
            none = np.zeros(0, np.int64)
            return _Known(none, none, np.zeros(0), np.zeros((0, width), np.float32))
        known_us, sequence, value, rows = (column.combine_chunks() for column in state["waiting"].columns)
        return _Known(known_us.to_numpy(), sequence.to_numpy(), value.to_numpy(), rows.flatten().to_numpy().reshape(-1, width))

    def _still_to_come(self, labels: pa.Table, watermark_us: int) -> pa.Table:
        """Of the labels without a record those whose record may come: it is given when its time is at the watermark, and one
        that has not come by then was late or bad."""
        return labels.filter(pa.array(labels.column("known_us").to_numpy() - self.delay_us >= watermark_us))

    @property
    def _outputs(self) -> int:
        return self.classes or 1

    def _labels(self, state: State, inputs: Tables) -> pa.Table | None:
        """The labels that wait for their record: sequence, known_us and value."""
        tables = [state["labels"]] if "labels" in state else []
        came = inputs.get("labels")
        if came is not None and came.num_rows:
            values = class_codes(came.column(self.label), self.vocabulary)
            columns = {"sequence": came.column(SEQUENCE), "known_us": times_of(came), "value": values.cast(pa.float64())}
            tables.append(pa.table(columns))
        return concat(tables) if tables else None

    def _match(self, records: pa.Table, labels: pa.Table, x: Floats) -> tuple[pa.Table, _Known, Int64s]:
        """The labels that go on waiting for their records; the others, as yet without context; and their records' places."""
        numbers = records.column(SEQUENCE).to_numpy()
        place, found = places_of(labels.column("sequence").to_numpy(), numbers)
        rows = np.zeros((int(found.sum()), 2 * len(self.features) + self._layout.labels), np.float32)
        rows[:, : len(self.features)] = x[place[found]]
        known_us, sequence, value = (labels.column(name).to_numpy()[found] for name in ("known_us", "sequence", "value"))
        return labels.filter(pa.array(~found)), _Known(known_us, sequence, value, rows), place[found]

    def _latest(self, state: State) -> Doubles:
        """The context before the first new label: label, sums and weights of each half-life, features."""
        if "latest" in state:
            return state["latest"].column("values").to_numpy()
        zeros = np.zeros(self._outputs + len(HALF_LIVES_LABELS) * (self._outputs + 1))
        return np.concatenate([zeros, np.full(len(self.features), np.nan)])

    def _contexts(self, known: _Known, latest: Doubles) -> Doubles:
        """The context after each of these labels."""
        values = known.value
        labels = values[:, None] if not self.classes else (values[:, None] == np.arange(self.classes)).astype(np.float64)
        parts, at = [labels], self._outputs
        for half_life in HALF_LIVES_LABELS:
            kept = 0.5 ** (1.0 / half_life)
            for column in (*labels.T, np.ones(len(values))):
                parts.append(decayed_sums(column, latest[at], kept)[:, None])
                at += 1
        return np.concatenate([*parts, known.rows[:, : len(self.features)]], axis=1)

    def _column(self, context: Doubles) -> Floats:
        """The column's values, from contexts with sums and weights."""
        parts, at = [context[:, : self._outputs]], self._outputs
        for _ in HALF_LIVES_LABELS:
            weight = np.maximum(context[:, at + self._outputs], 1.0)
            parts.append(context[:, at : at + self._outputs] / weight[:, None])
            at += self._outputs + 1
        return np.concatenate([*parts, context[:, at:]], axis=1).astype(np.float32)


def _to_table(known: _Known) -> pa.Table:
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(known.rows).reshape(-1)), known.rows.shape[1])
    return pa.table({"known_us": known.known_us, "sequence": known.sequence, "value": known.value, "rows": rows})


def _known_before(records: pa.Table, known: _Known) -> Int64s:
    """For each record how many of the labels, in order of (known_us, sequence), were known before it."""
    labels = len(known.value)
    times = np.concatenate([known.known_us, times_of(records)])
    numbers = np.concatenate([known.sequence, records.column(SEQUENCE).to_numpy()])
    is_label = np.arange(len(times)) < labels
    # A record with the same time and sequence goes before the label: it is its own.
    order = np.lexsort((is_label, numbers, times))
    before = np.cumsum(is_label[order])
    counts = np.empty(len(times), np.int64)
    counts[order] = before
    return counts[labels:]
