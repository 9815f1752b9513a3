"""`midstream cluster`, `submit` and `jobs`, from the outside: a Flink of real processes is started, used and ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import template as templates
from pipelines.execute import Execution
from pipelines.job import JobSpec
from runners import guard
from tests.conformance.modes import PIPELINE
from tests.conformance.outputs import OUTPUTS, canonical, difference
from tests.conformance.workload import make
from tests.kafka import Cluster
from tests.pipelines import jobs
from tests.pipelines.continuous import PARTITIONS, Tail, bits, lines, loop, write_template

ROOT = Path(__file__).parents[2]
ROWS = 3000
pytestmark = pytest.mark.timeout(400)


class Midstream:
    """The command, with clusters and remembered jobs of its own."""

    def __init__(self, folder: Path) -> None:
        self._env = os.environ | {"MIDSTREAM_CLUSTERS": str(folder), "PYTHONPATH": str(ROOT)}

    def __call__(self, *arguments: str, status: int = 0, stderr: bool = False) -> str:
        done = subprocess.run(self._command(arguments), cwd=ROOT, env=self._env, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        return done.stderr * (stderr or status != 0) + done.stdout * (status == 0)

    def start(self, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen(self._command(arguments), cwd=ROOT, env=self._env, stdout=file, stderr=file)

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "pipelines.cli", *arguments]


@pytest.fixture(scope="module")
def midstream(tmp_path_factory) -> Midstream:
    return Midstream(tmp_path_factory.mktemp("clusters"))


@pytest.fixture(scope="module")
def flink(midstream: Midstream) -> Iterator[dict[str, Any]]:
    assert "start a cluster here: midstream cluster up flink" in midstream(
        "submit", str(PIPELINE), "--runner", "flink", status=2
    )
    up = json.loads(midstream("cluster", "up", "flink").splitlines()[-1])
    try:
        assert "is up already" in midstream("cluster", "up", "flink", status=1)
        yield up
    finally:
        assert "flink is down" in midstream("cluster", "down", "flink")
    assert not any(map(guard._alive, up["processes"].values()))
    assert not Path(up["folder"]).exists()
    assert "was not up" in midstream("cluster", "down", "flink")


def test_a_template_is_submitted(midstream, flink, tmp_path: Path) -> None:
    workload = make(tmp_path, 4000)
    params = ["-p", f"folder={workload.folder}", "-p", f"output={tmp_path / 'flink'}"]
    midstream("submit", str(PIPELINE), "--runner", "flink", "--quiet", *params)
    assert [job["state"] for job in midstream.json("jobs", "list") if job["job"] == "conformance"] == ["FINISHED"]
    assert "0 running jobs are called 'conformance'" in midstream("jobs", "cancel", "conformance", status=1)
    assert "--detach is for continuous jobs" in midstream(
        "submit", str(PIPELINE), "--runner", "flink", "--detach", *params, status=2
    )
    found, here = templates.load(str(PIPELINE))
    Execution(found.fill({"folder": str(workload.folder), "output": str(tmp_path / "direct")}, here)).run()
    for name in OUTPUTS:
        assert difference(canonical(tmp_path / "direct", name), canonical(tmp_path / "flink", name)) is None


def test_a_continuous_job_is_listed_saved_cancelled_and_resumed_by_its_name(
    midstream, flink, kafka: Cluster, tmp_path: Path
) -> None:
    parts = lines(ROWS)
    for partition, part in enumerate(parts):
        (tmp_path / f"in-{partition}.jsonl").write_bytes(b"\n".join(part) + b"\n")
    source = {"path": str(tmp_path / "in-*.jsonl"), "out_of_orderness": "1000d"}
    batch = loop(source, tmp_path / "batch", tmp_path / "batch-registry", run={"mode": "batch"})
    Execution(JobSpec.model_validate(batch)).run()

    topic, into = kafka.topic(PARTITIONS), kafka.topic()
    from_topic = {"kafka": {"bootstrap": kafka.bootstrap, "topic": topic}, "out_of_orderness": "60s"}
    run = {"mode": "continuous", "trigger": "1s", "tick": "1h", "checkpoint_every": "1s"}
    publish = {"bootstrap": kafka.bootstrap, "predictions": into}
    job = loop(from_topic, tmp_path / "out", tmp_path / "registry", publish=publish, run=run)
    template = str(write_template(tmp_path / "loop.yaml", job))
    predictions = Tail(kafka.bootstrap, into)
    half = len(parts[0]) // 2
    kafka.send_parts(topic, [part[:half] for part in parts])

    told = midstream("submit", template, "--runner", "flink", "--quiet", "--detach")
    assert set(json.loads(told.splitlines()[-1])) == {"predictions"}
    [name] = [job["job"] for job in midstream.json("jobs", "list") if job["state"] == "RUNNING"]
    assert name.startswith("loop-")
    predictions.until(lambda rows: len(rows) > ROWS // 4)
    status = midstream.json("jobs", "status", "loop")
    assert (status["job"], status["state"], status["output"]) == (name, "RUNNING", str(tmp_path / "out"))
    assert status["checkpoints"] >= 1 and status["written"][into] > 0

    saved = midstream("jobs", "savepoint", "loop").strip()
    assert saved.startswith(f"file:{tmp_path / 'out' / 'checkpoint' / 'savepoints'}")
    midstream("jobs", "cancel", "loop")
    assert [job["state"] for job in midstream.json("jobs", "list") if job["job"] == name] == ["CANCELED", "NOT RUNNING"]
    assert midstream.json("jobs", "status", name)["state"] == "CANCELED"

    kafka.send_parts(topic, [part[half:] for part in parts])
    log = tmp_path / "resumed.txt"
    command = midstream.start(log, "jobs", "resume", "loop")
    # An open stream gives what its watermark has passed, by whole ticks.
    times = [json.loads(line)["time"] for part in parts for line in part]
    due = sum(at <= (max(times) - 60 - 40) // 3600 * 3600 for at in times)
    predictions.until(lambda rows: len(rows) >= due)
    # From the savepoint, or from the checkpoint that was taken between it and the end.
    assert midstream.json("jobs", "status", "loop")["resumed_from"].startswith(f"file:{tmp_path / 'out' / 'checkpoint'}/")
    # The command that waits for the job learns that it was cancelled, and does not start it again.
    midstream("jobs", "cancel", "loop")
    assert command.wait(60) == 0, log.read_text()
    assert "the job was cancelled; `midstream jobs resume loop-" in log.read_text()
    assert not any(job["state"] == "RUNNING" for job in midstream.json("jobs", "list"))

    rows = predictions.read(2.0)
    predictions.close()
    names = ("sequence", "id", "prediction", "score", "version", "digest", "policy")
    known = {row["id"]: row for row in jobs.read(tmp_path / "batch").to_pylist()}
    assert len({row["id"] for row in rows}) == len(rows) == due
    assert bits(rows, names) == bits([known[row["id"]] for row in rows], names)
    assert json.loads(log.read_text().splitlines()[-1])["predictions"] == due
    assert "no continuous job 'other' was submitted" in midstream("jobs", "resume", "other", status=1)


def test_kafka_comes_up_and_goes(midstream) -> None:
    up = json.loads(midstream("cluster", "up", "kafka"))
    try:
        [told] = [one for one in midstream.json("cluster", "status") if one["cluster"] == "kafka"]
        assert (told["address"], told["processes"]) == (up["address"], f"broker={up['processes']['broker']}")
        kafka = Cluster(SimpleNamespace(bootstrap=up["address"]))
        topic = kafka.topic()
        kafka.send(topic, [{"a": 1}])
        assert kafka.read(topic) == [{"a": 1}]
        port = up["address"].rpartition(":")[2]
        assert f"port {port} is in use" in midstream("cluster", "up", "spark", "--port", port, status=1)
    finally:
        midstream("cluster", "down", "kafka")
    assert not any(map(guard._alive, up["processes"].values())) and not Path(up["folder"]).exists()


def test_a_template_is_submitted_to_spark(midstream, tmp_path: Path) -> None:
    workload = make(tmp_path, 4000)
    found, here = templates.load(str(PIPELINE))
    Execution(found.fill({"folder": str(workload.folder), "output": str(tmp_path / "direct")}, here)).run()
    nowhere = ("--master", "spark://127.0.0.1:1", "--workers", "localhost:1")
    assert "there is no Spark master at spark://127.0.0.1:1" in midstream(
        "submit", str(PIPELINE), "--runner", "spark", *nowhere, status=1
    )
    up = json.loads(midstream("cluster", "up", "spark"))
    try:
        # Relative paths, as a user gives them: workers are somewhere else.
        output = os.path.relpath(tmp_path / "spark", ROOT)
        submit = ["submit", str(PIPELINE), "--runner", "spark", "-p", f"folder={workload.folder}", "-p", f"output={output}"]
        plan = midstream(*submit, "--dry-run", stderr=True)
        assert f"plan: {PIPELINE} on spark at {up['address']}" in plan and "the cluster has Beam's jars" in plan
        assert json.loads(plan[plan.index("{\n") :])["output"] == str(tmp_path / "spark")
        assert not (tmp_path / "spark").exists()
        midstream(*submit, "--quiet")
    finally:
        midstream("cluster", "down", "spark")
    assert not any(map(guard._alive, up["processes"].values())) and not Path(up["folder"]).exists()
    for name in OUTPUTS:
        assert difference(canonical(tmp_path / "direct", name), canonical(tmp_path / "spark", name)) is None
