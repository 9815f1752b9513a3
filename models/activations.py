"""The entries of an activation log: what they say, how they are written and read, and what they mean for a rollback."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias, get_args

from models.timeline import MAX_TIME_US, MIN_TIME_US, TRIALS

FORMAT = 1
Kind: TypeAlias = Literal["activate", "rollback", "promote", "canary", "shadow"]


@dataclass(frozen=True)
class Activation:
    """From `effective_from_us` on, in event time, `version` is live.

    Attributes:
        sequence: place in the log, from 1.
        model: the model's name.
        version: the version that becomes live.
        effective_from_us: on the refresh grid, or `MIN_TIME_US`.
        reason: for people and for reports.
        by: who: a job's name, or a person's.
        at: wall clock, ISO 8601 in UTC.
        kind: `activate`, `rollback` and `promote` make the version live, told apart for reports and for further rollbacks;
            `canary` and `shadow` set it beside the live one, up to the next entry.
        share: of the keys that are served by the version: all (1.0), a canary's, or none (0.0) for a shadow.
        evidence: what an automatic decision rests on; None for people's.
    """

    sequence: int
    model: str
    version: int
    effective_from_us: int
    reason: str
    by: str
    at: str
    kind: Kind = "activate"
    share: float = 1.0
    evidence: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Pause:
    """From here on jobs decide nothing: what a learner makes stays a candidate, rules act on nothing. Or they may again.

    Attributes:
        sequence: place in the log, from 1.
        paused: False ends the pause.
        reason: for people.
        by: who.
        at: wall clock, ISO 8601 in UTC.
    """

    sequence: int
    paused: bool
    reason: str
    by: str
    at: str


@dataclass(frozen=True)
class Seal:
    """Job `by` has begun to serve event times below `until_us`: from here on nobody else changes what is live there.

    Attributes:
        sequence: place in the log, from 1.
        until_us: on the refresh grid.
        by: the job.
        at: wall clock, ISO 8601 in UTC.
    """

    sequence: int
    until_us: int
    by: str
    at: str


Entry: TypeAlias = Activation | Seal | Pause
_KINDS: dict[str, type[Activation | Seal | Pause]] = {"activation": Activation, "seal": Seal, "pause": Pause}


def to_json(entry: Entry) -> str:
    """An entry as the content of its file."""
    kind = next(name for name, kind in _KINDS.items() if isinstance(entry, kind))
    return json.dumps({"format": FORMAT, "entry": kind} | asdict(entry), indent=1) + "\n"


def from_json(text: str, sequence: int, model: str, grid_us: int) -> Entry:
    """The inverse of `to_json`, for the entry that should be the log's `sequence`-th.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    value = json.loads(text)
    if value.pop("format") != FORMAT:
        raise ValueError("it is of another format; update Midstream")
    entry: Entry = _KINDS[value.pop("entry")](**value)
    if isinstance(entry, Pause):
        time_us = MIN_TIME_US
    else:
        time_us = entry.effective_from_us if isinstance(entry, Activation) else entry.until_us
    if type(entry.sequence) is not int or entry.sequence != sequence:
        raise ValueError(f"expected entry {sequence}, came {entry.sequence}")
    if type(time_us) is not int or (time_us % grid_us and time_us not in (MIN_TIME_US, MAX_TIME_US)):
        raise ValueError(f"expected a time on the grid of {grid_us} microseconds, came {time_us}")
    if isinstance(entry, Activation):
        if entry.model != model or type(entry.version) is not int or entry.version < 1:
            raise ValueError(f"expected a version of {model}, came {entry.version} of {entry.model}")
        if entry.kind not in get_args(Kind):
            raise ValueError(f"expected one of {', '.join(get_args(Kind))}, came {entry.kind!r}; update Midstream")
        if fault := share_fault(entry.kind, entry.share):
            raise ValueError(fault)
    return entry


def share_fault(kind: str, share: float) -> str | None:
    """What is wrong with the share of an entry of this kind; None if nothing is."""
    if kind == "canary":
        return None if 0.0 < share < 1.0 else f"expected a canary's share above 0 and below 1, came {share}"
    expected = 0.0 if kind == "shadow" else 1.0
    return None if share == expected else f"expected a share of {expected}, came {share}"


def live_stack(activations: Iterable[Activation]) -> list[int]:
    """The versions that were live, oldest first, the live one last; a rollback takes away what came after its version."""
    stack: list[int] = []
    for entry in sorted(
        (entry for entry in activations if entry.kind not in TRIALS),
        key=lambda entry: (entry.effective_from_us, entry.sequence),
    ):
        if entry.kind == "rollback" and entry.version in stack:
            while stack[-1] != entry.version:
                stack.pop()
        elif not stack or stack[-1] != entry.version:
            stack.append(entry.version)
    return stack


def time_text(time_us: int) -> str:
    """An event time for people."""
    if time_us <= MIN_TIME_US:
        return "the beginning of time"
    if time_us >= MAX_TIME_US:
        return "the end of time"
    try:
        return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us):%Y-%m-%dT%H:%M:%S.%fZ} ({time_us} us)"
    except OverflowError:
        return f"{time_us} us"


def now_text() -> str:
    """The wall clock, for `at`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
