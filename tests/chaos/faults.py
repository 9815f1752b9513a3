"""Faults while a stream predicts in micro-batches. After each, every record must be there once, by the right version.

The same on Flink, continuously: `tests.chaos.live_faults`.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from models import activation_log
from models.activation_log import ActivationLog
from models.registry import Registry
from tests.chaos.bad_models import save
from tests.chaos.launch import die_loading
from tests.chaos.people import MODEL, MOMENTS, append_and_die, append_torn, decide_at_once
from tests.chaos.stream import SECOND_US, START_US, Counts, Fault, count, serve
from tests.chaos.surroundings import SmallDisk, Unavailable
from tests.pipelines import jobs

ROOT = Path(__file__).parents[2]
ROWS, BATCH = 600, 50
DISK_MB = 24  # with a report on it
RUNNER = "DirectRunner, micro-batches"


class Scene:
    """A registry with a live version and a better one, and records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = str(folder / "registry")
        self.slopes = {1: 1.0, 2: 2.0}
        opened = Registry(self.registry)
        for version, slope in self.slopes.items():
            opened.publish(MODEL, str(save(folder / f"saved-{version}", slope=slope)))
        self.log = ActivationLog(self.registry, MODEL)
        self.log.activate(1, by="chaos", reason="start")
        self.data = jobs.write_csv(folder / "data" / "records.csv", jobs.records(ROWS))
        self.output = folder / "out"

    def serve(self, actions: list[Callable[[], Any]]) -> list[str]:
        """Runs the stream; the actions come one behind each micro-batch."""
        outcome = serve(self.output, self.data, self.registry, actions, micro_batch_records=BATCH)
        assert not outcome.problems, outcome.problems
        return outcome.notices

    def counts(self) -> Counts:
        return count(jobs.read(self.output), self.registry, self.slopes, ROWS)

    def activate(self, version: int = 2, second: int | None = None, by: str = "chaos") -> None:
        at = None if second is None else START_US + second * SECOND_US
        ActivationLog(self.registry, MODEL).activate(version, at, by=by, reason="meanwhile")


def registry_away(scene: Scene, seconds: float) -> str:
    """The registry's file system is gone for a while, in the middle of the stream, with a swap ahead."""
    away = Path(f"{scene.registry}-away")
    begun: list[float] = []

    def leave() -> None:
        scene.activate(2, second=275)
        Path(scene.registry).rename(away)
        begun.append(time.monotonic())
        threading.Timer(seconds, lambda: away.rename(scene.registry)).start()

    scene.serve([lambda: None, lambda: None, leave])
    return f"away for {seconds:g} s; the records waited, and the swap came at its time"


def deleted_while_live(scene: Scene, _: float) -> str:
    """The folder of the live version is deleted; the process that has it goes on, a new one goes back and says so."""
    scene.activate(2, second=120)
    gone = Path(Registry(scene.registry).path(MODEL, 2))
    kept = scene.folder / "gone"
    stopped: list[Any] = []

    def delete() -> None:
        shutil.copytree(gone, kept)
        shutil.rmtree(gone)

    stopped += scene.serve([lambda: None] * 4 + [delete])
    shutil.copytree(kept, gone)  # to compare with
    return "predicted on from memory"


def deleted_then_restarted(scene: Scene, _: float) -> str:
    """As before, and the process is stopped and another goes on: it has the version no more."""
    scene.activate(2, second=120)
    whole, part = scene.data.read_text().splitlines(keepends=True), 1 + 5 * BATCH
    scene.data.write_text("".join(whole[:part]))
    given = {"drain": "false", "micro_batch_records": BATCH}
    serve(scene.output, scene.data.parent, scene.registry, [], **given)
    (scene.data.parent / "more.csv").write_text("".join([whole[0], *whole[part:]]))
    gone, kept = Path(Registry(scene.registry).path(MODEL, 2)), scene.folder / "gone"
    shutil.move(gone, kept)
    # Another process: nothing in memory.
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve_again, args=(str(scene.output), str(scene.data.parent), scene.registry, given))
    process.start()
    process.join()
    assert process.exitcode == 0
    shutil.move(kept, gone)
    [back] = [entry for entry in scene.log.entries() if getattr(entry, "kind", "") == "rollback"]
    return f"entry {back.sequence}: {back.reason[:90]}"  # type: ignore[union-attr]


def _serve_again(output: str, data: str, registry: str, given: dict[str, Any]) -> None:
    serve(Path(output), Path(data), registry, [], **given)


