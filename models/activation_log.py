"""The only truth about what is live: an append-only log of activations, seals and pauses; here are its rules.

How an entry is appended so that it was right given all entries before it, with any number of writers and whenever one is
killed, is in `models.log_sequence`. Entries are never changed or removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from models import storage
from models.activations import Activation, Entry, Kind, Pause, Seal, live_stack, now_text, share_fault, time_text
from models.log_faults import ActivationInPast, LogCorrupt, LogError, NothingToRollBack, Paused, SomebodyWasFirst
from models.log_sequence import DEFAULT_GRID_US, LogSequence, NewEntry
from models.log_store import TopicPlace
from models.log_view import LogView
from models.registry import Registry, UnknownVersion
from models.timeline import MAX_TIME_US, MIN_TIME_US, TRIALS, Timeline

__all__ = [
    "DEFAULT_GRID_US",
    "Activation",
    "ActivationInPast",
    "ActivationLog",
    "LogCorrupt",
    "LogError",
    "NothingToRollBack",
    "Pause",
    "Paused",
    "Seal",
    "SomebodyWasFirst",
]


class ActivationLog:
    """The log of one model. Safe to share between threads and to pickle; an object of its own for every process."""

    def __init__(self, root: str, model: str, grid_us: int | None = None) -> None:
        """Opens the log; the first entry begins it.

        Args:
            root: the registry's folder.
            model: the model's name.
            grid_us: the refresh grid in microseconds: activations take effect at its multiples. None for the grid the log
                has, or `DEFAULT_GRID_US` for a log that is not there yet.

        Raises:
            LogError: the log has another grid.
            LogCorrupt: see `entries`.
        """
        self.model = model
        self._registry = Registry(root)
        self._sequence = LogSequence(storage.join(self._registry.model_folder(model), "activations"), model, grid_us)

    @property
    def grid_us(self) -> int:
        """The refresh grid in microseconds."""
        return self._sequence.grid_us

    def move(self, place: TopicPlace) -> int:
        """Keeps the log in a Kafka topic from now on; jobs that run follow. Gives the number of entries that it has.

        See `models.log_sequence.LogSequence.move`.
        """
        return self._sequence.move(place)

    @property
    def topic(self) -> TopicPlace | None:
        """The topic that holds the log; None where the registry does."""
        self._sequence.refreshed()
        return self._sequence.topic

    def entries(self) -> tuple[Entry, ...]:
        """All entries, in order, read anew; see `decisions` for those that a job asks for again and again.

        Raises:
            LogCorrupt: a file is missing or garbled.
        """
        return self._sequence.all()

    def decisions(self) -> tuple[Activation | Pause, ...]:
        """All entries but seals, in order. Reads only what was not read before.

        Raises:
            LogCorrupt: see `entries`.
        """
        return self._sequence.refreshed().decisions

    def activations(self) -> list[Activation]:
        """The activations among `decisions`."""
        return [entry for entry in self.decisions() if isinstance(entry, Activation)]

    def timeline(self) -> Timeline:
        """Which version is live when, by all entries up to now."""
        return self._sequence.refreshed().timeline

    def activate(
        self,
        version: int,
        effective_from_us: int | None = None,
        *,
        by: str,
        reason: str,
        kind: Kind = "activate",
        not_before_us: int | None = None,
        share: float | None = None,
        automatic: bool = False,
        evidence: Mapping[str, Any] | None = None,
        after: int | None = None,
    ) -> Activation:
        """Makes a version live from a boundary of the refresh grid on.

        Repeating a call appends nothing: with `effective_from_us`, if the same version, boundary, `by` and `reason` are in
        the log; without, if the activation that governs the boundary is by the same call already.

        Args:
            version: a published version.
            effective_from_us: event time, rounded up to the grid. None for the earliest boundary that is possible now: where
                the furthest seal ends, or from the beginning of time where nothing was served yet.
            by: who.
            reason: for people and for reports.
            kind: `canary` and `shadow` set the version beside the live one; the others make it live.
            not_before_us: the earliest boundary wanted where `effective_from_us` is None.
            share: of the keys, for a canary.
            automatic: a job decides this, which a pause forbids.
            evidence: what an automatic decision rests on.
            after: the last decision in the log that the caller knew of, see `last_decision`; None to decide whatever it is.

        Returns:
            The entry, new or there before.

        Raises:
            UnknownVersion: it was not published.
            ActivationInPast: another job has begun to serve a time from which this would be effective.
            Paused: `automatic`, and decisions by jobs are paused.
            SomebodyWasFirst: there is a decision behind `after`.
            LogError: a trial of the live version, or a share that cannot be.
            LogCorrupt, OSError: see `entries` and `models.storage`.
        """
        share = share if share is not None else 0.0 if kind in TRIALS else 1.0
        if fault := share_fault(kind, share):
            raise LogError(fault)
        new = Activation(0, self.model, int(version), 0, reason, by, "", kind, float(share), evidence)
        return self._sequence.append(self._known(after, self._activation(new, effective_from_us, not_before_us, automatic)))

    def last_decision(self) -> int:
        """The number of the last entry that is no seal; 0 in an empty log. For `after`."""
        last = self._sequence.refreshed().last_decision
        return last.sequence if last is not None else 0

    def _known(self, after: int | None, draft: Callable[[LogView], NewEntry]) -> Callable[[LogView], NewEntry]:
        def checked(view: LogView) -> NewEntry:
            entry, last = draft(view), view.last_decision
            if after is not None and last is not None and last.sequence > after and entry.sequence > view.length:
                what = f"{last.kind} to version {last.version}" if isinstance(last, Activation) else "pause"
                raise SomebodyWasFirst(
                    f"{last.by} was first, at {last.at}: entry {last.sequence}, {what}, because: {last.reason}. Nothing was "
                    "changed; look at the log, and give the command again if it still holds."
                )
            return entry

        return checked

    def preview(
        self,
        version: int,
        effective_from_us: int | None = None,
        *,
        by: str,
        reason: str,
        kind: Kind = "activate",
        share: float = 1.0,
    ) -> Activation:
        """The entry that `activate` would append now, or refuses as `activate` would; nothing is written."""
        if fault := share_fault(kind, share):
            raise LogError(fault)
        new = Activation(0, self.model, int(version), 0, reason, by, "", kind, share)
        return self._activation(new, effective_from_us, None, False)(self._sequence.refreshed())

    def pause(self, paused: bool, *, by: str, reason: str) -> Pause:
        """Forbids jobs to decide what is live, or lets them again; people may in any case.

        Returns:
            The entry, new or there before.
        """

        def draft(view: LogView) -> Pause:
            _check_name(by)
            last = view.last_pause
            if last is not None and last.paused == paused:
                return last
            return Pause(view.length + 1, paused, reason, by, now_text())

        return self._sequence.append(draft)

    def paused(self) -> Pause | None:
        """The pause that is on, if one is."""
        return self._sequence.refreshed().paused

    def live(self, time_us: int) -> Activation | None:
        """The activation that made live what is live at a moment."""
        return self._sequence.refreshed().live_at(time_us)

    def _activation(
        self, new: Activation, effective_from_us: int | None, not_before_us: int | None, automatic: bool
    ) -> Callable[[LogView], Activation]:
        if effective_from_us is not None and not_before_us is not None:
            raise LogError(
                "expected effective_from_us or not_before_us, came both: the first is the boundary, the second bounds it"
            )

        def draft(view: LogView) -> Activation:
            boundary = self._boundary(view, effective_from_us, not_before_us)
            known = [live for live in (view.governing(boundary),) if live]
            if effective_from_us is not None:
                known = [entry for entry in view.activations() if entry.effective_from_us == boundary]
            for entry in known:
                if _request(entry) == _request(new):
                    return entry
            if automatic and (pause := view.paused):
                raise Paused(
                    f"version {new.version} of {self.model} stays as it is: {pause.by} paused decisions by jobs "
                    f"({pause.reason}). "
                    "`midstream pause --resume` ends that."
                )
            live = view.live_at(boundary)
            if new.kind in TRIALS and (live is None or live.version == new.version):
                what = "nothing is live" if live is None else f"version {new.version} is live"
                raise LogError(f"a {new.kind} is set beside another version that is live: {what} at {time_text(boundary)}")
            return self._checked(view, new, boundary)

        return draft

    def rollback(
        self,
        by: str,
        reason: str,
        to: int | None = None,
        effective_from_us: int | None = None,
        after: int | None = None,
        preview: bool = False,
    ) -> Activation:
        """Makes an earlier version live again, by one more activation.

        The current version is the one live at the earliest boundary that is possible now. What is scheduled for later stays
        scheduled. Rolling back twice goes back two versions.

        Args:
            by: who.
            reason: for people and for reports.
            to: the version; None for the one that was live before the current one.
            effective_from_us: see `activate`.
            after: see `activate`.
            preview: give the entry and write nothing.

        Raises:
            NothingToRollBack: nothing was live before, or `to` is live already.
            UnknownVersion, ActivationInPast, LogCorrupt, OSError: see `activate`.
        """

        def draft(view: LogView) -> Activation:
            boundary = self._boundary(view, effective_from_us)
            # One that another replaced at the same boundary was never live, once that boundary is served.
            counted, earliest = set(view.timeline.sequence.tolist()), self._earliest(view)
            lived = live_stack(
                entry
                for entry in view.activations()
                if entry.effective_from_us <= boundary and (entry.sequence in counted or entry.effective_from_us >= earliest)
            )
            live = view.live_at(boundary)
            governing = view.governing(boundary)
            on_trial = governing is not None and governing.kind in TRIALS  # going back from a trial ends it
            if to is None and len(lived) < (1 if on_trial else 2):
                raise NothingToRollBack(self._no_way_back(view, boundary, live))
            if to is not None and live and live.version == to and not on_trial:
                if _request(live) == (to, by, reason, "rollback", 1.0):
                    return live
                raise NothingToRollBack(f"version {to} of {self.model} is live already at {time_text(boundary)}")
            target = to if to is not None else lived[-1] if on_trial else lived[-2]
            return self._checked(view, Activation(0, self.model, target, 0, reason, by, "", "rollback"), boundary)

        return draft(self._sequence.refreshed()) if preview else self._sequence.append(self._known(after, draft))

    def seal(self, until_us: int, by: str) -> Seal:
        """Notes that a job begins to serve event times below `until_us`, before it does.

        From then on nobody but this job changes what is live there. What the log says after this call is what the job serves.

        Args:
            until_us: rounded up to the grid.
            by: the job.

        Returns:
            The job's furthest seal, new or there before; a seal is never taken back.
        """

        def draft(view: LogView) -> Seal:
            boundary = self.on_grid(until_us)
            _check_name(by)
            if by in view.seals and view.seals[by].until_us >= boundary:
                return view.seals[by]
            return Seal(view.length + 1, boundary, by, now_text())

        return self._sequence.append(draft)

    def sealed_us(self, by: str) -> int:
        """Up to where a job has sealed the log; the beginning of time where it has not."""
        seal = self._sequence.refreshed().seals.get(by)
        return seal.until_us if seal is not None else MIN_TIME_US

    def earliest_us(self) -> int:
        """The earliest boundary from which anybody may activate a version now."""
        return self._earliest(self._sequence.refreshed())

    def _boundary(self, view: LogView, effective_from_us: int | None, not_before_us: int | None = None) -> int:
        if effective_from_us is not None:
            return self.on_grid(effective_from_us)
        return max(self._earliest(view), self.on_grid(MIN_TIME_US if not_before_us is None else not_before_us))

    def _checked(self, view: LogView, new: Activation, boundary: int) -> Activation:
        """The next entry, if it may be."""
        _check_name(new.by)
        try:
            self._registry.manifest(self.model, new.version)
        except UnknownVersion as error:
            raise UnknownVersion(f"cannot activate: {error}") from None
        seal = view.furthest_seal(unless_by=new.by)
        if boundary >= MAX_TIME_US or (seal and boundary < seal.until_us):
            raise ActivationInPast(self._refusal(new.version, boundary, view, seal or view.furthest_seal()))
        return replace(new, sequence=view.length + 1, effective_from_us=boundary, at=now_text())

    def _earliest(self, view: LogView) -> int:
        seal = view.furthest_seal()
        return seal.until_us if seal else MIN_TIME_US

    def on_grid(self, time_us: int) -> int:
        """An event time, rounded up to the refresh grid."""
        time_us = min(max(int(time_us), MIN_TIME_US), MAX_TIME_US)
        if time_us in (MIN_TIME_US, MAX_TIME_US):
            return time_us
        return -(-time_us // self.grid_us) * self.grid_us

    def _refusal(self, version: int, boundary: int, view: LogView, seal: Seal | None) -> str:
        asked = f"version {version} of {self.model} cannot become live from {time_text(boundary)}"
        if seal is None:
            return f"{asked}: that is the end of time"
        return (
            f"{asked}: job {seal.by!r} has begun to serve event times up to {time_text(seal.until_us)}, and what was served "
            f"stays as it is. The earliest possible now is {time_text(self._earliest(view))}; leave the time out to take it."
        )

    def _no_way_back(self, view: LogView, boundary: int, live: Activation | None) -> str:
        what = f"version {live.version} is the first one" if live else "nothing is live"
        later = view.timeline.changes_between(boundary + 1, MAX_TIME_US)
        scheduled = f" Version {later[0].version} is to be live from {time_text(later[0].effective_from_us)}." if later else ""
        return (
            f"{self.model} has no version to go back to: {what} at {time_text(boundary)}.{scheduled} "
            "Name a version to activate, and a time."
        )


def _check_name(by: str) -> None:
    if not by:
        raise LogError("expected the name of a job or a person in `by`, came nothing")


def _request(entry: Activation) -> tuple[int, str, str, str, float]:
    return entry.version, entry.by, entry.reason, entry.kind, entry.share
