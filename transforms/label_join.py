"""Joins records with labels that become known later.

The rules are stated in event time and order of arrival alone, so the result does not depend on how the stream is cut. A
record is *there* from its event time on, or, if it came late, from the watermark it met (`max(event_time, watermark_us)`); a
label is *known* from the moment computed in the same way. Late rows are thus used as long as that changes nothing given before.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.batches import EVENT_TIME, MAX_WATERMARK_US, RESERVED, ROW, SEQUENCE, SOURCE, TIME_TYPE, WATERMARK
from transforms.durations import format_duration
from transforms.grouping import Int64s, concat, group_codes, require_columns
from transforms.operators import State, Tables
from transforms.windowing import times_of

LABEL_TIME = "label_time"
_THERE, _UNTIL = "there_us", "until_us"  # of the records that have their label, in the state


@dataclass(frozen=True)
class LabelJoin:
    """Joins inputs `records` and `labels`; every row comes out once, at one of the outputs.

    A label belongs to a record if they agree in the columns `on`, the record is there when the label becomes known, and the
    label is known by `event_time + horizon_us` of the record. `on` is meant to name one record within the horizon. Where it
    does not, a label goes to the first record, by (there, sequence), that has none. A null in `on` matches nothing.

    - `labelled`: the record with the columns `label` and `label_time` (when the label became known), in order of
      (label_time, the label's sequence); given once the watermark is at the label time.
    - `unlabelled`: the record, once the watermark is past its horizon, in the order of that. It has had no label, or a null.
    - `unmatched`: the label's row with a `reason`, in order of (known, sequence): `duplicate_label` (the record has one
      already), `no_record`, `null_label`. The first two are given once the watermark is past the label: a record at the same
      instant may still come. Labels at that instant then wait behind it, so that the order is always the same.

    State: `records` and `labels` that wait, and `done`, the keys of the labelled records within their horizon.

    Attributes:
        on: the columns that name a record, in both inputs; `("sequence",)` for the labels of `own_labels`.
        label: the column with the label, in `labels`.
        horizon_us: how long after a record its label may become known, 0 or more.
    """

    on: tuple[str, ...]
    label: str
    horizon_us: int
    outputs: ClassVar[tuple[str, ...]] = ("labelled", "unlabelled", "unmatched")

    def __post_init__(self) -> None:
        if isinstance(self.on, str) or not self.on:
            raise ValueError(f"label join: on is a tuple of at least one column name; got {self.on!r}")
        if self.label in (*RESERVED, *self.on, LABEL_TIME, "reason"):
            raise ValueError(f"label join: the label column cannot be {self.label}: that name is taken")
        if self.horizon_us < 0:
            raise ValueError(f"label join: the horizon must not be negative; got {format_duration(self.horizon_us)}")

    def check(self, records: pa.Schema, labels: pa.Schema) -> pa.Schema:
        """Gives the schema of `labelled` for inputs of these schemas; ValueError if they do not fit."""
        inputs = {"records": records.empty_table(), "labels": labels.empty_table()}
        return self.advance({}, inputs, MAX_WATERMARK_US)[1]["labelled"].schema

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        records, labels, done = (_waiting(state, inputs, name) for name in ("records", "labels", "done"))
        self._check_columns(records, labels)
        record_codes, label_codes, done_codes = self._codes(records, labels, done)
        there, until, record_numbers = _moments(records, self.horizon_us)
        known, _, label_numbers = _moments(labels)
        has_label = labels.column(self.label).is_valid().to_numpy() if labels is not None else np.zeros(0, dtype=bool)

        in_order = np.lexsort((record_numbers, there))
        by_known = np.lexsort((label_numbers, known))
        by_known = by_known[known[by_known] <= watermark_us]
        able = by_known[has_label[by_known]]
        found = np.full(len(known), -1)  # the record of each label
        matched = _match(label_codes[able], known[able], record_codes[in_order], there[in_order], until[in_order])
        found[able] = np.where(matched >= 0, in_order[matched] if len(in_order) else -1, -1)
        # A label at the watermark itself that has no record may still get one; those behind it wait with it.
        open_ones = np.flatnonzero((known[by_known] == watermark_us) & has_label[by_known] & (found[by_known] < 0))
        decided = by_known[: open_ones[0]] if len(open_ones) else by_known
        pairs, single = decided[found[decided] >= 0], decided[found[decided] < 0]
        labelled = found[pairs]

        new_state, given = {}, {}
        done_there, done_until, _ = _moments(done)
        if records is not None:
            if labels is not None:
                rows = records.take(pa.array(labelled)).append_column(
                    self.label, labels.column(self.label).take(pa.array(pairs))
                )
                given["labelled"] = rows.append_column(LABEL_TIME, pa.array(known[pairs]).cast(TIME_TYPE))
            waits = np.ones(records.num_rows, dtype=bool)
            waits[labelled] = False
            ends = np.maximum(until, there)
            over = np.flatnonzero(waits & (ends < watermark_us))
            given["unlabelled"] = records.take(pa.array(over[np.lexsort((record_numbers[over], ends[over]))]))
            new_state["records"] = records.filter(pa.array(waits & (ends >= watermark_us)))
            new_done = self._keys(records).take(pa.array(labelled))
            new_done = new_done.append_column(_THERE, pa.array(there[labelled])).append_column(
                _UNTIL, pa.array(until[labelled])
            )
            done = concat([done, new_done]) if done is not None else new_done
            done_codes = np.append(done_codes, record_codes[labelled])
            done_there, done_until = np.append(done_there, there[labelled]), np.append(done_until, until[labelled])
        if done is not None:
            new_state["done"] = done.filter(pa.array(done_until >= watermark_us))
        if labels is not None:
            twice = _covered(label_codes[single], known[single], done_codes, done_there, done_until)
            reasons = np.where(~has_label[single], "null_label", np.where(twice, "duplicate_label", "no_record"))
            given["unmatched"] = labels.take(pa.array(single)).append_column("reason", pa.array(reasons.tolist(), pa.string()))
            waits = np.ones(labels.num_rows, dtype=bool)
            waits[decided] = False
            new_state["labels"] = labels.filter(pa.array(waits))
        return new_state, given

    def wake_us(self, state: State) -> int | None:
        known, _, _ = _moments(state.get("labels"))
        there, until, _ = _moments(state.get("records"), self.horizon_us)
        times = np.concatenate([known, np.maximum(until, there) + 1])  # a record's horizon has to be past
        return int(times.min()) if len(times) else None

    def _check_columns(self, records: pa.Table | None, labels: pa.Table | None) -> None:
        if records is not None:
            require_columns("label join, records", self.on, records.schema)
            if there := [name for name in (self.label, LABEL_TIME) if name in records.schema.names]:
                raise ValueError(f"label join: the records have a column {', '.join(there)} already; drop or rename it")
        if labels is not None:
            require_columns("label join, labels", (*self.on, self.label), labels.schema)
        if records is not None and labels is not None:
            for ours, theirs in zip(self._keys(records).schema, self._keys(labels).schema, strict=True):
                if ours.type != theirs.type:
                    raise ValueError(
                        f"label join: {ours.name} is {ours.type} in the records and {theirs.type} in the labels; "
                        "make them the same"
                    )

    def _keys(self, table: pa.Table) -> pa.Table:
        """The key columns, with words instead of dictionaries, so that records and labels may differ in that."""
        columns = [table.column(name) for name in self.on]
        plain = [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in columns]
        return pa.table(plain, names=list(self.on))

    def _codes(self, *tables: pa.Table | None) -> list[Int64s]:
        """The keys as numbers that are comparable across the tables; a key with a null gets one that no other has."""
        keys = [self._keys(table) if table is not None else None for table in tables]
        there = [table for table in keys if table is not None]
        if not there:
            return [np.zeros(0, dtype=np.int64) for _ in tables]
        joined = concat(there)
        codes = group_codes(joined, self.on)
        for name in self.on:
            null = joined.column(name).is_null().to_numpy()
            codes[null] = -1 - np.flatnonzero(null)
        ends = np.cumsum([table.num_rows if table is not None else 0 for table in keys])
        return np.split(codes, ends[:-1])


def own_labels(batch: pa.RecordBatch, label: str, delay_us: int) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Splits records that carry their own label, known only some time later, into the two inputs of a `LabelJoin`.

    Args:
        batch: records with the reserved columns.
        label: the column with the label; a record where it is null has no label.
        delay_us: how long after its record each label becomes known, 0 or more; at most the horizon of the join.

    Returns:
        The records without the label, and the labels: the reserved columns, with `event_time` later by the delay and the
        `sequence` of the record, by which `LabelJoin(on=("sequence",))` finds it, and the label.

    Raises:
        ValueError: there is no such column, or the delay is negative.
    """
    require_columns("own labels", (label,), batch.schema)
    if delay_us < 0:
        raise ValueError(f"a label cannot be known before its record; got a delay of {format_duration(delay_us)}")
    kept = [name for name in (EVENT_TIME, SOURCE, ROW, SEQUENCE, WATERMARK) if name in batch.schema.names]
    labels = batch.select([*kept, label]).filter(batch.column(label).is_valid())
    times = pa.array(times_of(labels) + delay_us).cast(TIME_TYPE)
    labels = labels.set_column(labels.schema.get_field_index(EVENT_TIME), EVENT_TIME, times)
    return batch.drop_columns([label]), labels


