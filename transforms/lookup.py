"""Joins a stream with a table that does not change."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from transforms.batches import RESERVED
from transforms.dead_letters import dead_letters
from transforms.grouping import Int64s, group_codes, require_columns

_SHOWN = 5  # keys named in an error
_CSV = (".csv", ".csv.gz")
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True)
class Lookup:
    """Adds to each row the columns of the row of a table that has its key; the rows keep their order.

    The table is read once in each process. A null key of a row matches nothing; in the table it is an error.

    Attributes:
        table_path: a local CSV (also .csv.gz) or Parquet file.
        on: the key columns, which the stream and the table both have; in the table a key stands once.
        columns: the table's columns to add; None adds all but the key.
        default: what happens to a row whose key the table does not have: `null` adds nulls, `drop` makes it a dead letter.

    Raises:
        ValueError: in calls and `check`: the table cannot be read, repeats a key, or does not fit the stream.
    """

    table_path: str
    on: tuple[str, ...]
    columns: tuple[str, ...] | None = None
    default: Literal["null", "drop"] = "null"

    def __post_init__(self) -> None:
        for name, value in (("on", self.on), ("columns", self.columns)):
            if isinstance(value, str):
                raise ValueError(f"lookup: {name} is a tuple of column names; got {value!r}")
        if not self.on:
            raise ValueError("lookup: on must name at least one key column")
        if self.default not in ("null", "drop"):
            raise ValueError(f"lookup: default must be null or drop; got {self.default!r}")

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Joins a batch.

        Returns:
            The batch with the columns added, and the dead letters (reason `no_match`; none with `default="null"`).
        """
        table = _load(self.table_path, self.on, self.columns)
        require_columns("lookup", self.on, batch.schema)
        if there := [name for name in table.values.schema.names if name in batch.schema.names]:
            raise ValueError(
                f"lookup in {self.table_path}: the stream has a column {', '.join(there)} already; leave it out of columns"
            )
        places = table.find(batch)
        matched = places >= 0
        missed = batch.slice(0, 0)
        if self.default == "drop" and not matched.all():
            missed, batch, places = batch.filter(pa.array(~matched)), batch.filter(pa.array(matched)), places[matched]
        taken = table.values.take(pa.array(places, mask=places < 0))
        schema = batch.schema
        for field in taken.schema:
            schema = schema.append(field)
        joined = pa.record_batch([*batch.columns, *taken.columns], schema=schema)
        detail = f"no row of {Path(self.table_path).name} has this {', '.join(self.on)}"
        return joined, dead_letters(missed, "no_match", detail)

    def check(self, schema: pa.Schema) -> pa.Schema:
        """Reads the table; gives the schema of the joined rows for batches of this schema. ValueError if they do not fit."""
        return self(pa.record_batch([pa.array([], field.type) for field in schema], schema=schema))[0].schema


@dataclass(frozen=True)
class _Table:
    path: str
    keys: tuple[tuple[str, pa.Array], ...]  # by key column: its distinct values, which are numbered by their place
    codes: Int64s  # [rows], ascending: the numbers of a row's key, made one
    order: Int64s  # [rows]: the row that has the code
    values: pa.RecordBatch  # [rows]: the columns to add

    def find(self, batch: pa.RecordBatch) -> Int64s:
        """The table's row for each row of the batch, -1 where there is none."""
        codes = np.zeros(batch.num_rows, dtype=np.int64)
        known = np.ones(batch.num_rows, dtype=bool)
        for name, distinct in self.keys:
            own, has = _number(batch.column(name), distinct, f"lookup in {self.path}: key {name}")
            codes, known = codes * len(distinct) + own, known & has
        if not len(self.codes):
            return np.full(batch.num_rows, -1)
        at = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where(known & (self.codes[at] == codes), self.order[at], -1)


def _number(column: Any, distinct: pa.Array, what: str) -> tuple[Int64s, npt.NDArray[np.bool_]]:
    """The place of each value among the distinct ones, 0 where it has none, and whether it has one."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type != distinct.type:
        try:
            # Towards the wider of the two, so that 1.5 does not find 1.
            both = pa.unify_schemas(
                [pa.schema([("key", column.type)]), pa.schema([("key", distinct.type)])], promote_options="permissive"
            )
            column, distinct = column.cast(both.types[0]), distinct.cast(both.types[0])
        except pa.ArrowException:
            raise ValueError(
                f"{what} is {column.type} in the stream and {distinct.type} in the table; make them the same"
            ) from None
    found = pc.index_in(column, value_set=distinct)
    known = pc.and_(found.is_valid(), column.is_valid())
    return found.fill_null(0).to_numpy().astype(np.int64), known.to_numpy(zero_copy_only=False)


@lru_cache(maxsize=16)
def _load(path: str, on: tuple[str, ...], columns: tuple[str, ...] | None) -> _Table:
    table = _read(path)
    require_columns(f"lookup in {path}", [*on, *(columns or ())], table.schema)
    chosen = columns if columns is not None else tuple(name for name in table.schema.names if name not in on)
    if reserved := [name for name in chosen if name in RESERVED]:
        raise ValueError(
            f"lookup in {path}: {', '.join(reserved)} is reserved; rename it in the table or name the columns to add"
        )
    for name in on:
        if nulls := table.column(name).null_count:
            raise ValueError(f"lookup in {path}: {nulls} rows have no {name}; every row of the table needs its key")
    _, counts = np.unique(group := group_codes(table, on), return_counts=True)
    if (counts > 1).any():
        first = np.unique(group, return_index=True)[1][counts > 1]
        shown = [
            ", ".join(map(str, key.values()))
            for key in table.select(list(on)).take(pa.array(np.sort(first)[:_SHOWN])).to_pylist()
        ]
        more = f" and {len(first) - _SHOWN} more" if len(first) > _SHOWN else ""
        raise ValueError(f"lookup in {path}: a key must stand once; repeated {', '.join(on)}: {'; '.join(shown)}{more}")
    keys, codes = [], np.zeros(table.num_rows, dtype=np.int64)
    for name in on:
        column = table.column(name)
        column = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        distinct = pc.unique(column)
        if len(codes) and len(distinct) * (int(codes.max()) + 1) > np.iinfo(np.int64).max:
            raise ValueError(f"lookup in {path}: too many different keys in {', '.join(on)}; use fewer key columns")
        codes = codes * len(distinct) + _number(column, distinct, name)[0]
        keys.append((name, distinct))
    order = np.argsort(codes)
    values = table.select(list(chosen)).combine_chunks()
    arrays = [pa.concat_arrays(c.chunks) if c.num_chunks else pa.array([], c.type) for c in values.columns]
    return _Table(path, tuple(keys), codes[order], order, pa.record_batch(arrays, schema=values.schema))


def _read(path: str) -> pa.Table:
    name = path.lower()
    try:
        if name.endswith(_CSV):
            return pa.csv.read_csv(path)
        if name.endswith(_PARQUET):
            return pa.parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"lookup: cannot read {path}: {error}") from None
    raise ValueError(f"lookup: expected a file that ends in {', '.join(_CSV + _PARQUET)}; got {path}")
