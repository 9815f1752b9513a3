"""Windows of event time, assigned to all rows of a batch at once.

A window is [start, end) in microseconds since the epoch; times before 1970 are negative and work alike. The rules are Beam's
(FixedWindows, SlidingWindows, Sessions), so that these windows and those of a Beam graph around them are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from transforms.batches import EVENT_TIME, event_time_us
from transforms.durations import format_duration, parse_duration
from transforms.grouping import Int64s, first_of_group

Assignment: TypeAlias = tuple[Int64s, Int64s, Int64s]


class Windows(Protocol):
    """How event times fall into windows."""

    @property
    def windows_per_row(self) -> int:
        """The largest number of windows that a row can be in."""

    def assign(self, batch: pa.RecordBatch | pa.Table) -> Assignment:
        """Finds the windows of each row.

        Returns:
            Three int64 arrays of equal length, one entry for each row and each of its windows, in order of row and then of
            start: the row's number in the batch, the window's start and its end.

        Raises:
            ValueError: an event time is null.
        """


def times_of(batch: pa.RecordBatch | pa.Table) -> Int64s:
    """The event times in microseconds, int64 `[rows]`; ValueError if one is null."""
    times = event_time_us(batch)
    if times.null_count:
        raise ValueError(f"{times.null_count} of {len(times)} rows have no {EVENT_TIME}; every record needs one")
    return times.to_numpy().astype(np.int64, copy=False)


@dataclass(frozen=True)
class FixedWindows:
    """Windows side by side, one of which starts at `offset_us`: an hour, a day, a week."""

    size_us: int
    offset_us: int = 0
    windows_per_row: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_positive("size", self.size_us)

    def assign(self, batch: pa.RecordBatch | pa.Table) -> Assignment:
        times = times_of(batch)
        starts = times - np.mod(times - self.offset_us, self.size_us)
        return np.arange(len(times)), starts, starts + self.size_us


@dataclass(frozen=True)
class SlidingWindows:
    """Windows of one size that start every `every_us`, at multiples of it since the epoch; a row is in several."""

    size_us: int
    every_us: int

    def __post_init__(self) -> None:
        _require_positive("size", self.size_us)
        _require_positive("every", self.every_us)
        if self.every_us > self.size_us:
            raise ValueError(
                f"sliding windows of {format_duration(self.size_us)} every {format_duration(self.every_us)} leave rows out: "
                "every must not exceed size"
            )

    @property
    def windows_per_row(self) -> int:
        return -(-self.size_us // self.every_us)

    def assign(self, batch: pa.RecordBatch | pa.Table) -> Assignment:
        times = times_of(batch)
        newest = times - np.mod(times, self.every_us)
        back = np.arange(self.windows_per_row - 1, -1, -1) * self.every_us
        starts = newest[:, None] - back[None, :]
        # Where size is no multiple of every, some rows are in one window fewer.
        rows, places = np.nonzero(starts + self.size_us > times[:, None])
        starts = starts[rows, places]
        return rows, starts, starts + self.size_us


@dataclass(frozen=True)
class SessionWindows:
    """Windows of activity: a session ends `gap_us` after its last row, and rows within less than that share one.

    `assign` gives each row the session that it would be on its own; `merge` makes one of those that overlap.
    """

    gap_us: int
    windows_per_row: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_positive("gap", self.gap_us)

    def assign(self, batch: pa.RecordBatch | pa.Table) -> Assignment:
        times = times_of(batch)
        return np.arange(len(times)), times, times + self.gap_us

    def merge(self, keys: Int64s, starts: Int64s) -> tuple[Int64s, Int64s]:
        """Joins the sessions of rows with equal keys that overlap.

        Args:
            keys: the group of each row, int64 `[rows]`.
            starts: its event time, int64 `[rows]`, in any order.

        Returns:
            Start and end of the session of each row, int64 `[rows]` each.
        """
        order = np.lexsort((starts, keys))
        times = starts[order]
        first = first_of_group(keys[order])
        first[1:] |= times[1:] - times[:-1] >= self.gap_us  # [a, a + gap) and [b, b + gap) overlap if b < a + gap
        session = np.cumsum(first) - 1
        begins = np.flatnonzero(first)
        lasts = np.append(begins[1:], len(times)) - 1 if len(times) else begins
        merged_starts, merged_ends = np.empty_like(starts), np.empty_like(starts)
        merged_starts[order] = times[begins][session]
        merged_ends[order] = times[lasts][session] + self.gap_us
        return merged_starts, merged_ends


_KINDS: dict[str, tuple[Callable[..., Windows], tuple[str, ...], tuple[str, ...]]] = {
    "fixed": (FixedWindows, ("size",), ("offset",)),
    "sliding": (SlidingWindows, ("size", "every"), ()),
    "session": (SessionWindows, ("gap",), ()),
}


def parse_windows(config: Mapping[str, object]) -> Windows:
    """Reads windows from a configuration.

    Args:
        config: `{"kind": "fixed", "size": "1d", "offset": "9h"}` (offset is optional),
            `{"kind": "sliding", "size": "1h", "every": "10m"}` or `{"kind": "session", "gap": "30m"}`.

    Raises:
        ValueError: a kind or an option is unknown or missing, or is no duration; the message says what is possible.
    """
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"windows: kind must be one of {', '.join(_KINDS)}; got {kind!r}")
    make, needed, optional = _KINDS[kind]
    if wrong := [name for name in config if name not in ("kind", *needed, *optional)]:
        raise ValueError(f"{kind} windows have no option {', '.join(wrong)}; they have {', '.join(needed + optional)}")
    if missing := [name for name in needed if name not in config]:
        raise ValueError(f"{kind} windows need {', '.join(missing)}, a duration such as 30m")
    values = {}
    for name in config:
        if name == "kind":
            continue
        try:
            values[f"{name}_us"] = parse_duration(config[name])  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{kind} windows, {name}: {error}") from None
    return make(**values)


def _require_positive(name: str, duration_us: int) -> None:
    if duration_us <= 0:
        raise ValueError(f"windows: {name} must be longer than 0; got {format_duration(duration_us)}")
