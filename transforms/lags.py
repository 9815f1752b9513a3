"""Columns from earlier records of the same key: the value n records ago, and aggregates of the last n records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.batches import MAX_WATERMARK_US, RESERVED
from transforms.grouping import Int64s, concat, first_of_group, group_codes, require_columns
from transforms.operators import State, Tables

ROLLING = ("mean", "min", "max", "std")


@dataclass(frozen=True)
class Lags:
    """Adds to each row of input `in` what earlier rows of its key had; the rows come in the order meant (after `InOrder`).

    Every row is given at once, in the order it came: the watermark plays no part. State: `rows`, the key and the columns
    needed of as many rows of each key as the farthest lag asks for; it grows with the number of keys.

    Attributes:
        columns: for each column to add `(column, n)`: the value n rows earlier, n >= 1; null where there is no such row.
        by: the key columns; none takes all rows as one key. Null is a key like any other.
        rolling: for each column to add `(column, function, n)`: float64, the mean, min, max or std (of the population) of the
            values that are not null in the last n rows of the key, the row itself included; null where there is none.
    """

    columns: Mapping[str, tuple[str, int]]
    by: tuple[str, ...] = ()
    rolling: Mapping[str, tuple[str, str, int]] = field(default_factory=dict)
    outputs: ClassVar[tuple[str, ...]] = ("out",)

    def __post_init__(self) -> None:
        if isinstance(self.by, str):
            raise ValueError(f"by is a tuple of column names; got {self.by!r}")
        for name, (column, *function, records) in [*self.columns.items(), *self.rolling.items()]:
            if name in RESERVED:
                raise ValueError(f"lags: {name} is a reserved column; give the lag of {column} another name")
            if isinstance(records, bool) or not isinstance(records, int) or records < 1:
                raise ValueError(f"lag {name}: expected a whole number of records, 1 or more; got {records!r}")
            if function and function[0] not in ROLLING:
                raise ValueError(f"lag {name}: expected one of {', '.join(ROLLING)}; got {function[0]!r}")
        if twice := sorted(self.columns.keys() & self.rolling.keys()):
            raise ValueError(f"{', '.join(twice)} is both a lag and a rolling aggregate; choose different names")

    def check(self, schema: pa.Schema) -> pa.Schema:
        """Gives the schema of `out` for rows of this schema; ValueError if a column is missing or its type does not fit."""
        return self.advance({}, {"in": schema.empty_table()}, MAX_WATERMARK_US)[1]["out"].schema

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        came = inputs.get("in")
        if came is None:
            return state, {}
        read = [column for column, _ in self.columns.values()] + [column for column, _, _ in self.rolling.values()]
        require_columns("lags", [*self.by, *read], came.schema)
        if there := [name for name in [*self.columns, *self.rolling] if name in came.schema.names]:
            raise ValueError(f"lags: the rows have a column {', '.join(there)} already; choose other names")
        needed = came.select(list(dict.fromkeys([*self.by, *read])))
        before = state.get("rows", needed.slice(0, 0))
        rows = concat([before, needed])
        codes = group_codes(rows, self.by) if rows.num_columns else np.zeros(before.num_rows + came.num_rows, np.int64)
        order = np.argsort(codes, kind="stable")
        places = _places(codes[order])
        new = np.empty_like(order)
        new[order] = np.arange(len(order))
        new = new[before.num_rows :]  # where the new rows stand in that order
        out = came
        for name, (column, records) in self.columns.items():
            has = places[new] >= records
            source = np.where(has, order[new - records * has], 0)
            out = out.append_column(name, rows.column(column).take(pa.array(source, mask=~has)))
        for name, (column, function, records) in self.rolling.items():
            values, valid = _numbers(name, rows.column(column))
            out = out.append_column(
                name, _roll(values[order], valid[order], new, np.minimum(places[new] + 1, records), function)
            )
        reach = max([n for _, n in self.columns.values()] + [n - 1 for *_, n in self.rolling.values()], default=0)
        from_end = _places(codes[order][::-1])[::-1]
        kept = np.sort(order[from_end < reach])
        return {"rows": rows.take(pa.array(kept))}, {"out": out}

    def wake_us(self, state: State) -> int | None:
        return None


def _places(sorted_codes: Int64s) -> Int64s:
    """How many rows of the same group come before each row, int64 `[rows]`."""
    at = np.arange(len(sorted_codes))
    return at - np.maximum.accumulate(np.where(first_of_group(sorted_codes), at, 0))


def _numbers(name: str, column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The values, 0 where null, and where they are not null."""
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise ValueError(f"lag {name}: a rolling aggregate wants numbers; the column is {kind}")
    valid = column.is_valid().to_numpy()
    return column.cast(pa.float64(), safe=False).fill_null(0.0).to_numpy(), valid


def _roll(
    values: npt.NDArray[np.float64], valid: npt.NDArray[np.bool_], at: Int64s, lengths: Int64s, function: str
) -> pa.Array:
    """Aggregates `values[at - length + 1 : at + 1]`, always from the oldest to the newest: the bits depend on these alone."""
    longest = int(lengths.max(initial=0))

    def fold(combine: Any, start: npt.NDArray[np.float64], of: Any) -> npt.NDArray[np.float64]:
        for back in range(longest - 1, -1, -1):  # over the window, for all rows at once
            inside = np.flatnonzero(lengths > back)
            inside = inside[valid[at[inside] - back]]
            start[inside] = combine(start[inside], of(values[at[inside] - back], inside))
        return start

    seen = fold(np.add, np.zeros(len(at)), lambda value, _: 1.0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if function in ("min", "max"):
            combine, start = (np.minimum, np.inf) if function == "min" else (np.maximum, -np.inf)
            result = fold(combine, np.full(len(at), start), lambda value, _: value)
        else:
            result = fold(np.add, np.zeros(len(at)), lambda value, _: value) / seen
            if function == "std":
                squares = fold(np.add, np.zeros(len(at)), lambda value, inside: (value - result[inside]) ** 2)
                result = np.sqrt(squares / seen)
    return pa.array(result, mask=seen == 0)
