"""The entries of an activation log: what they say, how they are written and read, and what they mean for a rollback."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

from models.timeline import MAX_TIME_US, MIN_TIME_US

FORMAT = 1
Kind: TypeAlias = Literal["activate", "rollback"]


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
        kind: a rollback is an activation like any other, told apart for reports and for further rollbacks.
        share: of the keys; 1.0 is all.
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


Entry: TypeAlias = Activation | Seal


def to_json(entry: Entry) -> str:
    """An entry as the content of its file."""
    kind = "activation" if isinstance(entry, Activation) else "seal"
    return json.dumps({"format": FORMAT, "entry": kind} | asdict(entry), indent=1) + "\n"


def from_json(text: str, sequence: int, model: str, grid_us: int) -> Entry:
    """The inverse of `to_json`, for the entry that should be the log's `sequence`-th.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    value = json.loads(text)
    if value.pop("format") != FORMAT:
        raise ValueError("it is of another format; update Midstream")
    kind = {"activation": Activation, "seal": Seal}[value.pop("entry")]
    entry: Entry = kind(**value)
    time_us = entry.effective_from_us if isinstance(entry, Activation) else entry.until_us
    if type(entry.sequence) is not int or entry.sequence != sequence:
        raise ValueError(f"expected entry {sequence}, came {entry.sequence}")
    if type(time_us) is not int or (time_us % grid_us and time_us not in (MIN_TIME_US, MAX_TIME_US)):
        raise ValueError(f"expected a time on the grid of {grid_us} microseconds, came {time_us}")
    if isinstance(entry, Activation):
        if entry.model != model or type(entry.version) is not int or entry.version < 1:
            raise ValueError(f"expected a version of {model}, came {entry.version} of {entry.model}")
        if entry.share != 1.0:
            raise ValueError(f"expected a share of 1.0, came {entry.share}; this release serves a version to all keys or none")
    return entry


def live_stack(activations: Iterable[Activation]) -> list[int]:
    """The versions that were live, oldest first, the live one last; a rollback takes away what came after its version."""
    stack: list[int] = []
    for entry in sorted(activations, key=lambda entry: (entry.effective_from_us, entry.sequence)):
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
