"""What a run left, in a form that two runs can be compared in, to the last bit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OUTPUTS = ("predictions", "evaluations", "dead_letters")


def canonical(folder: Path, name: str, leave_out: Sequence[str] = ()) -> pa.Table:
    """The rows of an output, sorted by all columns; words as they are, not as dictionaries.

    Args:
        folder: output folder of a job.
        name: of the output.
        leave_out: columns that cannot be the same, such as the file a record came from.
    """
    files = sorted((folder / name).glob("part-*.parquet"))
    if not files:
        return pa.table({})
    table = pa.concat_tables([plain(pq.read_table(file)) for file in files], promote_options="permissive")
    return sort(table.drop_columns([column for column in leave_out if column in table.column_names]))


def plain(table: pa.Table) -> pa.Table:
    """Without dictionaries."""
    columns = [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in table.columns]
    return pa.table(dict(zip(table.column_names, columns, strict=True)))


def sort(table: pa.Table) -> pa.Table:
    """Sorted by all columns."""
    return table.sort_by([(name, "ascending") for name in table.column_names]).combine_chunks()


def digest(table: pa.Table) -> str:
    """SHA-256 of the rows in Arrow's IPC format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        for batch in table.replace_schema_metadata(None).combine_chunks().to_batches():
            writer.write_batch(batch)
    return hashlib.sha256(sink.getvalue().to_pybytes()).hexdigest()


def difference(expected: pa.Table, got: pa.Table) -> str | None:
    """What differs, in one sentence; None if they are the same bytes."""
    if digest(expected) == digest(got):
        return None
    if expected.schema.remove_metadata() != got.schema.remove_metadata():
        return f"columns {got.schema.names}, expected {expected.schema.names}"
    if len(expected) != len(got):
        return f"{len(got):,} rows, expected {len(expected):,}"
    for row in range(len(expected)):
        if expected.slice(row, 1) != got.slice(row, 1):
            return f"row {row}: {got.slice(row, 1).to_pylist()[0]}, expected {expected.slice(row, 1).to_pylist()[0]}"
    return "the same values in other bytes"
