"""That all contenders did the same work: the same scores for the same records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TOLERANCE = 1e-5  # single precision through three layers, in kernels that differ with the batch


class Differs(Exception):
    """Two outputs that ought to agree do not; says where."""


def predictions(output: Path) -> pa.Table:
    """All that a contender wrote; of Midstream's output folder the predictions."""
    folder = output / "predictions" if (output / "predictions").is_dir() else output
    files = sorted(folder.glob("part*.parquet"))
    return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).unify_dictionaries()


def same_rows(ours: Path, bare: Path, records: int) -> None:
    """Compares every record's row, column by column.

    Raises:
        Differs: other columns, other rows, other values.
    """
    tables = []
    for folder in (ours, bare):
        table = predictions(folder).sort_by("sequence")
        if table.num_rows != records:
            raise Differs(f"{folder}: expected {records:,} predictions, came {table.num_rows:,}")
        tables.append(table)
    mine, theirs = tables
    if mine.schema.remove_metadata() != theirs.schema.remove_metadata():
        raise Differs(f"other columns: {mine.schema.to_string()}\nand\n{theirs.schema.to_string()}")
    for name in mine.column_names:
        left, right = mine.column(name), theirs.column(name)
        if name == "score":
            _close(left.to_numpy(), right.to_numpy(), f"{ours} and {bare}")
        elif name == "prediction":  # beside a score of a half, rounding decides
            sure = np.abs(mine.column("score").to_numpy() - 0.5) > TOLERANCE
            if not np.array_equal(left.to_numpy()[sure], right.to_numpy()[sure]):
                raise Differs(f"{ours} and {bare}: other values of {name}")
        elif _plain(left) != _plain(right):
            raise Differs(f"{ours} and {bare}: other values of {name}")


def same_scores(ours: Path, rival: Path, records: int) -> None:
    """Compares the scores of the first records with those of a rival, which keeps neither row numbers nor order.

    Raises:
        Differs: other scores.
    """
    mine = predictions(ours).sort_by("sequence").slice(0, records).column("score").to_numpy()
    theirs = predictions(rival).column("score").to_numpy()
    if len(theirs) != records:
        raise Differs(f"{rival}: expected {records:,} predictions, came {len(theirs):,}")
    _close(np.sort(mine), np.sort(theirs), f"{ours} and {rival}")


def same_storage(ours: Path, bare: Path) -> None:
    """Compares how the files are written: compression of every column.

    Raises:
        Differs: other compression.
    """
    found = []
    for folder in (ours / "predictions", bare):
        group = pq.ParquetFile(min(folder.glob("part*.parquet"))).metadata.row_group(0)
        found.append(
            {group.column(place).path_in_schema: group.column(place).compression for place in range(group.num_columns)}
        )
    if found[0] != found[1]:
        raise Differs(f"other compression: {found[0]} and {found[1]}")


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    column = column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
    return pa.chunked_array([column.combine_chunks()])


def _close(left: np.ndarray, right: np.ndarray, where: str) -> None:
    worst = float(np.max(np.abs(left - right), initial=0.0))
    if not worst <= TOLERANCE:
        raise Differs(f"{where}: scores differ by up to {worst:g}, expected at most {TOLERANCE:g}")
