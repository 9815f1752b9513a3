"""RecordBatches as JSON, an object a row, put together by Arrow's kernels: Python looks at columns, not at rows.

Numbers are written with the fewest digits that give the same bits again, times in ISO 8601 in UTC. JSON has no NaN and no
infinity: they are written as null.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

# What JSON wants escaped within a string; the backslash first, as the others bring their own.
_ESCAPES = [("\\", "\\\\"), ('"', '\\"'), *((chr(code), f"\\u{code:04x}") for code in range(0x20))]
_NEEDS_ESCAPE = r'[\x00-\x1f"\\]'


def json_objects(batch: pa.RecordBatch) -> pa.Array:
    """The rows as JSON objects.

    Args:
        batch: columns of numbers, booleans, words, times, dates, or fixed-size lists of those.

    Returns:
        UTF-8 strings, `[rows]`.

    Raises:
        ValueError: a column is of another type.
    """
    if not batch.num_columns:
        return pa.array(["{}"] * batch.num_rows, pa.string())
    parts: list[Any] = []
    for place, name in enumerate(batch.schema.names):
        parts += [("{" if place == 0 else ", ") + json.dumps(name) + ": ", _values(name, batch.column(place))]
    return pc.binary_join_element_wise(*parts, "}", "")


def _values(name: str, column: pa.Array) -> pa.Array:
    """Every value of a column as JSON."""
    kind = column.type
    if kinds.is_dictionary(kind):
        return _values(name, column.cast(kind.value_type))
    if kinds.is_string(kind) or kinds.is_large_string(kind):
        text = _quoted(column.cast(pa.string()))
    elif kinds.is_boolean(kind) or kinds.is_integer(kind) or kinds.is_decimal(kind):
        text = column.cast(pa.string())
    elif kinds.is_floating(kind):
        column = column.cast(pa.float32()) if kinds.is_float16(kind) else column
        text = pc.if_else(pc.is_finite(column), column.cast(pa.string()), None)
        text = pc.if_else(pc.equal(text, "-0"), "-0.0", text)  # as a whole number it would lose its sign
    elif kinds.is_timestamp(kind):
        text = _quoted(pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ"))
    elif kinds.is_date(kind):
        text = _quoted(column.cast(pa.string()))
    elif kinds.is_fixed_size_list(kind):
        flat = column.values.slice(column.offset * kind.list_size, len(column) * kind.list_size)
        lists = pa.FixedSizeListArray.from_arrays(_values(name, flat), kind.list_size).cast(pa.list_(pa.string()))
        text = pc.if_else(column.is_valid(), pc.binary_join_element_wise("[", pc.binary_join(lists, ", "), "]", ""), None)
    elif kinds.is_null(kind):
        text = pa.nulls(len(column), pa.string())
    else:
        raise ValueError(f"column {name!r} is {kind}, which has no form in JSON; cast it in a `map` step, or leave it out")
    return pc.fill_null(text, "null")


def _quoted(text: pa.Array) -> pa.Array:
    if pc.any(pc.match_substring_regex(text, _NEEDS_ESCAPE)).as_py():
        for found, escaped in _ESCAPES:
            text = pc.replace_substring(text, found, escaped)
    return pc.binary_join_element_wise('"', text, '"', "")
