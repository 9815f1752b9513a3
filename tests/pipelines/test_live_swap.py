"""Versions that other processes publish and activate while a stream runs."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.activation_log import Activation, ActivationInPast, ActivationLog
from models.registry import Registry
from pipelines import template as templates
from pipelines.execute import Execution, Outcome
from pipelines.resolve import Resolved
from tests.pipelines import jobs
from tests.pipelines.electricity import read

SECOND_US = 1_000_000
START_US = int(jobs.START.astype("datetime64[us]").astype(np.int64))
BATCH = 200  # records, and so seconds, of a micro-batch


class AfterCommit:
    """A job's progress that does something behind a given micro-batch, while the stream stands still."""

    def __init__(self, actions: dict[int, Any]) -> None:
        self._actions, self._committed = actions, 0

    def committed(self, records: int, resolved: Resolved, parts: dict[str, list[Path]]) -> None:
        self._committed += 1
        if action := self._actions.get(self._committed):
            action()


def serve(tmp_path: Path, data: Path, actions: dict[int, Any], **params: Any) -> Outcome:
    template, here = templates.load("serve")
    given = {
        "input": str(data),
        "registry": str(tmp_path / "registry"),
        "model": "line",
        "time": "time",
        "columns": "id:int64,a:float64,b:float64",
        "keep": "id,a,b",
        "output": str(tmp_path / "out"),
        "micro_batch_records": BATCH,
    }
    return Execution(template.fill(given | params, here), progress=AfterCommit(actions)).run()


def slopes(tmp_path: Path) -> np.ndarray:
    """The slope that each version was saved with, by version; 0 is no version."""
    import tensorflow as tf

    registry = Registry(str(tmp_path / "registry"))
    paths = [registry.path("line", version) for version in registry.versions("line")]
    return np.array(
        [
            np.nan,
            *(
                tf.train.load_checkpoint(f"{p}/variables/variables").get_tensor("slope/.ATTRIBUTES/VARIABLE_VALUE")
                for p in paths
            ),
        ]
    )


def check_every_prediction(tmp_path: Path, rows: int) -> pa.Table:
    """Each record once, by the version that the log names, with the value that this version gives and under its digest."""
    table = read(tmp_path / "out", "predictions")
    assert sorted(table.column("id").to_pylist()) == list(range(rows))
    times, versions = table.column("event_time").cast(pa.int64()).to_numpy(), table.column("version").to_numpy()
    expected = ActivationLog(str(tmp_path / "registry"), "line").timeline().as_of(times)
    np.testing.assert_array_equal(versions, expected)
    a, b = (table.column(name).to_numpy().astype(np.float32) for name in "ab")
    np.testing.assert_allclose(
        table.column("score").to_numpy(), slopes(tmp_path)[versions].astype(np.float32) * a + b, rtol=1e-6
    )
    registry = Registry(str(tmp_path / "registry"))
    digests = {v: registry.manifest("line", v).digests.version for v in registry.versions("line")}
    assert table.column("digest").to_pylist() == [digests[version] for version in versions.tolist()]
    return table


@pytest.fixture
def data(tmp_path: Path) -> Path:
    jobs.publish(tmp_path / "registry", jobs.save_module(tmp_path / "saved" / "1", 1.0))
    return jobs.write_csv(tmp_path / "data" / "records.csv", jobs.records(2000))


