"""Which rows make up the next window to learn from: those of a stretch of time, or so many of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from transforms.batches import SEQUENCE

FIRST_ROWS = 8  # of the first window by rows: so that there is a model soon
GROWTH = 1.6  # of a window over the one before, until it has all its rows


class Window(NamedTuple):
    """Rows to learn at once, in order.

    Attributes:
        rows: at least one.
        start_us, end_us: the window is [start_us, end_us) in the time that it goes by.
        key: names the window in its stream.
    """

    rows: pa.Table
    start_us: int
    end_us: int
    key: str


def windows_of_time(pending: pa.Table, time: str, every_us: int, watermark_us: int) -> tuple[list[Window], pa.Table]:
    """The windows of `every_us`, aligned to the epoch, that end at or below the watermark, and the rows that go on waiting."""
    ends = (pending.column(time).cast(pa.int64()).to_numpy() // every_us + 1) * every_us
    closed = _in_order(pending.filter(pa.array(ends <= watermark_us)), time)
    closed_ends, starts = np.unique(np.sort(ends[ends <= watermark_us]), return_index=True)
    stops = np.append(starts, closed.num_rows)[1:]
    windows = [
        Window(closed.slice(int(start), int(stop - start)), end - every_us, end, str(end))
        for end, start, stop in zip(closed_ends.tolist(), starts, stops, strict=True)
    ]
    return windows, pending.filter(pa.array(ends > watermark_us))


def windows_of_rows(
    pending: pa.Table, time: str, every_rows: int, came: int, watermark_us: int
) -> tuple[list[Window], pa.Table]:
    """The windows of `every_rows` rows, the first ones shorter, that are full by the watermark, and the rows that wait.

    A window ends just behind its last row. Rows at the watermark count: one that still comes at the same time has a higher
    sequence.

    Args:
        pending: rows that are in no window yet.
        time: the column to go by.
        every_rows: rows of a window.
        came: rows of all windows before.
        watermark_us: nothing earlier comes any more.
    """
    pending = _in_order(pending, time)
    times = pending.column(time).cast(pa.int64()).to_numpy()
    there = int(np.searchsorted(times, watermark_us, side="right"))
    windows, start = [], 0
    while start + (size := rows_of_window(came, every_rows)) <= there:
        rows = pending.slice(start, size)
        start, came = start + size, came + size
        windows.append(Window(rows, int(times[start - size]), int(times[start - 1]) + 1, f"rows-{came}"))
    return windows, pending.slice(start)


def rows_of_window(came: int, every_rows: int) -> int:
    """How many rows the window has that begins after `came` rows, which is where a window begins."""
    size, total = FIRST_ROWS, 0
    while size < every_rows and total < came:
        total += size
        size = int(size * GROWTH)
    return min(size, every_rows)


def full_at_us(pending: pa.Table, time: str, every_rows: int, came: int) -> int | None:
    """The watermark at which the next window of rows is full; None if rows are missing."""
    size = rows_of_window(came, every_rows)
    if pending.num_rows < size:
        return None
    return int(np.partition(pending.column(time).cast(pa.int64()).to_numpy(), size - 1)[size - 1])


def _in_order(rows: pa.Table, time: str) -> pa.Table:
    return rows.sort_by([(time, "ascending"), (SEQUENCE, "ascending")])
