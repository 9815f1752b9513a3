"""The activation log as far as it was read, and what follows from it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from models.activations import Activation, Entry, Pause, Seal
from models.timeline import Timeline


class LogView(NamedTuple):
    """The log as far as it was read. Replaced as a whole, so that threads may share a log.

    Of a job's seals only the furthest counts. A continuous job sets one a second, so the others are not kept: what grows in a
    process that follows a log is what was decided, and nothing else.
    """

    length: int = 0  # entries that were read
    decisions: tuple[Activation | Pause, ...] = ()  # all entries but seals, in order
    seals: Mapping[str, Seal] = {}  # the furthest one of every job
    timeline: Timeline = Timeline.of([])

    def extended(self, entries: list[Entry]) -> LogView:
        seals = dict(self.seals)
        for entry in entries:
            if isinstance(entry, Seal) and (entry.by not in seals or seals[entry.by].until_us < entry.until_us):
                seals[entry.by] = entry
        decisions = tuple(entry for entry in entries if not isinstance(entry, Seal))
        activations = [entry for entry in decisions if isinstance(entry, Activation)]
        timeline = self.timeline.merge(Timeline.of(activations)) if activations else self.timeline
        return LogView(self.length + len(entries), self.decisions + decisions, seals, timeline)

    def furthest_seal(self, unless_by: str | None = None) -> Seal | None:
        others = (seal for seal in self.seals.values() if seal.by != unless_by)
        return max(others, key=lambda seal: seal.until_us, default=None)

    def activations(self) -> Iterator[Activation]:
        return (entry for entry in self.decisions if isinstance(entry, Activation))

    def governing(self, time_us: int) -> Activation | None:
        """The entry that governs a moment: an activation or a trial."""
        place = int(self.timeline.effective_from_us.searchsorted(time_us, side="right")) - 1
        return self._entry(place)

    def live_at(self, time_us: int) -> Activation | None:
        """The activation that made live what is live at a moment, whatever is on trial beside."""
        place = int(self.timeline.effective_from_us.searchsorted(time_us, side="right")) - 1
        while place >= 0 and self.timeline.challenger[place]:
            place -= 1
        return self._entry(place)

    def _entry(self, place: int) -> Activation | None:
        if place < 0:
            return None
        entry = self.decisions[bisect_left(self.decisions, self.timeline.sequence[place], key=lambda entry: entry.sequence)]
        return entry if isinstance(entry, Activation) else None

    @property
    def last_decision(self) -> Activation | Pause | None:
        """The last entry that is no seal."""
        return self.decisions[-1] if self.decisions else None

    @property
    def last_pause(self) -> Pause | None:
        """The last pause, or end of one."""
        return next((entry for entry in reversed(self.decisions) if isinstance(entry, Pause)), None)

    @property
    def paused(self) -> Pause | None:
        """The pause that is on."""
        last = self.last_pause
        return last if last is not None and last.paused else None
