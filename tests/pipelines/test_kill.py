"""kill -9 at any moment: after a restart the output is that of a run that was never killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines import electricity

DAYS = 30
KILLS = 20
SEED = 20261122
# The learner of the template `classify`, small: context of labels, windows of so many labels, classes found in the data.
ENSEMBLE = {
    "learner": {
        "algorithm": "ensemble_classifier",
        "every_rows": 40,
        "options": {"context": True, "memory_rows": 256, "trees": 4, "depth": 3, "grown": 1, "hidden": 8, "steps": 1},
    }
}
ENSEMBLE_DAYS = 12
# What Python does to files, as the interpreter's own audit events tell; any of them may be the last thing a process does.
FILE_EVENTS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}


def _run(output: Path, data: Path, die_at: int | None, counted: Any, changes: dict[str, Any]) -> None:
    """Runs the job in this process and counts its file events; at one of them, it is killed."""
    spec = electricity.job(output, data, changes, micro_batch="2d")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and str(output) in str(args[0] if args else ""):
            counted.value += 1
            if counted.value == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    electricity.run(spec)


@pytest.fixture(scope="module")
def processes() -> Any:
    # A server that has imported all forks each try: seconds instead of the import of TensorFlow each time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "apache_beam", "tests.pipelines.electricity"])
    return context


def _try(processes: Any, output: Path, data: Path, die_at: int | None, changes: dict[str, Any]) -> tuple[int, int]:
    counted = processes.Value("q", 0, lock=False)
    process = processes.Process(target=_run, args=(output, data, die_at, counted, changes))
    process.start()
    process.join()
    return process.exitcode, counted.value


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("changes", "days"), [({}, DAYS), (ENSEMBLE, ENSEMBLE_DAYS)], ids=["mlp", "ensemble"])
def test_killed_twenty_times(tmp_path: Path, processes: Any, changes: dict[str, Any], days: int) -> None:
    data = electricity.write_days(tmp_path / "days.csv", days, spoil=True)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    status, events = _try(processes, undisturbed, data, None, changes)
    assert status == 0
    draw, moments = random.Random(SEED), []
    print(f"seed {SEED}, {events} file events in a run")
    for _ in range(KILLS):
        # Few enough that twenty of them do not get through the run, many enough to get beyond a micro-batch.
        moments.append(draw.randint(1, events // 12))
        status, _ = _try(processes, killed, data, moments[-1], changes)
        assert status == -signal.SIGKILL, f"ended with {status} after kills at {moments}"
    assert any((killed / "checkpoint" / "commits").iterdir()), "no try got beyond its first micro-batch"
    status, _ = _try(processes, killed, data, None, changes)
    assert status == 0
    electricity.assert_same_outputs(undisturbed, killed)
    assert not list(killed.glob("*/.incoming-*")), "files of killed tries were left in an output folder"
