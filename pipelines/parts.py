"""Reads a job's output back: whole columns of a folder of Parquet files, without ever holding more than those."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

Int64s: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]


class Parts:
    """The Parquet files of one output folder; a missing folder has none, and files under other names are not looked at."""

    def __init__(self, output: str, folder: str) -> None:
        """Finds the files.

        Args:
            output: a job's output folder, a local path or a URI that Arrow knows.
            folder: the folder in it, as `predictions`.
        """
        if "://" in str(output):
            self._files, root = pyarrow.fs.FileSystem.from_uri(str(output))
        else:
            self._files, root = pyarrow.fs.LocalFileSystem(), str(output)
        selector = pyarrow.fs.FileSelector(f"{root}/{folder}", allow_not_found=True)
        found = [entry.path for entry in self._files.get_file_info(selector)]
        named = [path for path in found if path.rsplit("/", 1)[-1].startswith("part-") and path.endswith(".parquet")]
        self._where = f"{output}/{folder}"
        self._paths = sorted(named)
        self.rows = 0
        self.types: dict[str, pa.DataType] = {}
        for path in self._paths:
            with self._files.open_input_file(path) as file:
                part = pq.ParquetFile(file)
                self.rows += part.metadata.num_rows
                for field in part.schema_arrow:
                    # A part whose values are all missing may have no better type than null.
                    if field.name not in self.types or pa.types.is_null(self.types[field.name]):
                        self.types[field.name] = field.type

    def require(self, *names: str) -> None:
        """Raises ValueError if there are rows and no part has such a column."""
        missing = [name for name in names if name not in self.types]
        if missing and self.rows:
            raise ValueError(f"{self._where}: expected the columns {', '.join(missing)}, found {', '.join(self.types)}")

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows in the order of the files, with these columns; nulls where a part does not have one."""
        schema = pa.schema([(name, self.types[name]) for name in names])
        for path in self._paths:
            with self._files.open_input_file(path) as file:
                part = pq.ParquetFile(file)
                present = set(part.schema_arrow.names)
                for batch in part.iter_batches(batch_size=131_072, columns=[name for name in names if name in present]):
                    columns = [
                        batch.column(field.name).cast(field.type)
                        if field.name in present
                        else pa.nulls(batch.num_rows, field.type)
                        for field in schema
                    ]
                    yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def int64s(self, *names: str, null: int = 0) -> list[Int64s]:
        """Whole columns as int64, times as microseconds since the epoch; one array a name, filled in place to spare memory."""
        self.require(*names)
        arrays = [np.empty(self.rows, np.int64) for _ in names]
        start = 0
        for batch in self.batches(names) if self.rows else ():
            for array, column in zip(arrays, batch.columns, strict=True):
                array[start : start + batch.num_rows] = column.cast(pa.int64()).fill_null(null).to_numpy()
            start += batch.num_rows
        return arrays


def in_order(times_us: Int64s, sequence: Int64s) -> Int64s:
    """The places of the rows in order of (time, sequence)."""
    later = times_us[1:] > times_us[:-1]
    if np.all(later | ((times_us[1:] == times_us[:-1]) & (sequence[1:] >= sequence[:-1]))):
        return np.arange(len(times_us))  # the usual case, without the memory that sorting takes
    return np.lexsort((sequence, times_us))