def midstream(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pipelines.cli", *arguments], capture_output=True, text=True, check=False)


def at(second: int) -> str:
    return f"{np.datetime_as_string(jobs.START + np.timedelta64(second, 's'))}Z"


def test_another_process_swaps_the_model_at_a_boundary(tmp_path: Path, data: Path) -> None:
    better = jobs.save_module(tmp_path / "saved" / "2", 2.0)
    said: list[subprocess.CompletedProcess[str]] = []

    def publish() -> None:  # the stream is at second 599
        where = ["--registry", str(tmp_path / "registry"), "--model", "line"]
        said.append(midstream("publish", *where, "--activate", "--from", at(1234), str(better)))
        said.append(midstream("activate", *where, "1", "--from", at(500)))

    outcome = serve(tmp_path, data, {3: publish})
    assert outcome.problems == []
    assert said[0].returncode == 0, said[0].stderr
    # What the stream has served already is refused, and the message says from when on it is possible.
    assert said[1].returncode == 1
    assert "Traceback" not in said[1].stderr
    assert "serve" in said[1].stderr
    table = check_every_prediction(tmp_path, 2000)
    seconds = (table.column("event_time").cast(pa.int64()).to_numpy() - START_US) // SECOND_US
    np.testing.assert_array_equal(table.column("version").to_numpy(), np.where(seconds < 1234, 1, 2))
    assert outcome.summary is not None
    assert outcome.summary.swaps == 1


def test_two_activations_in_one_interval_a_rollback_and_one_for_later(tmp_path: Path, data: Path) -> None:
    registry, log = tmp_path / "registry", ActivationLog(str(tmp_path / "registry"), "line")
    for version in (2, 3, 4):
        jobs.publish(registry, jobs.save_module(tmp_path / "saved" / str(version), float(version)), activate=False)

    def two() -> None:
        log.activate(2, START_US + 700 * SECOND_US + 1, by="a", reason="first")  # rounded up to second 701, as the next one
        log.activate(3, START_US + 700 * SECOND_US + 999_999, by="b", reason="second")
        log.activate(4, START_US + 1500 * SECOND_US, by="a", reason="planned")

    def back() -> None:  # the stream is at second 1199
        log.rollback(by="a", reason="worse")

    serve(tmp_path, data, {2: two, 6: back})
    table = check_every_prediction(tmp_path, 2000)
    seconds = (table.column("event_time").cast(pa.int64()).to_numpy() - START_US) // SECOND_US
    expected = np.select([seconds < 701, seconds < 1200, seconds < 1500], [1, 3, 1], 4)
    np.testing.assert_array_equal(table.column("version").to_numpy(), expected)


def test_records_out_of_order_and_late_get_the_version_of_their_time(tmp_path: Path, data: Path) -> None:
    table = jobs.records(2000)
    order = np.random.default_rng(5).permutation(2000)
    near = np.argsort(np.arange(2000) + np.random.default_rng(6).integers(0, 300, 2000), kind="stable")
    for name, places in (("near", near), ("anywhere", order)):
        folder = tmp_path / name
        jobs.publish(folder / "registry", tmp_path / "saved" / "1")
        jobs.publish(folder / "registry", jobs.save_module(folder / "saved", 2.0), activate=False)
        shuffled = jobs.write_csv(folder / "data" / "records.csv", table.take(pa.array(places)))
        log = ActivationLog(str(folder / "registry"), "line")
        serve(folder, shuffled, {2: lambda log=log: log.activate(2, by="a", reason="as soon as possible")})
        versions = check_every_prediction(folder, 2000).column("version").to_numpy()
        assert set(versions) <= {1, 2}
        assert name == "anywhere" or set(versions) == {1, 2}


def test_an_activation_in_the_past_is_refused_and_changes_nothing(tmp_path: Path, data: Path) -> None:
    log = ActivationLog(str(tmp_path / "registry"), "line")
    jobs.publish(tmp_path / "registry", jobs.save_module(tmp_path / "saved" / "2", 2.0), activate=False)
    refused: list[str] = []

    def too_late() -> None:
        with pytest.raises(ActivationInPast) as error:
            log.activate(2, START_US + 399 * SECOND_US, by="a", reason="too late")
        refused.append(str(error.value))

    serve(tmp_path, data, {2: too_late})
    assert set(check_every_prediction(tmp_path, 2000).column("version").to_pylist()) == {1}
    assert "serve" in refused[0]


def _keep_publishing(registry: str, folder: str, count: int, started: Any, rounds: Any) -> None:
    started.set()
    for number in range(2, 2 + count):
        rounds.acquire()  # one go for every micro-batch, and then at the same time as the next
        jobs.publish(Path(registry), jobs.save_module(Path(folder) / str(number), float(number)))


def test_a_process_that_publishes_all_the_time(tmp_path: Path, data: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started, rounds = context.Event(), context.Semaphore(0)
    arguments = (str(tmp_path / "registry"), str(tmp_path / "saved"), 8, started, rounds)
    publisher = context.Process(target=_keep_publishing, args=arguments, daemon=True)
    publisher.start()
    assert started.wait(60)
    serve(tmp_path, data, dict.fromkeys(range(1, 9), rounds.release), micro_batch_records=100)
    threading.Thread(target=lambda: [rounds.release() for _ in range(8)]).start()
    publisher.join(60)
    assert publisher.exitcode == 0
    entries = [e for e in ActivationLog(str(tmp_path / "registry"), "line").entries() if isinstance(e, Activation)]
    assert len(entries) == 9
    check_every_prediction(tmp_path, 2000)
