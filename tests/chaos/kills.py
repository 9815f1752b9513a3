"""kill -9 while a stream trains its own model, on any runner: `make kills`, or `python -m tests.chaos.kills --runner spark`.

At each of the seeded moments either the job's process is killed, in which the learner works, or the engine (the JVM of Spark or
Flink with its embedded cluster); then the same command is given again. A moment is the n-th time that the job does something to
a file of its output or its registry, or is just about to learn. In the end predictions, evaluations, dead letters and the bytes
of all versions must be those of a run on the DirectRunner that nobody disturbed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click

from pipelines.job import JobSpec
from tests.pipelines import electricity

DAYS = 12
SEED = 20261125
RUNNERS = ("direct", "prism", "spark", "flink")
# What Python does to files, as the interpreter's own audit events tell; any of them may be the last thing a process does.
FILE_EVENTS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
LEARNS = "midstream.learns"
ENGINE_DIED = 3


class Kills(NamedTuple):
    """What was tried, and what came of it.

    Attributes:
        moments: who was killed at which moment.
        events: moments that a run has if nobody disturbs it.
        versions: published.
        records: predicted.
    """

    moments: list[tuple[str, int]]
    events: int
    versions: int
    records: int


def job(output: Path, data: Path, runner: str) -> JobSpec:
    """A version every twelve hours of labels, two days a micro-batch."""
    return electricity.job(output, data, {"run": {"runner": runner}}, micro_batch="2d", learn_every="12h", warm_up_rows="96")


def _run(output: Path, data: Path, runner: str, victim: str, die_at: int | None, counted: Any) -> None:
    """Runs the job in this process and counts its moments; at one of them, the victim is killed."""
    from models.learning import LearningModel
    from pipelines.execute import Execution
    from runners.engines import EngineError

    execution = Execution(job(output, data, runner))

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == LEARNS or (event in FILE_EVENTS and str(output) in str(args[0] if args else "")):
            counted.value += 1
            if counted.value == die_at:
                server = getattr(execution._graph, "_server", None)
                os.kill(os.getpid() if victim == "job" or server is None else server.process.pid, signal.SIGKILL)

    learn = LearningModel.step

    def learn_and_tell(self: LearningModel, tensors: Any) -> Any:
        sys.audit(LEARNS)
        return learn(self, tensors)

    LearningModel.step = learn_and_tell  # type: ignore[method-assign]
    sys.addaudithook(hook)
    try:
        execution.run()
    except EngineError:
        os._exit(ENGINE_DIED)


def kill(folder: Path, runner: str, moments: int, seed: int = SEED, tell: Any = None) -> Kills:
    """Kills a job at seeded moments and compares what comes out in the end.

    Args:
        folder: an empty one.
        runner: direct, prism, spark or flink.
        moments: how many kills.
        seed: of the moments and victims.
        tell: is told each kill in a line of text.

    Raises:
        AssertionError: something differs from the undisturbed run, or a kill did not kill.
    """
    # A server that has imported all forks each try: seconds instead of the import of TensorFlow each time.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tensorflow", "apache_beam", "tests.pipelines.electricity"])
    data = electricity.write_days(folder / "days.csv", DAYS, spoil=True)
    undisturbed, killed = folder / "undisturbed", folder / "killed"

    def attempt(output: Path, where: str, victim: str = "job", die_at: int | None = None) -> tuple[int, int]:
        counted = processes.Value("q", 0, lock=False)
        process = processes.Process(target=_run, args=(output, data, where, victim, die_at, counted))
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode, counted.value

    status, events = attempt(undisturbed, "direct")
    assert status == 0, f"the undisturbed run ended with {status}"
    draw, done = random.Random(seed), []
    victims = ["job"] if runner == "direct" else ["job", "engine"]
    for number in range(moments):
        victim = victims[number % len(victims)]
        # Few enough that twenty of them do not get through the run, many enough to get beyond a micro-batch.
        moment = draw.randint(1, max(events * 5 // (3 * max(moments, 10)), 2))
        started = time.monotonic()
        status, _ = attempt(killed, runner, victim, moment)
        # An engine that had not been started yet could not be killed: the job itself was then.
        assert status in (-signal.SIGKILL, ENGINE_DIED), f"ended with {status} after {done}"
        done.append(("engine" if status == ENGINE_DIED else "job", moment))
        if tell is not None:
            tell(f"{number + 1}: {done[-1][0]} killed at moment {moment} after {time.monotonic() - started:.1f} s")
    assert any((killed / "checkpoint" / "commits").iterdir()), "no try got beyond its first micro-batch"
    status, _ = attempt(killed, runner)
    assert status == 0, f"the last run ended with {status}"
    electricity.assert_same_outputs(undisturbed, killed)
    assert not list(killed.glob("*/.incoming-*")), "files of killed tries were left in an output folder"
    return Kills(done, events, len(electricity.digests(killed)), electricity.read(killed, "predictions").num_rows)


@click.command()
@click.option(
    "--runner", "runners", multiple=True, type=click.Choice(RUNNERS), default=("direct", "spark", "flink"), show_default=True
)
@click.option("--moments", default=20, show_default=True, help="On each runner.")
@click.option("--seed", default=SEED, show_default=True)
def main(runners: tuple[str, ...], moments: int, seed: int) -> None:
    """Kill a job that learns at seeded moments; for each runner a line of JSON."""
    for runner in runners:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="midstream-kills-") as folder:
            found = kill(Path(folder), runner, moments, seed, tell=lambda line: click.echo(line, err=True))
        told = {
            "runner": runner,
            "seed": seed,
            "kills": len(found.moments),
            "of_the_engine": sum(who == "engine" for who, _ in found.moments),
            "identical": True,
            "seconds": round(time.monotonic() - started, 1),
        }
        print(
            json.dumps(told | {"versions": found.versions, "records": found.records, "moments_in_a_run": found.events}),
            flush=True,
        )


if __name__ == "__main__":
    main()
