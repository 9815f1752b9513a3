"""Which version is live at which event time: the activation log as a few sorted arrays.

A record is served by the activation with the greatest `effective_from_us` at or before the record's event time; among several
from the same moment by the one that was logged last. Since activations lie on the refresh grid, it makes no difference whether
the event time is floored to the grid first.

A *trial* sets a challenger beside the live version, from its boundary up to the next entry: a canary serves a share of the
keys,
a shadow predicts and is not used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

COLUMNS = ("effective_from_us", "version", "sequence", "challenger", "share_ppm")
TRIALS = ("canary", "shadow")
SHARES = 1_000_000
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

    @property
    def kind(self) -> str:
        """`canary` and `shadow` begin a trial; all others make the version live."""

    @property
    def share(self) -> float:
        """Of the keys."""


class Change(NamedTuple):
    """A moment from which on another version is live."""

    effective_from_us: int
    version: int
    sequence: int  # of the activation, in the log
    kind: str = "activate"
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class Timeline:
    """Immutable, compact and picklable; make one with `Timeline.of`.

    Attributes:
        effective_from_us: int64, shape (changes,), ascending; twice the same where a trial begins with its live version.
        version: int64, shape (changes,), that is live.
        sequence: int64, shape (changes,), of the entry in the log.
        challenger: int64, shape (changes,), the version on trial; 0 for none.
        share_ppm: int64, shape (changes,), millionths of the keys that the challenger serves; 0 for a shadow.
    """

    effective_from_us: np.ndarray
    version: np.ndarray
    sequence: np.ndarray
    challenger: np.ndarray
    share_ppm: np.ndarray

    @classmethod
    def of(cls, activations: Iterable[LoggedActivation]) -> Timeline:
        """The timeline of activations in any order."""
        rows = [
            (entry.effective_from_us, COLD_START, entry.sequence, entry.version, round(entry.share * SHARES))
            if entry.kind in TRIALS
            else (entry.effective_from_us, entry.version, entry.sequence, 0, 0)
            for entry in activations
        ]
        return cls._resolved(np.array(rows, dtype=np.int64).reshape(-1, len(COLUMNS)))

    @classmethod
    def _resolved(cls, rows: np.ndarray) -> Timeline:
        rows = rows[np.lexsort((rows[:, 2], rows[:, 0]))]
        # Of several entries from one moment the last counts; a trial keeps the activation that it tries something beside.
        for _ in range(2):  # once more for an activation behind a trial behind an activation
            trial = rows[:, 3] != 0
            last = np.ones(len(rows), dtype=bool)
            last[:-1] = (rows[1:, 0] != rows[:-1, 0]) | (trial[1:] & ~trial[:-1])
            rows = rows[last]
        rows, trial = rows.copy(), rows[:, 3] != 0
        live = np.maximum.accumulate(np.where(trial, -1, np.arange(len(rows))))
        rows[:, 1] = np.where(live >= 0, rows[np.maximum(live, 0), 1], COLD_START)
        columns = [np.ascontiguousarray(column) for column in rows.T]
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
        return self._at(self.version, event_time_us)

    def serving(self, event_time_us: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The version of every record, canaries included.

        Args:
            event_time_us: int64, shape (rows,).
            places: int64, shape (rows,), where each record's key stands among `SHARES`, see `transforms.keys`.
        """
        challenger, share = self._at(self.challenger, event_time_us), self._at(self.share_ppm, event_time_us)
        return np.where((challenger != 0) & (places < share), challenger, self.as_of(event_time_us))

    def beside(self, event_time_us: np.ndarray, places: np.ndarray, guard_us: int = 0) -> np.ndarray:
        """The version to compare every record's own with; `COLD_START` for none.

        A shadow; for a canary's records the live version; and where nothing is on trial, for `guard_us` after an activation the
        version that was live before.
        """
        challenger, share = self._at(self.challenger, event_time_us), self._at(self.share_ppm, event_time_us)
        live = self.as_of(event_time_us)
        on_canary = (challenger != 0) & (places < share)
        found = np.where(on_canary, live, np.where(share == 0, challenger, COLD_START))
        if guard_us and len(self):
            since, before = self._since()
            guarded = (challenger == 0) & (event_time_us - self._at(since, event_time_us) < guard_us)
            found = np.where(guarded, self._at(before, event_time_us), found)
        return np.where(found == np.where(on_canary, challenger, live), COLD_START, found)

    @property
    def has_trials(self) -> bool:
        """Whether anything is on trial at some time."""
        return bool(np.any(self.challenger))

    def _since(self) -> tuple[np.ndarray, np.ndarray]:
        """By change: when the live version became live, and which was live before it."""
        starts = np.flatnonzero(np.concatenate([[True], self.version[1:] != self.version[:-1]]))
        run = np.searchsorted(starts, np.arange(len(self)), side="right") - 1
        before = np.where(starts > 0, self.version[np.maximum(starts - 1, 0)], COLD_START)
        return self.effective_from_us[starts][run], before[run]

    def _at(self, column: np.ndarray, event_time_us: np.ndarray) -> np.ndarray:
        place = np.searchsorted(self.effective_from_us, event_time_us, side="right")
        return np.concatenate([np.zeros(1, dtype=np.int64), column])[place]

    def before(self, place: int) -> int:
        """The version that was live before the change at this place, and is another one; `COLD_START` where there was none."""
        if place <= 0:
            return COLD_START
        earlier = self.version[:place][self.version[:place] != self.version[place]]
        return int(earlier[-1]) if len(earlier) else COLD_START

    def previous(self, time_us: int) -> int:
        """The version that was live before the one of this moment; see `before`."""
        return self.before(int(np.searchsorted(self.effective_from_us, time_us, side="right")) - 1)

    def wants(self, version: int, time_us: int) -> bool:
        """Whether a version is live or on trial at a moment."""
        place = int(np.searchsorted(self.effective_from_us, time_us, side="right")) - 1
        return place >= 0 and version in (self.version[place], self.challenger[place])

    def first(self) -> Change | None:
        """The first activation, where the cold start ends; None without any."""
        live = np.flatnonzero(self.version != COLD_START)
        return self._change(int(live[0])) if len(live) else None

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions that are live or on trial at some time, in ascending order."""
        served = np.concatenate([self.version, self.challenger])
        return tuple(np.unique(served[served != COLD_START]).tolist())

    def merge(self, other: Timeline) -> Timeline:
        """The timeline of the activations of both; of the same log, so that a sequence number names one activation."""
        return self._resolved(np.concatenate([self._rows(), other._rows()]))

    def changes_between(self, from_us: int, to_us: int) -> list[Change]:
        """The moments in [from_us, to_us) from which on another version is live than just before."""
        before = np.concatenate([np.array([COLD_START], dtype=np.int64), self.version[:-1]])
        inside = (self.effective_from_us >= from_us) & (self.effective_from_us < to_us)
        return [self._change(place) for place in np.flatnonzero(inside & (before[: len(self)] != self.version)).tolist()]

    def _change(self, place: int) -> Change:
        return Change(int(self.effective_from_us[place]), int(self.version[place]), int(self.sequence[place]))

    def _rows(self) -> np.ndarray:
        return np.stack([getattr(self, name) for name in COLUMNS], axis=1)

    def __len__(self) -> int:
        return len(self.version)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Timeline) and np.array_equal(self._rows(), other._rows())

    def __hash__(self) -> int:
        return hash(self._rows().tobytes())
