"""Before rows are predicted: can every version that they need be loaded?

One that cannot, after some tries, is taken back by an entry in the log: the version before it is live again from the same
boundary on, with the reason; a canary or a shadow is ended. So the log stays the truth, a replay gives the same, and no record
is predicted by another version than the log says. (Where a version vanishes between this look and its use,
`transforms.inference` has the same choice, and the lineage tells.)
"""

from __future__ import annotations

from typing import NamedTuple

from models.activation_log import ActivationInPast, ActivationLog
from models.serving import ModelCache, ModelError
from models.timeline import COLD_START, Timeline

TRIES = 3


def settle(
    log: ActivationLog, cache: ModelCache, model: str, by: str, from_us: int, until_us: int, *, redone: bool = True
) -> list[str]:
    """Takes back what cannot be loaded.

    Args:
        log: the activation log.
        cache: of the process that will predict.
        model: the model's name.
        by: the job.
        from_us: what was predicted before stays as it is: nothing is taken back from earlier on.
        until_us: event times below this are about to be predicted.
        redone: the job has sealed that time, and gives all of it anew; otherwise others may be predicting, and nothing is taken
            back from before the furthest seal.

    Returns:
        What was taken back and why, for people.
    """
    taken_back: list[str] = []
    tried: set[tuple[int, int]] = set()
    from_us = log.on_grid(from_us)
    while (found := _unloadable(log.timeline(), cache, model, from_us, until_us)) is not None:
        if (found.version, found.effective_from_us) in tried:
            break  # whatever was done, it did not help: the rows themselves will tell
        tried.add((found.version, found.effective_from_us))
        reason = f"version {found.version} was requested and cannot be loaded: {found.error}"[:500]
        at = max(found.effective_from_us, from_us)
        try:
            if redone:
                log.activate(found.instead, at, by=by, reason=reason, kind="rollback")
            else:
                log.activate(found.instead, by=by, reason=reason, kind="rollback", not_before_us=at)
        except ActivationInPast:  # another job has served that time: it may have loaded it there, and the log stays
            break
        if log.timeline().wants(found.version, until_us - 1):
            break
        taken_back.append(f"{reason}; version {found.instead} stays live")
    return taken_back


class _Unloadable(NamedTuple):
    version: int
    effective_from_us: int
    instead: int  # the version to go back to
    error: ModelError


def _unloadable(timeline: Timeline, cache: ModelCache, model: str, from_us: int, until_us: int) -> _Unloadable | None:
    """The newest that is wanted and cannot be loaded; None if all is well or nothing was live before."""
    last = int(timeline.effective_from_us.searchsorted(until_us, side="left")) - 1
    for place in range(last, -1, -1):
        if place < last and timeline.effective_from_us[place + 1] <= from_us:
            break  # another was live again before what is about to be predicted
        live, challenger = int(timeline.version[place]), int(timeline.challenger[place])
        for version, instead in ((challenger, live), (live, timeline.before(place))):
            if version == COLD_START:
                continue
            try:
                cache.get(model, version, tries=TRIES)  # waits for one that is being loaded
            except ModelError as error:
                if instead != COLD_START:
                    return _Unloadable(version, int(timeline.effective_from_us[place]), instead, error)
    return None
