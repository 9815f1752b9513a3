"""Faults under a continuous job on Flink, from topic to topic: one job, one stream, one fault after the other."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from models.registry import Registry
from tests.chaos.bad_models import save
from tests.chaos.live import LiveJob
from tests.chaos.people import MODEL, MOMENTS, append_and_die, append_torn, decide_at_once
from tests.chaos.stream import Fault
from tests.chaos.surroundings import JumpingClock, SmallDisk, Unavailable, wait_until
from tests.kafka import Cluster

RUNNER = "Flink, continuous"
DISK_MB = 24
DAY_S = 86_400


def registry_away(job: LiveJob, seconds: float) -> str:
    """The registry's file system is gone for a while, with a swap ahead."""
    job.activate(2)
    away = Path(f"{job.registry}-away")
    Path(job.registry).rename(away)
    time.sleep(seconds)
    away.rename(job.registry)
    job.until_predicted(2)
    return f"away for {seconds:g} s; the records waited, and the swap came at its time"


def deleted_while_live(job: LiveJob, _: float) -> str:
    """The folder of the live version is deleted."""
    with job.without(2):
        job.caught_up()
        job.activate(1)
        job.until_predicted(1)
    return "predicted on from memory, until another version was activated"


def deleted_then_restarted(job: LiveJob, _: float) -> str:
    """The folder of the live version is deleted, and all processes of the job are killed."""
    job.activate(2)
    job.until_predicted(2)
    with job.without(2):
        job.kill()
        job.start()
        wait_until(lambda: "put its folder back" in job.told(), "being told what to do", 120)
        said = next(line for line in reversed(job.told().splitlines()) if "put its folder back" in line)
    job.caught_up()
    return f"waited until it was back: {said[said.index('version 2') :]}"


def disk_full(job: LiveJob, seconds: float) -> str:
    """There is no room for checkpoints."""
    assert job.disk is not None
    job.disk.fill()
    time.sleep(max(5.0, min(seconds, 15.0)))
    job.disk.free()
    job.caught_up()
    return "no room for checkpoints for some seconds; Flink went back to the last one and on"


def clock_jumps(job: LiveJob, _: float) -> str:
    """The job's clock, in Python and in Java, goes back a day and then forward two."""
    assert job.clock is not None
    for version, seconds in ((1, -DAY_S), (2, DAY_S)):
        job.clock.jump(seconds)
        job.caught_up()
        job.activate(version)
        job.until_predicted(version)
    job.clock.jump(0)
    job.caught_up()
    return "a day back, two forward, and right again, with a swap in each"


def entry_torn(job: LiveJob, seconds: float) -> str:
    """Half of an entry lies in the log, then the whole one."""
    torn = append_torn(job.registry, 1)
    time.sleep(min(seconds, 5.0))
    torn.mend()
    job.until_predicted(1)
    return f"{min(seconds, 5.0):g} s with half an entry: the records waited, and the swap came at its time"


def writer_killed(job: LiveJob, _: float) -> str:
    """Somebody's process is killed while it appends to the log."""
    for moment in MOMENTS:
        append_and_die(job.registry, moment)
    job.activate(2)
    job.until_predicted(2)
    return "killed at three moments of writing an entry: it is there as a whole or not at all"


def two_operators(job: LiveJob, _: float) -> str:
    """Two people decide at once, each having looked at the same log."""
    told: list[str] = []
    for _ in range(8):
        told += decide_at_once(job.registry)
        job.caught_up()
    assert len(told) == 8, told
    return f"8 times at once, 8 times one was told: {told[0][:60]}"


def killed_while_loading(job: LiveJob, _: float) -> str:
    """All processes of the job are killed while it reads a new version for the first time."""
    job.slopes[3] = 3.0
    Registry(job.registry).publish(MODEL, str(save(job.folder / "saved-3", slope=3.0)))
    wait_until(lambda: job.has_ended, "the job's death", 60)
    assert job.status == -signal.SIGKILL
    job.start()
    job.activate(3)
    job.until_predicted(3)
    return "SIGKILL while the new version was read; a restart went on from the last checkpoint"


FAULTS: dict[str, Callable[[LiveJob, float], str]] = {
    # The first one that starts the job again: until then it dies when it reads version 3.
    "worker killed while it loads a version": killed_while_loading,
    "registry unreachable": registry_away,
    "version's folder deleted while live": deleted_while_live,
    "the same, and all processes restarted": deleted_then_restarted,
    "disk full": disk_full,
    "clock jumps": clock_jumps,
    "entry of the log torn": entry_torn,
    "writer of the log killed in mid-write": writer_killed,
    "two operators at once": two_operators,
}
SLOW = ("the same, and all processes restarted",)


def run_live_faults(folder: Path, kafka: Cluster, *, quick: bool) -> Iterator[Fault]:
    """Runs them all in one stream.

    Args:
        folder: to work in.
        kafka: a broker.
        quick: the registry is away for two seconds instead of a minute, and what is slow is left out.
    """
    folder.mkdir(parents=True)
    lacks: dict[str, str] = {}
    disk = clock = None
    try:
        disk = SmallDisk(folder / "out", DISK_MB)
    except Unavailable as lack:
        lacks["disk full"] = str(lack)
    try:
        clock = JumpingClock(folder)
    except Unavailable as lack:
        lacks["clock jumps"] = str(lack)
    job = LiveJob(folder, kafka, disk, clock, dies_loading=3)
    said: dict[str, tuple[int, int, str]] = {}
    try:
        job.start()
        job.until_predicted(1)
        for name, cause in FAULTS.items():
            if name in lacks or (quick and name in SLOW):
                continue
            begin = job.sent
            told = cause(job, 2.0 if quick else 60.0)
            job.caught_up()
            said[name] = begin, job.sent, told
        job.finish()
        for name in FAULTS:
            if name in said:
                begin, end, told = said[name]
                yield Fault(name, RUNNER, job.counts(begin, end), told)
            elif name in lacks:
                yield Fault(name, RUNNER, None, f"left out: {lacks[name]}")
    finally:
        job.close()
        if disk is not None:
            disk.close()
