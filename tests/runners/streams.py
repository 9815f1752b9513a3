"""A stream, a planner and a sink that stand in for files and Beam, and a way to die at any step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import runners.checkpoint
from runners.checkpoint import Checkpoint
from runners.micro_batch import MicroBatch, MicroBatchDriver, Stop

JOB = {"name": "job", "source": {"path": "in", "columns": ["a", "b"]}}


class Killed(BaseException):
    """The process dies here; nothing may catch this."""


class Steps:
    """Counts the steps of a process and dies at the chosen one."""

    def __init__(self, die_at: int | None = None) -> None:
        self.taken, self.die_at = 0, die_at

    def __call__(self) -> None:
        self.taken += 1
        if self.taken - 1 == self.die_at:
            raise Killed


@dataclass
class Input:
    """Numbers that came so far; a plan takes all that is new, at most `limit`."""

    numbers: list[int]
    limit: int = 3
    told_of_its_end: bool = False

    def plan(self, position: dict[str, Any] | None) -> dict[str, Any] | None:
        start = position["next"] if position else 0
        stop = min(start + self.limit, len(self.numbers))
        return {"start": start, "stop": stop, "end": {"next": stop}} if stop > start else None

    def nothing_behind(self, position: dict[str, Any]) -> bool:
        return self.told_of_its_end and position["next"] >= len(self.numbers)


@dataclass
class Sink:
    """What micro-batches wrote, by number, and every plan they were run with. The state is the sum of all numbers so far."""

    source: Input
    rows: dict[int, list[int]] = field(default_factory=dict)
    sums: dict[int, int] = field(default_factory=dict)
    tries: list[tuple[int, dict[str, Any] | None]] = field(default_factory=list)
    steps: Callable[[], None] = field(default_factory=Steps)

    def all_rows(self) -> list[int]:
        return [number for batch in sorted(self.rows) for number in self.rows[batch]]

    def run(self, batch: MicroBatch) -> dict[str, Any]:
        self.tries.append((batch.number, batch.plan))
        self.steps()
        assert not list(Path(batch.state_out).iterdir()), "a try begins with an empty state folder"
        before = int(Path(batch.state_in, "sum").read_text()) if batch.state_in else 0
        assert batch.previous.get("sum", 0) == before
        numbers = [] if batch.plan is None else self.source.numbers[batch.plan["start"] : batch.plan["stop"]]
        Path(batch.state_out, "partial").write_text("left by a try that was killed")
        self.steps()
        Path(batch.state_out, "sum").write_text(str(before + sum(numbers)))
        self.rows[batch.number] = numbers
        self.sums[batch.number] = before + sum(numbers)
        self.steps()
        return {"sum": before + sum(numbers), "rows": len(numbers)}


def process(folder: Path, sink: Sink, *, steps: Steps | None = None, drain: bool = True, stop: Stop | None = None) -> bool:
    """One process that works off what is there; dies with `Killed` if its steps say so."""
    steps = steps or Steps()
    sink.steps = steps
    write, fsync, rmtree = runners.checkpoint.write_atomically, os.fsync, shutil.rmtree

    def stepped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            steps()
            function(*args, **options)
            steps()

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runners.checkpoint, "write_atomically", stepped(write))
        patch.setattr(os, "fsync", stepped(lambda handle: fsync(handle)))  # dying here leaves the temporary file
        patch.setattr(shutil, "rmtree", stepped(rmtree))
        checkpoint = Checkpoint(folder, JOB)
        try:
            driver = MicroBatchDriver(checkpoint, sink.source, sink.run, on_commit=lambda batch, note: steps(), stop=stop)
            return driver.available_now(drain=drain)
        finally:
            checkpoint.close()  # as the system does for a process that died
