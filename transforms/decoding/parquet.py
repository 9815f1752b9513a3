"""Parquet: the declared columns alone are read, row group by row group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.decoding.records import MISSING_COLUMN, Letter, Piece, UnreadableFileError, open_file
from transforms.schema import Column

_ROWS = 1 << 16


def read_parquet(path: str, wanted: Sequence[Column], start_row: int) -> Iterator[Piece]:
    """Reads the wanted columns of a Parquet file; row groups that end before `start_row` are not touched.

    Raises:
        UnreadableFileError: not a Parquet file, or broken from some row group on.
    """
    with closing(open_file(path)) as file:
        if not file.read(1):  # as with the other formats, an empty file has no records
            return
        file.seek(0)
        row = 0
        try:
            parquet = pq.ParquetFile(pa.PythonFile(file, mode="r"))
            present = set(parquet.schema_arrow.names)
            missing = [column.name for column in wanted if column.name not in present]
            names = [column.name for column in wanted if column.name in present]
            fault = f"expected a column {', '.join(map(repr, missing))}; the file has {', '.join(parquet.schema_arrow.names)}"
            for group in range(parquet.num_row_groups):
                rows_in_group = parquet.metadata.row_group(group).num_rows
                if row + rows_in_group <= start_row:
                    row += rows_in_group
                    continue
                for batch in parquet.iter_batches(_ROWS, row_groups=[group], columns=names):
                    rows = np.arange(row, row + batch.num_rows)
                    row += batch.num_rows
                    if missing:
                        texts = [_json(line) for line in batch.to_pylist()]
                        letters = [Letter(int(at), MISSING_COLUMN, fault, text) for at, text in zip(rows, texts, strict=True)]
                        yield Piece([], rows[:0], letters, str, row)
                    else:
                        columns = [batch.column(name) for name in names]
                        yield Piece(columns, rows, (), partial(_record, batch), row)
        except (pa.ArrowException, OSError) as error:
            raise UnreadableFileError(f"not a readable Parquet file: {error}") from error


def _record(batch: pa.RecordBatch, place: int) -> str:
    return _json(batch.slice(place, 1).to_pylist()[0])


def _json(record: dict) -> str:
    return json.dumps(record, default=str, ensure_ascii=False)
