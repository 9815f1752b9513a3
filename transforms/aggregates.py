"""Aggregates of sorted groups in NumPy: exact, and the same bits whatever else is computed beside them.

Every function sees a group's values in one order, that of arrival, so no result depends on how a stream was cut.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.grouping import Int64s, column_codes, first_of_group

FUNCTIONS = ("count", "sum", "mean", "std", "std_sample", "min", "max", "quantile", "distinct")
_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)


@dataclass(frozen=True)
class Aggregate:
    """One aggregate of one column; nulls are left out, and a group of nulls alone gives null (0 for the counts).

    | function | gives |
    | --- | --- |
    | `count()`, `count(x)` | int64: the rows; the rows where x is not null |
    | `sum(x)` | int64 of integers and booleans, otherwise float64 |
    | `mean(x)` | float64 |
    | `std(x)` | float64: of the population (divided by n); `std_sample(x)` divides by n - 1, null for one value |
    | `min(x)`, `max(x)` | the type of x: numbers, booleans, dates and times |
    | `quantile(x, 0.95)` | float64: exact, linear between the two nearest values |
    | `distinct(x)` | int64: how many different values, of any type |

    A NaN among the values makes sum, mean, std, min, max and quantile NaN; it is one value to `distinct`.
    """

    function: str
    column: str | None = None
    q: float | None = None

    @classmethod
    def parse(cls, text: str) -> Aggregate:
        """Reads `mean(price)` or `quantile(price, 0.95)`; ValueError says what is possible."""
        call = _CALL.fullmatch(text) if isinstance(text, str) else None
        if call is None or call[1] not in FUNCTIONS:
            raise ValueError(f"expected an aggregate such as mean(price), one of {', '.join(FUNCTIONS)}; got {text!r}")
        function, argument, q = call[1], call[2].strip(), None
        if function == "quantile":
            argument, _, fraction = (part.strip() for part in argument.rpartition(","))
            try:
                q = float(fraction)
            except ValueError:
                q = float("nan")
            if not 0 <= q <= 1:
                raise ValueError(
                    f"expected quantile(column, q) with q from 0 to 1, such as quantile(price, 0.95); got {text!r}"
                )
        if len(argument) > 1 and argument[0] == argument[-1] == '"':
            argument = argument[1:-1]
        if not argument and function != "count":
            raise ValueError(f"{function} wants a column, such as {function}(price); got {text!r}")
        return cls(function, argument or None, q)

    def of(self, column: pa.ChunkedArray | pa.Array | None, groups: Int64s, number: int) -> pa.Array:
        """Aggregates the values of each group.

        Args:
            column: the values, `[rows]`; None where the aggregate has no column.
            groups: the group of each row, ascending from 0, int64 `[rows]`.
            number: how many groups there are.

        Returns:
            The aggregate of each group, `[number]`.

        Raises:
            ValueError: the column's type does not fit the function, or a sum of integers leaves int64.
        """
        if column is None:
            return pa.array(np.bincount(groups, minlength=number).astype(np.int64))
        valid = np.asarray(column.is_valid())
        groups = groups[valid]
        if self.function == "count":
            return pa.array(np.bincount(groups, minlength=number).astype(np.int64))
        column = column.drop_null()
        if self.function == "distinct":
            codes, _ = column_codes(column)
            order = np.lexsort((codes, groups))
            new = first_of_group(groups[order], codes[order])
            return pa.array(np.bincount(groups[order][new], minlength=number).astype(np.int64))
        begins = np.flatnonzero(first_of_group(groups))
        with np.errstate(invalid="ignore", over="ignore"):
            values, missing = self._reduce(column, groups, begins)
        # Groups that had nothing but nulls have no place in `begins`: they stay null.
        full, null = np.zeros(number, dtype=values.dtype), np.ones(number, dtype=bool)
        full[groups[begins]], null[groups[begins]] = values, missing
        result = pa.array(full, mask=null)
        if self.function in ("min", "max"):
            return result.cast(column.type)
        return result

    def _reduce(self, column: Any, groups: Int64s, begins: Int64s) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | bool]:
        """The value of each group that has any, and where it is null all the same."""
        sizes = np.diff(np.append(begins, len(groups)))
        if self.function in ("min", "max"):
            reduce = np.minimum if self.function == "min" else np.maximum
            return reduce.reduceat(self._ordered(column), begins), False
        if self.function == "sum" and _is_whole(column.type):
            return self._whole_sum(column, begins), False
        values = self._numbers(column)
        if self.function == "sum":
            return np.add.reduceat(values, begins), False
        if self.function == "quantile":
            return self._quantile(values[np.lexsort((values, groups))], begins, sizes), False
        means = np.add.reduceat(values, begins) / sizes
        if self.function == "mean":
            return means, False
        apart = values - np.repeat(means, sizes)
        squares = np.add.reduceat(apart * apart, begins)
        if self.function == "std":
            return np.sqrt(squares / sizes), False
        return np.sqrt(squares / np.maximum(sizes - 1, 1)), sizes < 2

    def _quantile(self, ascending: npt.NDArray[np.float64], begins: Int64s, sizes: Int64s) -> npt.NDArray[np.float64]:
        assert self.q is not None
        place = self.q * (sizes - 1)
        below = np.floor(place).astype(np.int64)
        part = place - below
        low, high = ascending[begins + below], ascending[begins + np.ceil(place).astype(np.int64)]
        between = np.where(part == 0, low, low + (high - low) * part)  # where inf - inf would say NaN
        last = ascending[begins + sizes - 1]
        return np.where(np.isnan(last), last, between)  # NaN sorts to the end

    def _whole_sum(self, column: Any, begins: Int64s) -> Int64s:
        values = self._plain(column.cast(pa.int64()))
        sizes = np.add.reduceat(np.abs(values.astype(np.float64)), begins)
        if len(sizes) and sizes.max() >= 2**63:
            raise ValueError(f"sum({self.column}) leaves the range of int64; make the column a double first")
        return np.add.reduceat(values, begins)

    def _numbers(self, column: Any) -> npt.NDArray[np.float64]:
        kind = column.type
        if not (_is_whole(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            raise ValueError(f"{self.function}({self.column}) wants numbers; the column is {kind}")
        if pa.types.is_boolean(kind):
            column = column.cast(pa.int8())
        return self._plain(pc.cast(column, pa.float64(), safe=False))

    def _ordered(self, column: Any) -> npt.NDArray[Any]:
        kind = column.type
        if _is_temporal(kind):
            return self._plain(pc.cast(column, _storage(kind)))
        if _is_whole(kind) or pa.types.is_floating(kind):
            return self._plain(column)
        raise ValueError(f"{self.function}({self.column}) wants numbers, dates or times; the column is {kind}")

    @staticmethod
    def _plain(column: Any) -> npt.NDArray[Any]:
        return column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)


def _is_whole(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _is_temporal(kind: pa.DataType) -> bool:
    return pa.types.is_temporal(kind) and not pa.types.is_interval(kind)


def _storage(kind: pa.DataType) -> pa.DataType:
    return pa.int32() if kind.bit_width == 32 else pa.int64()