def disk_full(scene: Scene, _: float) -> str:
    """The output's disk is full in the middle; then there is room again, and the same command is given again."""
    disk = SmallDisk(scene.output, DISK_MB)
    try:
        disk.fill(leave_bytes=100_000)  # some micro-batches
        given = {"input": scene.data, "registry": scene.registry, "model": MODEL, "time": "time", "keep": "id,a,b"}
        given |= {"columns": "id:int64,a:float64,b:float64", "output": scene.output, "micro_batch_records": BATCH}
        command = [sys.executable, "-m", "pipelines.cli", "run", "serve", "--quiet"]
        command = disk.enter(command + [part for name, value in given.items() for part in ("--param", f"{name}={value}")])
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        full = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert full.returncode == 1, full
        assert "No space left on device" in full.stderr and "again" in full.stderr, full
        done = len(list((disk.inside / "predictions").glob("part-*")))
        disk.free()
        again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        shutil.copytree(disk.inside, scene.folder / "kept")
    finally:
        disk.close()
    scene.output = scene.folder / "kept"
    said = full.stderr.strip().splitlines()[-1].replace(str(disk.folder), "OUT")
    return f"after {done} micro-batches: {said}"


def clock_jumps(scene: Scene, _: float) -> str:
    """The wall clock goes back a day, then forward two; an activation comes in between."""
    real_now, offset = activation_log.now_text, [0.0]

    def now() -> str:
        shifted = datetime.datetime.fromisoformat(real_now()) + datetime.timedelta(seconds=offset[0])
        return shifted.isoformat(timespec="milliseconds")

    def jump(seconds: float) -> Callable[[], None]:
        return lambda: offset.__setitem__(0, seconds)

    with mock.patch.object(activation_log, "now_text", now):
        scene.serve([jump(-86_400.0), scene.activate, jump(172_800.0), lambda: scene.activate(1, by="somebody")])
    return "a day back, two forward: versions go by event time and by the log's order"


def killed_while_loading(scene: Scene, _: float) -> str:
    """The worker is killed with SIGKILL at the moment it reads the new version; the job is started again."""
    scene.activate(2, second=225)
    context = multiprocessing.get_context("spawn")
    for die in (True, False):
        arguments = (str(scene.output), str(scene.data), scene.registry, 2 if die else None)
        process = context.Process(target=_serve_and_die, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == (-signal.SIGKILL if die else 0)
    return "SIGKILL while the new version was read; a restart went on from the last commit"


def _serve_and_die(output: str, data: str, registry: str, version: int | None) -> None:
    if version is not None:
        die_loading(version)
    serve(Path(output), Path(data), registry, [], micro_batch_records=BATCH)


def entry_torn(scene: Scene, seconds: float) -> str:
    """Half of an entry lies in the log, as a copy that was cut off leaves it; then the whole one."""

    def tear() -> None:
        torn = append_torn(scene.registry, 2, START_US + 275 * SECOND_US)
        threading.Timer(min(seconds, 5.0), torn.mend).start()

    scene.serve([lambda: None, lambda: None, tear])
    return f"{min(seconds, 5.0):g} s with half an entry: the records waited, and the swap came at its time"


def writer_killed(scene: Scene, _: float) -> str:
    """Somebody's process is killed while it appends to the log: before, during and behind the moment the entry appears."""
    scene.serve([lambda moment=moment: append_and_die(scene.registry, moment) for moment in MOMENTS] + [scene.activate])
    return "killed at three moments of writing an entry: it is there as a whole or not at all"


def two_operators(scene: Scene, _: float) -> str:
    """Two people decide at once, behind every micro-batch, each having looked at the same log."""
    told: list[str] = []
    scene.serve([lambda: told.extend(decide_at_once(scene.registry))] * 8)
    assert len(told) == 8, told
    return f"8 times at once, 8 times one was told: {told[0][:60]}"


FAULTS: dict[str, Callable[[Scene, float], str]] = {
    "registry unreachable": registry_away,
    "version's folder deleted while live": deleted_while_live,
    "the same, and the worker restarted": deleted_then_restarted,
    "disk full": disk_full,
    "clock jumps": clock_jumps,
    "worker killed while it loads a version": killed_while_loading,
    "entry of the log torn": entry_torn,
    "writer of the log killed in mid-write": writer_killed,
    "two operators at once": two_operators,
}


def run_faults(folder: Path, *, quick: bool) -> Iterator[Fault]:
    """Runs them all, one after the other.

    Args:
        folder: to work in.
        quick: the registry is away for two seconds instead of a minute.
    """
    for number, (name, cause) in enumerate(FAULTS.items()):
        scene = Scene(folder / str(number))
        try:
            said = cause(scene, 2.0 if quick else 60.0)
        except Unavailable as lack:
            yield Fault(name, RUNNER, None, f"left out: {lack}")
            continue
        yield Fault(name, RUNNER, scene.counts(), said)
