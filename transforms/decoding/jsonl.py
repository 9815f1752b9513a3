"""JSON Lines: an object a line. A key that is absent counts as null; keys that are not declared are ignored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pajson

from transforms.decoding.records import UNPARSABLE, Letter, Piece, as_text, lines_of, whole_lines
from transforms.schema import NUMBERS, Column

_PARALLEL_BYTES = 1 << 20
# Arrow's reader takes several values on a line, and crashes on some lines that are a bare `null`: never show it any.
_VALUE_AFTER_OBJECT = re.compile(rb"\}\s*n")
_INT_BOUNDS = {"int32": 2**31, "int64": 2**63}


class _Integer(str):
    """The text of a JSON number without fraction or exponent."""


class _Real(str):
    """The text of any other JSON number."""


def read_jsonl(path: str, wanted: Sequence[Column], start_row: int) -> Iterator[Piece]:
    """Reads the wanted columns of a JSON Lines file; blocks of lines that end before `start_row` are only counted.

    Raises:
        UnreadableFileError: after the records that could be read.
    """
    row = 0
    for data in whole_lines(path):
        if row < start_row:
            count = data.count(b"\n") if _is_plain(data) else len(_filled_lines(data))
            if row + count <= start_row:
                row += count
                continue
        piece = read_block(data, wanted, row)
        yield piece
        row = piece.end_row


def read_block(data: bytes, wanted: Sequence[Column], row: int) -> Piece:
    """Reads whole lines, the first record of which has this number; lines of white space are not records."""
    schema = pa.schema([pa.field(column.name, _arrow_type(column)) for column in wanted])
    if _is_plain(data):
        count = data.count(b"\n")
        columns = _parse(data, schema, count)
        if columns is not None:
            return Piece(columns, np.arange(row, row + count), (), lines_of(data), row + count)
    return _read_with_faults(_filled_lines(data), wanted, schema, row)


def _is_plain(data: bytes) -> bool:
    """Whether each line begins with an object, and all is UTF-8, which Arrow's reader does not check."""
    if not data.startswith(b"{") or data.count(b"\n{") != data.count(b"\n") - 1 or _VALUE_AFTER_OBJECT.search(data):
        return False
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


def _filled_lines(data: bytes) -> list[bytes]:
    return [line for line in data.split(b"\n") if line.strip()]


def _parse(data: bytes, schema: pa.Schema, count: int) -> list[pa.Array] | None:
    """The columns if there are `count` objects, all with the declared types; None otherwise."""
    for block_bytes in (_PARALLEL_BYTES, len(data) + 1):  # an object longer than a block fails the first
        try:
            table = pajson.read_json(
                pa.BufferReader(data),
                read_options=pajson.ReadOptions(block_size=block_bytes, use_threads=len(data) > _PARALLEL_BYTES),
                parse_options=pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
        except pa.ArrowInvalid:
            continue
        return [_one_chunk(table[place]) for place in range(len(schema))] if table.num_rows == count else None
    return None


def _one_chunk(values: pa.ChunkedArray) -> pa.Array:
    return values.chunk(0) if values.num_chunks == 1 else pa.concat_arrays(values.chunks)


def _read_with_faults(lines: list[bytes], wanted: Sequence[Column], schema: pa.Schema, row: int) -> Piece:
    letters, good, rows = [], [], []
    for place, line in enumerate(lines):
        complaint = _complaint(line, wanted)
        if complaint is None:
            good.append(line)
            rows.append(row + place)
        else:
            letters.append(Letter(row + place, UNPARSABLE, complaint, as_text(line)))
    columns, misfits = _parse_lines(good, schema) if good else ([], [])
    for misfit in misfits:
        letters.append(Letter(rows[misfit], UNPARSABLE, "expected one JSON object", as_text(good[misfit])))
    kept = np.delete(np.arange(len(good)), misfits)
    return Piece(
        columns, np.array(rows, np.int64)[kept], letters, lambda position: as_text(good[kept[position]]), row + len(lines)
    )


def _parse_lines(lines: list[bytes], schema: pa.Schema) -> tuple[list[pa.Array], list[int]]:
    """The columns of the lines that Arrow takes, and the positions of those that it does not, found by halving."""
    columns = _parse(b"\n".join(lines) + b"\n", schema, len(lines))
    if columns is not None:
        return columns, []
    if len(lines) == 1:
        return [pa.array([], field.type) for field in schema], [0]
    middle = len(lines) // 2
    left, left_misfits = _parse_lines(lines[:middle], schema)
    right, right_misfits = _parse_lines(lines[middle:], schema)
    columns = [pa.concat_arrays(pair) for pair in zip(left, right, strict=True)]
    return columns, left_misfits + [middle + place for place in right_misfits]


def _complaint(line: bytes, wanted: Sequence[Column]) -> str | None:
    """Why Arrow would refuse (or not survive) a line; None where it is to decide itself."""
    try:
        value = json.loads(line.decode(), parse_int=_Integer, parse_float=_Real, parse_constant=_Real)
    except UnicodeDecodeError as error:
        return f"expected UTF-8: {error.reason} at byte {error.start} of the line"
    except (ValueError, RecursionError) as error:
        safe = line.lstrip().startswith(b"{") and not _VALUE_AFTER_OBJECT.search(line)
        return None if safe else f"expected one JSON object: {error}"
    if not isinstance(value, dict):
        return f"expected one JSON object, got {_name(value)}"
    for column in wanted:
        got = value.get(column.name)
        if got is not None and not _fits(got, column):
            return f"column {column.name!r}: expected {column.type_text.removesuffix('?')}, got {_name(got)} {str(got)[:80]!r}"
    return None


def _name(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", type(None): "null", str: "a string"}
    return names.get(type(value), "a number")


def _fits(value: Any, column: Column) -> bool:
    if column.size:
        return isinstance(value, list) and all(item is None or _fits_scalar(item, column.base) for item in value)
    return _fits_scalar(value, column.base)


def _fits_scalar(value: Any, base: str) -> bool:
    if base == "bool":
        return isinstance(value, bool)
    if base in _INT_BOUNDS:
        return type(value) is _Integer and len(value) < 25 and -_INT_BOUNDS[base] <= int(value) < _INT_BOUNDS[base]
    if base in NUMBERS:
        return type(value) in (_Integer, _Real)
    return type(value) is str


def _arrow_type(column: Column) -> pa.DataType:
    """What Arrow's JSON reader shall give."""
    kind = pa.string() if column.base == "timestamp" else column.value_type
    return pa.list_(kind) if column.size else kind
