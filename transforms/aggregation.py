"""Aggregates over windows of event time, by key: each window is given once, when it is complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from transforms.aggregates import Aggregate
from transforms.batches import (
    EVENT_TIME,
    MAX_WATERMARK_US,
    MIN_WATERMARK_US,
    RESERVED,
    ROW,
    SEQUENCE,
    SOURCE,
    TIME_TYPE,
    WATERMARK,
)
from transforms.durations import format_duration
from transforms.grouping import Int64s, concat, first_of_group, group_codes, require_columns
from transforms.operators import State, Tables
from transforms.windowing import SessionWindows, Windows, times_of

WINDOW_START = "window_start"
WINDOW_END = "window_end"


@dataclass(frozen=True)
class WindowedAggregation:
    """Aggregates the rows of input `in` in each window and for each key.

    Output `out` is a stream again, in order of (window_end, window_start, sequence), with a row for each window and key:

    - the columns of `by`, `window_start` and `window_end` (timestamp[us, UTC]), the aggregates;
    - `event_time`: the last instant of the window, `window_end` - 1 us, as in Beam;
    - `source` and `row`: of the last record, by `sequence`, of the window and key;
    - `sequence`: `n * s + i`, where s is the sequence of that record, n the most windows a record can be in, and i says which
      of the record's windows this is (0 for the newest). No two rows share it, over all keys and shards, and it depends on the
      records alone. Fixed and session windows have n = 1: there it is the record's sequence.

    A window is complete, and given, when `window_end + allowed_lateness_us` is at or below the watermark. A record is late for
    a window that was complete at its own `watermark_us`; one that is late for all of its windows goes to `late`,
    unchanged. With session windows a record is late if `event_time + allowed_lateness_us` is before its `watermark_us`: any
    other one cannot touch a session that was given, because that one ended at or below that watermark. Records without
    `watermark_us` are never late, unless they come after their windows were given.

    State: `rows`, the columns needed of the records whose windows are not all given, so that every aggregate is exact;
    `clock`, the watermark of the last call.

    Attributes:
        windows: see `transforms.windowing`.
        by: the key columns; none aggregates over all records.
        aggregates: the name of each column to add, with its aggregate, such as `{"high": "quantile(price, 0.95)"}`; see
            `transforms.aggregates.Aggregate` for the functions.
        allowed_lateness_us: how long to wait for late records beyond the end of a window.
    """

    windows: Windows
    by: tuple[str, ...]
    aggregates: Mapping[str, str]
    allowed_lateness_us: int = 0
    outputs: ClassVar[tuple[str, ...]] = ("out", "late")

    def __post_init__(self) -> None:
        if isinstance(self.by, str):
            raise ValueError(f"by is a tuple of column names; got {self.by!r}")
        if self.allowed_lateness_us < 0:
            raise ValueError(f"allowed lateness must not be negative; got {format_duration(self.allowed_lateness_us)}")
        taken = {*RESERVED, WINDOW_START, WINDOW_END}
        if wrong := [name for name in self.by if name in taken - {SOURCE}]:
            raise ValueError(
                f"{', '.join(wrong)} cannot be a key: it is a reserved column; key by other columns or by {SOURCE}"
            )
        if len(set(self.by)) != len(self.by):
            raise ValueError(f"a key column is named twice in {', '.join(self.by)}")
        for name, text in self.aggregates.items():
            if name in taken or name in self.by:
                raise ValueError(f"aggregate {name} ({text}) has the name of a key or a reserved column; choose another one")
            try:
                Aggregate.parse(text)
            except ValueError as error:
                raise ValueError(f"aggregate {name}: {error}") from None

    def check(self, schema: pa.Schema) -> pa.Schema:
        """Gives the schema of `out` for rows of this schema; ValueError if a column is missing or its type does not fit."""
        return self.advance({}, {"in": schema.empty_table()}, MAX_WATERMARK_US)[1]["out"].schema

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        clock = state["clock"].column(WATERMARK)[0].as_py() if "clock" in state else MIN_WATERMARK_US
        new_state = {"clock": pa.table({WATERMARK: pa.array([watermark_us], pa.int64())})}
        given: dict[str, pa.Table] = {}
        pieces = [state["rows"]] if "rows" in state else []
        if (came := inputs.get("in")) is not None:
            require_columns(f"aggregation by {', '.join(self.by) or 'nothing'}", self._needed(), came.schema)
            late = self._is_late(came, clock)
            given["late"] = came.filter(pa.array(late))
            pieces.append(self._stamped(came).filter(pa.array(~late)))
        if not pieces:
            return new_state, {}
        rows = concat(pieces)
        indices, starts, ends, places = self._open_windows(rows, clock)
        complete = ends + self.allowed_lateness_us <= watermark_us
        waiting = np.zeros(rows.num_rows, dtype=bool)
        waiting[indices[~complete]] = True
        given["out"] = self._aggregate(rows, indices[complete], starts[complete], ends[complete], places[complete])
        return {**new_state, "rows": rows.filter(pa.array(waiting))}, given

    def wake_us(self, state: State) -> int | None:
        if "rows" not in state or not state["rows"].num_rows:
            return None
        clock = state["clock"].column(WATERMARK)[0].as_py()
        _, _, ends, _ = self._open_windows(state["rows"], clock)
        return int(ends.min()) + self.allowed_lateness_us

    def _needed(self) -> list[str]:
        columns = [parsed.column for parsed in map(Aggregate.parse, self.aggregates.values()) if parsed.column is not None]
        return list(dict.fromkeys([EVENT_TIME, SOURCE, ROW, SEQUENCE, *self.by, *columns]))

    def _stamped(self, rows: pa.Table) -> pa.Table:
        """The columns needed, and `watermark_us` in any case."""
        needed = rows.select([name for name in self._needed() if name != WATERMARK])
        return needed.append_column(WATERMARK, pa.array(_stamps(rows)))

    def _is_late(self, rows: pa.Table, clock: int) -> np.ndarray:
        stamps = np.maximum(_stamps(rows), clock)
        if isinstance(self.windows, SessionWindows):
            return times_of(rows) + self.allowed_lateness_us < stamps
        indices, _, ends = self.windows.assign(rows)
        late = np.ones(rows.num_rows, dtype=bool)
        late[indices[ends + self.allowed_lateness_us > stamps[indices]]] = False
        return late

    def _open_windows(self, rows: pa.Table, clock: int) -> tuple[Int64s, Int64s, Int64s, Int64s]:
        """The windows that each row counts in and that were not given yet; the last array says which one of the row's it is."""
        indices, starts, ends = self.windows.assign(rows)
        if isinstance(self.windows, SessionWindows):
            starts, ends = self.windows.merge(group_codes(rows, self.by), starts)
            return indices, starts, ends, np.zeros_like(starts)
        places = np.searchsorted(indices, indices, side="right") - 1 - np.arange(len(indices))
        is_open = ends + self.allowed_lateness_us > np.maximum(_stamps(rows), clock)[indices]
        return indices[is_open], starts[is_open], ends[is_open], places[is_open]

    def _aggregate(self, rows: pa.Table, indices: Int64s, starts: Int64s, ends: Int64s, places: Int64s) -> pa.Table:
        keys, sequences = group_codes(rows, self.by)[indices], rows.column(SEQUENCE).to_numpy()[indices]
        order = np.lexsort((sequences, keys, starts, ends))
        first = first_of_group(ends[order], starts[order], keys[order])
        groups = np.cumsum(first) - 1
        lasts = order[np.append(np.flatnonzero(first)[1:], len(order)) - 1] if len(order) else order
        tables = {name: rows.column(name) for name in self._needed()}
        of_last = {name: tables[name].take(pa.array(indices[lasts])) for name in (*self.by, SOURCE, ROW)}
        out = {name: of_last[name] for name in self.by if name != SOURCE}
        out |= {WINDOW_START: pa.array(starts[lasts]).cast(TIME_TYPE), WINDOW_END: pa.array(ends[lasts]).cast(TIME_TYPE)}
        taken = pa.array(indices[order])
        values = {name: column.take(taken) for name, column in tables.items()}
        for name, text in self.aggregates.items():
            aggregate = Aggregate.parse(text)
            out[name] = aggregate.of(values[aggregate.column] if aggregate.column else None, groups, len(lasts))
        out[EVENT_TIME] = pa.array(ends[lasts] - 1).cast(TIME_TYPE)
        out |= {SOURCE: of_last[SOURCE], ROW: of_last[ROW]}
        out[SEQUENCE] = pa.array(self._sequence(sequences[lasts], places[lasts]))
        by_time = np.lexsort((out[SEQUENCE].to_numpy(), starts[lasts], ends[lasts]))
        return pa.table(out).take(pa.array(by_time)).combine_chunks()

    def _sequence(self, sequences: Int64s, places: Int64s) -> Int64s:
        each = self.windows.windows_per_row
        if len(sequences) and int(sequences.max()) * each + each > np.iinfo(np.int64).max:
            raise ValueError(f"sequence {sequences.max()} is too large to number {each} windows a row; make `every` longer")
        return sequences * each + places


def _stamps(rows: pa.Table) -> Int64s:
    if WATERMARK not in rows.schema.names:
        return np.full(rows.num_rows, MIN_WATERMARK_US)
    return rows.column(WATERMARK).fill_null(MIN_WATERMARK_US).to_numpy()
