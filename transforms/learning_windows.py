"""Which rows make up the next window to learn from: those of a stretch of time, or so many of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.batches import SEQUENCE
from transforms.error_alarm import ErrorAlarm, Jump

FIRST_ROWS = 8  # of the first window by rows: so that there is a model soon
AFTER_ALARM = 20  # rows that the windows begin to grow at behind an alarm: the next ones have 19, 30, 48 ...
GROWTH = 1.6  # of a window over the one before, until it has all its rows
CALM = 20  # with an alarm a window has up to twice its rows, where those are less than one in so many since the last alarm


class Grown(NamedTuple):
    """How far the windows by rows have come.

    Attributes:
        came: rows of all windows.
        since: the same since the first row or since the last alarm, when it begins at `AFTER_ALARM`.
        heard: the alarm's state.
    """

    came: int = 0
    since: int = 0
    heard: npt.NDArray[np.float64] | None = None


class Window(NamedTuple):
    """Rows to learn at once, in order.

    Attributes:
        rows: at least one.
        start_us, end_us: the window is [start_us, end_us) in the time that it goes by.
        key: names the window in its stream.
        jump: why it ended early; None for a window that is full.
    """

    rows: pa.Table
    start_us: int
    end_us: int
    key: str
    jump: Jump | None = None


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
    pending: pa.Table, time: str, every_rows: int, grown: Grown, watermark_us: int, alarm: ErrorAlarm | None = None
) -> tuple[list[Window], pa.Table, Grown]:
    """The windows of `every_rows` rows, the first ones shorter, that are full by the watermark, and the rows that wait.

    A window ends just behind its last row. Rows at the watermark count: one that still comes at the same time has a higher
    sequence. Where the alarm sounds a window ends, full or not, and the next ones are short again.

    Args:
        pending: rows that are in no window yet.
        time: the column to go by.
        every_rows: rows of a window.
        grown: behind the last window.
        watermark_us: nothing earlier comes any more.
        alarm: looks through the rows; None for no alarm.
    """
    pending = _in_order(pending, time)
    times = pending.column(time).cast(pa.int64()).to_numpy()
    there = int(np.searchsorted(times, watermark_us, side="right"))
    windows, start = [], 0
    while start < there:
        wanted = rows_of_window(grown.since, every_rows, alarm is not None)
        size = min(wanted, there - start)
        rows, jump, heard = pending.slice(start, size), None, grown.heard
        if alarm is not None:
            jump, heard = alarm.first(rows, alarm.begin() if heard is None else heard)
        if jump is not None:
            size = jump.place + 1
        elif size < wanted:
            break
        grown = Grown(grown.came + size, AFTER_ALARM if jump is not None else grown.since + size, heard)
        start += size
        edges = int(times[start - size]), int(times[start - 1]) + 1
        windows.append(Window(rows.slice(0, size), *edges, f"rows-{grown.came}", jump))
    return windows, pending.slice(start), grown


def rows_of_window(came: int, every_rows: int, watched: bool = False) -> int:
    """How many rows the window has that begins after `came` rows, which is where a window begins.

    Args:
        came: rows since the first one or since the last alarm.
        every_rows: rows of a window.
        watched: by an alarm. Where it is silent for long, more of the same changes little, and windows become longer.
    """
    size, total = FIRST_ROWS, 0
    while size < every_rows and total < came:
        total += size
        size = int(size * GROWTH)
    if size < every_rows or not watched:
        return min(size, every_rows)
    return min(max(every_rows, came // CALM), 2 * every_rows)


def full_at_us(pending: pa.Table, time: str, every_rows: int, since: int, watched: bool = False) -> int | None:
    """The watermark at which the next window of rows is full, if no alarm sounds before; None if rows are missing."""
    size = rows_of_window(since, every_rows, watched)
    if pending.num_rows < size:
        return None
    return int(np.partition(pending.column(time).cast(pa.int64()).to_numpy(), size - 1)[size - 1])


def _in_order(rows: pa.Table, time: str) -> pa.Table:
    return rows.sort_by([(time, "ascending"), (SEQUENCE, "ascending")])
