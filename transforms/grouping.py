"""Which rows have equal keys: keys of any columns as one integer a row, without looking at rows one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int64s = npt.NDArray[np.int64]


def column_codes(column: pa.ChunkedArray | pa.Array) -> tuple[Int64s, int]:
    """Numbers the distinct values of a column; null is a value like any other, as are NaN and 0.0 (which -0.0 equals).

    Returns:
        A code for each row, int64 `[rows]`, and the number of codes.
    """
    if pa.types.is_dictionary(column.type):
        # Two entries of a dictionary may be the same word, so the words are encoded, not the entries.
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.add(column.cast(pa.float64()), 0.0)  # -0.0 + 0.0 is 0.0
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    encoded = column.dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), len(encoded.dictionary)


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all tables in one chunk a column, with one dictionary where the pieces had each its own."""
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def group_codes(table: pa.Table | pa.RecordBatch, columns: Sequence[str]) -> Int64s:
    """One code a row; two rows have the same if and only if they are equal in these columns (null equals null).

    Args:
        table: any rows.
        columns: its columns to compare; none puts all rows into one group.

    Returns:
        int64 `[rows]`, 0 or more. Which code a group has says nothing: it depends on the rows there are.
    """
    codes = np.zeros(table.num_rows, dtype=np.int64)
    for place, name in enumerate(columns):
        own, distinct = column_codes(table.column(name))
        # Numbered anew after each column: the products cannot overflow.
        codes = np.unique(codes * max(distinct, 1) + own, return_inverse=True)[1].astype(np.int64) if place else own
    return codes


def class_codes(labels: pa.ChunkedArray | pa.Array, classes: Sequence[str]) -> pa.ChunkedArray | pa.Array:
    """The place of each label among the classes, -1 for one that is none; without classes labels are integers already."""
    return pc.index_in(labels.cast(pa.string()), pa.array(classes)).fill_null(-1) if classes else labels


def places_of(wanted: Int64s, numbers: Int64s) -> tuple[Int64s, npt.NDArray[np.bool_]]:
    """Where each wanted number is among others, at least one and all different: its place, and whether it is there."""
    order = np.argsort(numbers, kind="stable")
    place = order[np.minimum(np.searchsorted(numbers, wanted, sorter=order), len(order) - 1)]
    return place, numbers[place] == wanted


def first_of_group(*sorted_columns: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Marks the rows that differ from the row before in any of these columns of equal length; the first row always does."""
    rows = len(sorted_columns[0])
    first = np.zeros(rows, dtype=bool)
    first[:1] = True
    for column in sorted_columns:
        first[1:] |= column[1:] != column[:-1]
    return first


def missing_columns(names: Sequence[str], schema: pa.Schema) -> list[str]:
    """The names, in order, that the schema does not have."""
    return [name for name in dict.fromkeys(names) if name not in schema.names]


def require_columns(what: str, names: Sequence[str], schema: pa.Schema) -> None:
    """Raises a ValueError that says what is missing for `what`, and which columns there are."""
    if missing := missing_columns(names, schema):
        raise ValueError(f"{what}: no column {', '.join(missing)}; the columns are {', '.join(schema.names)}")