def _waiting(state: State, inputs: Tables, name: str) -> pa.Table | None:
    tables = [table for table in (state.get(name), inputs.get(name)) if table is not None]
    return concat(tables) if tables else None


def _moments(table: pa.Table | None, horizon_us: int = 0) -> tuple[Int64s, Int64s, Int64s]:
    """When each row is there, until when it waits, and its sequence; int64 `[rows]` each."""
    if table is None:
        return (np.zeros(0, dtype=np.int64),) * 3
    if _THERE in table.schema.names:  # `done` has them as columns
        there, until = (table.column(name).to_numpy() for name in (_THERE, _UNTIL))
        return there, until, np.zeros(len(there), dtype=np.int64)
    times = times_of(table)
    there = np.maximum(times, table.column(WATERMARK).to_numpy()) if WATERMARK in table.schema.names else times
    return there, times + horizon_us, table.column(SEQUENCE).to_numpy()


def _match(label_codes: Int64s, known: Int64s, record_codes: Int64s, there: Int64s, until: Int64s) -> Int64s:
    """Gives each label, in order, the first record of its key that is there, not over and not taken; -1 if there is none.

    Keys with one record and one label, the usual case, are matched at once; the rest one after the other.
    """
    numbers = np.unique(np.concatenate([record_codes, label_codes]), return_inverse=True)[1]
    of_record, of_label = numbers[: len(record_codes)], numbers[len(record_codes) :]
    keys = int(numbers.max(initial=-1)) + 1
    records, labels = np.bincount(of_record, minlength=keys), np.bincount(of_label, minlength=keys)
    result = np.full(len(known), -1)
    last = np.zeros(keys, dtype=np.int64)
    last[of_record] = np.arange(len(of_record))
    usual = np.flatnonzero((records[of_label] == 1) & (labels[of_label] == 1))
    record = last[of_label[usual]]
    fits = (there[record] <= known[usual]) & (known[usual] <= until[record])
    result[usual[fits]] = record[fits]

    shared = (records > 0) & (labels > 0) & (records + labels > 2)
    queues: dict[int, deque[tuple[int, int, int]]] = {}
    waiting = np.flatnonzero(shared[of_record])
    columns = (of_record[waiting], waiting, there[waiting], until[waiting])
    for key, *entry in zip(*(column.tolist() for column in columns), strict=True):
        queues.setdefault(key, deque()).append((entry[0], entry[1], entry[2]))
    asking = np.flatnonzero(shared[of_label])
    for label, key, time in zip(asking.tolist(), of_label[asking].tolist(), known[asking].tolist(), strict=True):
        queue = queues[key]
        while queue and queue[0][2] < time:  # over for this label and, as labels come in order, for all after it
            queue.popleft()
        if queue and queue[0][1] <= time:
            result[label] = queue.popleft()[0]
    return result


def _covered(codes: Int64s, known: Int64s, done_codes: Int64s, there: Int64s, until: Int64s) -> npt.NDArray[np.bool_]:
    """Whether a label without a record is within the horizon of a record of its key that has its label already."""
    result = np.isin(codes, done_codes)
    spans: dict[int, list[tuple[int, int]]] = {}
    of_these = np.isin(done_codes, codes)
    for code, *span in zip(*(column[of_these].tolist() for column in (done_codes, there, until)), strict=True):
        spans.setdefault(code, []).append((span[0], span[1]))
    for place in np.flatnonzero(result).tolist():
        time = known[place]
        result[place] = any(start <= time <= end for start, end in spans[int(codes[place])])
    return result
