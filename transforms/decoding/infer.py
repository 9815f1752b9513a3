"""A schema proposed from the first rows of a file, so that a user need not write one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from transforms.batches import RESERVED
from transforms.decoding.records import UnreadableFileError, format_of, open_file, whole_lines
from transforms.decoding.separators import as_commas
from transforms.schema import Schema

_ROWS = 1000


def infer_schema(path: str, format: str = "auto") -> Schema:
    """Proposes a schema from up to 1,000 rows at the beginning of a file.

    A column with missing values among these rows is declared with `?`. Columns of types that a schema does not know, and those
    with reserved names, are left out.

    Args:
        path: a file.
        format: as in `transforms.decoding.decode`.

    Raises:
        ValueError: the file has no rows, none that can be read, or no column that can be declared.
    """
    readers = {"csv": _csv_head, "jsonl": _jsonl_head, "parquet": _parquet_head, "tfrecord": _tfrecord_head}
    try:
        head = readers[format_of(path, format)](path)
    except (pa.ArrowException, UnreadableFileError) as error:
        raise ValueError(f"cannot infer a schema from {path!r}: {error}") from error
    declared = {}
    for name, values in zip(head.column_names, head.columns, strict=True) if head is not None and head.num_rows else ():
        kind = _type_text(values.combine_chunks())
        if name and name not in RESERVED and kind:
            declared[name] = kind
    if not declared:
        raise ValueError(f"cannot infer a schema from {path!r}: expected at least one row with a column of a known type")
    return Schema.parse(declared)


def _first_lines(blocks: Iterator[bytes]) -> bytes:
    block = next(blocks, b"")
    return b"".join(itertools.islice((line + b"\n" for line in block.split(b"\n")), _ROWS + 1))


def _csv_head(path: str) -> pa.Table | None:
    lines = _first_lines(as_commas(whole_lines(path)))
    if not lines.strip():
        return None
    header = lines.lstrip().split(b"\n", 1)[0]
    if b"|" in header and b"," not in header:
        raise ValueError(
            f"cannot infer a schema from {path!r}: expected fields separated by commas, semicolons or tabs, its header has '|'"
        )
    skip = pacsv.ParseOptions(invalid_row_handler=lambda _: "skip")
    table = pacsv.read_csv(pa.BufferReader(lines), parse_options=skip)
    return table.rename_columns([name.strip() for name in table.column_names])


def _jsonl_head(path: str) -> pa.Table | None:
    lines = [line for line in _first_lines(whole_lines(path)).split(b"\n") if line.startswith(b"{")]
    return pajson.read_json(pa.BufferReader(b"\n".join(lines) + b"\n")) if lines else None


def _parquet_head(path: str) -> pa.Table | None:
    with closing(open_file(path)) as file:
        parquet = pq.ParquetFile(pa.PythonFile(file, mode="r"))
        batch = next(parquet.iter_batches(_ROWS), None)
        return None if batch is None else pa.Table.from_batches([batch])


def _tfrecord_head(path: str) -> pa.Table | None:
    from tfx_bsl.coders import example_coder

    from transforms.decoding.tfrecord import records

    examples = [record for _, record in itertools.islice(records(path), _ROWS) if record is not None]
    if not examples:
        return None
    try:
        return pa.Table.from_batches([example_coder.ExamplesToRecordBatchDecoder().DecodeBatch(examples)])
    except RuntimeError as error:
        raise ValueError(f"cannot infer a schema from {path!r}: {error}") from error


def _type_text(values: pa.Array) -> str | None:
    """The declared type that holds such values; None if there is none."""
    kind, size = values.type, 0
    missing = values.null_count > 0
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.unique(pc.list_value_length(values).drop_null()).to_pylist()
        filled = [length for length in lengths if length]
        if len(filled) != 1:
            return None
        missing |= len(lengths) > 1
        size = filled[0]
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    base = _base(kind)
    if size > 1 and base not in ("int32", "int64", "float32", "float64"):
        return None
    return base and base + (f"[{size}]" if size > 1 else "") + ("?" if missing or pa.types.is_null(kind) else "")


def _base(kind: pa.DataType) -> str | None:
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int32" if kind.bit_width < 32 or kind == pa.int32() else "int64"
    if pa.types.is_floating(kind):
        return "float64" if kind == pa.float64() else "float32"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "timestamp"
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_null)
    return "string" if any(is_text(kind) for is_text in text) else None
