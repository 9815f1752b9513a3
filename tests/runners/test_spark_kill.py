"""kill -9 of Spark's executor, its driver and the submitting client, while a micro-batch predicts: the output is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.serving import ModelCache
from pipelines import template as templates
from pipelines.execute import Execution
from runners import guard
from runners.engines import EngineError
from runners.local_spark import spark_cluster
from tests.conformance.modes import PIPELINE
from tests.conformance.outputs import OUTPUTS, canonical, difference
from tests.conformance.workload import Workload, make
from transforms.inference import BatchModelHandler
from transforms.model_timeline import Request

RECORDS = 8000


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return make(tmp_path_factory.mktemp("workload"), RECORDS)


@pytest.fixture(scope="module")
def undisturbed(workload: Workload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    execution(workload, output, runner="direct").run()
    return output


def execution(workload: Workload, output: Path, **settings: Any) -> Execution:
    """Four micro-batches, the last of which lets go of what is held."""
    found, here = templates.load(str(PIPELINE))
    given = {"folder": workload.folder, "output": output, "mode": "micro-batch", "records": RECORDS // 3}
    job = found.fill({name: str(value) for name, value in given.items()}, here)
    return Execution(job.model_copy(update={"run": job.run.model_copy(update=settings)}))


def same(output: Path, undisturbed: Path) -> None:
    for name in OUTPUTS:
        assert difference(canonical(undisturbed, name), canonical(output, name)) is None


def at_a_prediction(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> list[int]:
    """Does something once, when rows are predicted for the n-th time, in this process, which is the worker."""
    original, calls = BatchModelHandler._predict, []

    def predict(self: BatchModelHandler, request: Request, cache: ModelCache) -> Any:
        calls.append(request.version)
        if len(calls) == number:
            act()
        return original(self, request, cache)

    monkeypatch.setattr(BatchModelHandler, "_predict", predict)
    return calls


def test_the_executor_is_killed(workload: Workload, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with spark_cluster() as cluster:
        killed = []

        def kill() -> None:
            for pid in guard._members(cluster.worker.pid):
                if b"CoarseGrainedExecutorBackend" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

        at_a_prediction(monkeypatch, 3, kill)
        run = execution(workload, tmp_path / "out", runner="spark", parallelism=2, master=cluster.master, preinstalled=True)
        outcome = run.run()
        assert killed
        assert outcome.finished
        same(tmp_path / "out", undisturbed)


def test_the_driver_is_killed(workload: Workload, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = execution(workload, tmp_path / "out", runner="spark", parallelism=2)
    at_a_prediction(monkeypatch, 3, lambda: run._graph._server.process.kill())  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="died while it ran a job; the same command goes on where it stopped"):
        run.run()
    assert not (tmp_path / "out" / "checkpoint" / "commits" / "000003.json").exists()
    execution(workload, tmp_path / "out", runner="spark", parallelism=2).run()
    same(tmp_path / "out", undisturbed)


def test_the_client_is_killed(workload: Workload, undisturbed: Path, tmp_path: Path) -> None:
    client = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from tests.runners.test_spark_kill import Workload, at_a_prediction, execution
        import pytest
        run = execution(Workload(Path({str(workload.folder)!r}), {RECORDS}, 0), Path({str(tmp_path / "out")!r}), runner="spark")
        def end():
            print(run._graph._server.process.pid, run._graph._supervisor._guard.pid, run._graph._server.folder, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        at_a_prediction(pytest.MonkeyPatch(), 3, end)
        run.run()
    """)
    here = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", client],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": here},
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    server, watcher, folder = ended.stdout.split()
    _wait_for_end(int(watcher))
    assert not guard._alive(int(server))
    assert not Path(folder).exists()
    execution(workload, tmp_path / "out", runner="spark").run()
    same(tmp_path / "out", undisturbed)


def _wait_for_end(pid: int) -> None:
    import select

    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([handle], [], [], 30)[0], "what the client started was not ended"
    os.close(handle)
