"""Which version is live at which event time: the activation log as two sorted arrays.

A record is served by the activation with the greatest `effective_from_us` at or before the record's event time; among several
from the same moment by the one that was logged last. Since activations lie on the refresh grid, it makes no difference whether
the event time is floored to the grid first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

COLD_START = 0  # the version where nothing is active; versions are counted from 1
# From here on something is live that was activated before anything was served, and up to here at most. Half the range of int64,
# so that adding a window or a grid step never overflows.
MIN_TIME_US = -(2**62)
MAX_TIME_US = 2**62


class LoggedActivation(Protocol):
    """What a timeline takes from an entry of the activation log."""

    @property
    def sequence(self) -> int:
        """Place in the log."""

    @property
    def version(self) -> int:
        """The version that becomes live."""

    @property
    def effective_from_us(self) -> int:
        """From which event time on."""


class Change(NamedTuple):
    """A moment from which on another version is live."""

    effective_from_us: int
    version: int
    sequence: int  # of the activation, in the log


@dataclass(frozen=True, eq=False)
class Timeline:
    """Immutable, compact and picklable; make one with `Timeline.of`.

    Attributes:
        effective_from_us: int64, shape (changes,), strictly ascending.
        version: int64, shape (changes,).
        sequence: int64, shape (changes,), of the activation in the log.
    """

    effective_from_us: np.ndarray
    version: np.ndarray
    sequence: np.ndarray

    @classmethod
    def of(cls, activations: Iterable[LoggedActivation]) -> Timeline:
        """The timeline of activations in any order."""
        rows = [(entry.effective_from_us, entry.version, entry.sequence) for entry in activations]
        return cls._resolved(np.array(rows, dtype=np.int64).reshape(-1, 3))

    @classmethod
    def _resolved(cls, rows: np.ndarray) -> Timeline:
        rows = rows[np.lexsort((rows[:, 2], rows[:, 0]))]
        last = np.ones(len(rows), dtype=bool)
        last[:-1] = rows[1:, 0] != rows[:-1, 0]
        columns = [np.ascontiguousarray(column) for column in rows[last].T]
        for column in columns:
            column.flags.writeable = False
        return cls(*columns)

    def as_of(self, event_time_us: np.ndarray) -> np.ndarray:
        """The version of every record.

        Args:
            event_time_us: int64, any shape; microseconds since the epoch.

        Returns:
            int64 of the same shape; `COLD_START` where nothing is active yet.
        """
        place = np.searchsorted(self.effective_from_us, event_time_us, side="right")
        return np.concatenate([np.array([COLD_START], dtype=np.int64), self.version])[place]

    def before(self, place: int) -> int:
        """The version that was live before the change at this place, and is another one; `COLD_START` where there was none."""
        if place <= 0:
            return COLD_START
        earlier = self.version[:place][self.version[:place] != self.version[place]]
        return int(earlier[-1]) if len(earlier) else COLD_START

    def previous(self, time_us: int) -> int:
        """The version that was live before the one of this moment; see `before`."""
        return self.before(int(np.searchsorted(self.effective_from_us, time_us, side="right")) - 1)

    def first(self) -> Change | None:
        """The first activation, where the cold start ends; None without any."""
        return self._change(0) if len(self) else None

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions that are live at some time, in ascending order."""
        return tuple(np.unique(self.version).tolist())

    def merge(self, other: Timeline) -> Timeline:
        """The timeline of the activations of both; of the same log, so that a sequence number names one activation."""
        return self._resolved(np.concatenate([self._rows(), other._rows()]))

    def changes_between(self, from_us: int, to_us: int) -> list[Change]:
        """The moments in [from_us, to_us) from which on another version is live than just before."""
        before = np.concatenate([np.array([COLD_START], dtype=np.int64), self.version[:-1]])
        inside = (self.effective_from_us >= from_us) & (self.effective_from_us < to_us)
        return [self._change(place) for place in np.flatnonzero(inside & (before[: len(self)] != self.version)).tolist()]

    def _change(self, place: int) -> Change:
        return Change(*(int(column[place]) for column in (self.effective_from_us, self.version, self.sequence)))

    def _rows(self) -> np.ndarray:
        return np.stack([self.effective_from_us, self.version, self.sequence], axis=1)

    def __len__(self) -> int:
        return len(self.version)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Timeline) and np.array_equal(self._rows(), other._rows())

    def __hash__(self) -> int:
        return hash(self._rows().tobytes())
