"""Before a micro-batch runs: can every version that it needs be loaded?

One that cannot, after some tries, is taken back by an entry in the log: the version before it is live again from the same
boundary on, with the reason. So the log stays the truth, a replay gives the same, and no record is predicted by another version
than the log says. (Within a run, where a version vanishes between this look and its use, `transforms.inference` has the same
choice, and the lineage tells.)
"""

from __future__ import annotations

import numpy as np

from models.activation_log import ActivationInPast, ActivationLog
from models.serving import ModelCache, ModelError
from models.timeline import COLD_START, Timeline

TRIES = 3


def settle(log: ActivationLog, cache: ModelCache, model: str, by: str, from_us: int, until_us: int) -> list[str]:
    """Takes back what cannot be loaded.

    Args:
        log: the activation log, sealed by `by` up to `until_us`.
        cache: the driver's own.
        model: the model's name.
        by: the job.
        from_us: what was predicted before stays as it is: nothing is taken back from earlier on.
        until_us: event times below this are about to be predicted.

    Returns:
        What was taken back and why, for people.
    """
    taken_back: list[str] = []
    from_us = log.on_grid(from_us)
    while (found := _unloadable(log.timeline(), cache, model, from_us, until_us)) is not None:
        version, effective_from_us, before, error = found
        reason = f"version {version} was requested and cannot be loaded: {error}"[:500]
        try:
            log.activate(before, max(effective_from_us, from_us), by=by, reason=reason, kind="rollback")
        except ActivationInPast:  # another job has served that time: it may have loaded it there, and the log stays
            break
        if log.timeline().as_of(np.array([until_us - 1]))[0] == version:
            break  # whatever it was, it did not help: the rows themselves will tell
        taken_back.append(f"{reason}; version {before} stays live")
    return taken_back


def _unloadable(
    timeline: Timeline, cache: ModelCache, model: str, from_us: int, until_us: int
) -> tuple[int, int, int, ModelError] | None:
    """The version, its boundary, the version before, and the error; None if all is well or nothing was live before."""
    live = int(timeline.effective_from_us.searchsorted(until_us, side="left")) - 1
    for place in range(live, -1, -1):
        if place < live and timeline.effective_from_us[place + 1] <= from_us:
            break  # another was live again before what is about to be predicted
        version = int(timeline.version[place])
        if cache.has(model, version):
            continue
        try:
            cache.get(model, version, tries=TRIES)
        except ModelError as error:
            before = timeline.before(place)
            if before != COLD_START:
                return version, int(timeline.effective_from_us[place]), before, error
    return None
