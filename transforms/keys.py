"""Where a record's key stands among all keys: a stable hash, the same on every machine and in every run.

Whole numbers, and numbers by their bits, go through the finaliser of splitmix64 (G. Steele, D. Lea, C. Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014). Texts become a number first: a polynomial over their bytes, modulo 2^64. No
secret:
who chooses keys can choose their share.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.timeline import SHARES

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, as in splitmix64
_BASE = np.uint64(0x100000001B3)  # FNV's prime


def places(batch: pa.RecordBatch, columns: Sequence[str], salt: str) -> np.ndarray:
    """Where every record's key stands.

    Args:
        batch: the records.
        columns: that make up the key.
        salt: another one gives other places.

    Returns:
        int64, shape (rows,), from 0 to `SHARES` - 1, evenly spread.
    """
    mixed = np.full(batch.num_rows, zlib.crc32(salt.encode()), dtype=np.uint64)
    for name in columns:
        mixed = _mix(mixed * _ODD + _numbers(batch.column(name)))
    return (mixed % np.uint64(SHARES)).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _numbers(column: pa.Array) -> np.ndarray:
    """A number for every value, uint64; the same for the same value, whatever the batch. A null is 0."""
    if pa.types.is_dictionary(column.type):
        values = np.append(_numbers(column.dictionary), np.uint64(0))
        return values[column.indices.fill_null(len(column.dictionary)).to_numpy()]
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_binary(column.type):
        return _texts(column.cast(pa.large_binary()))
    if pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
        return (values + 0.0).view(np.uint64)  # -0.0 is 0.0
    return pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False).view(np.uint64)


def _texts(column: pa.Array) -> np.ndarray:
    column = column.fill_null(b"")
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    content = (
        np.frombuffer(data, np.uint8)[ends[0] : ends[-1]].astype(np.uint64) if data is not None else np.zeros(0, np.uint64)
    )
    starts, lengths = ends[:-1] - ends[0], np.diff(ends)
    inside = np.arange(len(content)) - np.repeat(starts, lengths)
    powers = np.multiply.accumulate(np.full(int(lengths.max(initial=0)) + 1, _BASE, np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((content + np.uint64(1)) * powers[inside], dtype=np.uint64)])
    return sums[starts + lengths] - sums[starts] + lengths.astype(np.uint64)
