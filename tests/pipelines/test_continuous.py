"""A continuous job on Flink, from topic to topic: a batch's predictions, to the last bit, whatever is killed on the way."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from models.activation_log import ActivationLog
from models.log_store import TopicPlace
from models.log_topic import make_topic
from models.registry import Registry
from pipelines.execute import Execution
from pipelines.job import JobSpec
from tests.kafka import Cluster
from tests.pipelines import jobs
from tests.pipelines.continuous import PARTITIONS, Command, Tail, bits, lines, loop, write_template

ROWS = 6000
NAMES = ("sequence", "id", "prediction", "score", "version", "digest", "policy")
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def records() -> list[list[bytes]]:
    return lines(ROWS)


@pytest.fixture(scope="module")
def expected(records, tmp_path_factory) -> tuple[Path, JobSpec]:
    """The same loop as a batch over files, a file a partition."""
    folder = tmp_path_factory.mktemp("batch")
    for partition, part in enumerate(records):
        (folder / f"in-{partition}.jsonl").write_bytes(b"\n".join(part) + b"\n")
    # Files come one after the other, so rows of the second one would be late by a watermark of all files together.
    source = {"path": str(folder / "in-*.jsonl"), "out_of_orderness": "1000d"}
    job = JobSpec.model_validate(loop(source, folder / "out", folder / "registry", run={"mode": "batch"}))
    Execution(job).run()
    return folder / "out", job


def test_a_closed_loop_killed_twice_gives_the_batch_s_bits(kafka: Cluster, records, expected, tmp_path) -> None:
    topic = kafka.topic(PARTITIONS)
    kafka.send_parts(topic, records)
    topics = {name: kafka.topic() for name in ("predictions", "dead_letters", "evaluations")}
    source = {"kafka": {"bootstrap": kafka.bootstrap, "topic": topic}, "out_of_orderness": "60s"}
    publish = {"bootstrap": kafka.bootstrap, **topics}
    run = {"mode": "continuous", "tick": "1h", "checkpoint_every": "1s"}
    job = loop(source, tmp_path / "out", tmp_path / "registry", publish=publish, run=run)
    command = Command(write_template(tmp_path / "loop.yaml", job), tmp_path / "log.txt")
    predictions = Tail(kafka.bootstrap, topics["predictions"])
    try:
        for share in (0.2, 0.6):
            predictions.until(lambda rows, share=share: len(rows) > share * ROWS)
            command.kill()
            command.start()
        assert command.wait() == 0, command.told()
        rows = predictions.until(lambda rows: len(rows) >= ROWS, 10)
    finally:
        command.kill()
        predictions.close()
    output, _ = expected
    batch = jobs.read(output).to_pylist()
    assert bits(rows, NAMES) == bits(batch, NAMES)
    assert len({row["version"] for row in rows}) > 3
    evaluations = Tail(kafka.bootstrap, topics["evaluations"])
    columns = ("sequence", "label", "prediction", "version")
    assert bits(evaluations.until(lambda rows: len(rows) >= ROWS, 10), columns) == bits(
        jobs.read(output, "evaluations").to_pylist(), columns
    )
    evaluations.close()
    letters = Tail(kafka.bootstrap, topics["dead_letters"])
    assert [letters.read(1.0)[:3], len(letters.rows)] == [[], 0]
    letters.close()
    counts = json.loads(command.told().strip().splitlines()[-1])
    assert counts == {"predictions": ROWS, "dead_letters": 0, "evaluations": ROWS}


def test_versions_go_live_in_a_running_job_of_two_tasks_that_is_stopped_and_killed(kafka: Cluster, tmp_path) -> None:
    registry = tmp_path / "registry"
    jobs.publish(registry, jobs.save_module(tmp_path / "line"))
    steep = Registry(str(registry)).publish("line", str(jobs.save_module(tmp_path / "steep", slope=-2.0))).version
    topic, into = kafka.topic(2), kafka.topic()
    params = {
        "bootstrap": kafka.bootstrap,
        "topic": topic,
        "columns": "id:int64,a:float32,b:float32",
        "registry": registry,
        "model": "line",
        "keep": "id,a",
        "predictions_topic": into,
        "output": tmp_path / "out",
        "mode": "continuous",
        "every": "1s",
        "checkpoint_every": "1s",
    }
    command = Command(
        Path("serve-kafka"),
        tmp_path / "log.txt",
        *("--parallelism", "2"),
        *[part for name, value in params.items() for part in ("-p", f"{name}={value}")],
    )
    predictions = Tail(kafka.bootstrap, into)
    # An operator who has the versions, and no disk in common with the job.
    elsewhere = tmp_path / "elsewhere"
    sent = 0

    def send(count: int) -> None:
        nonlocal sent
        numbers = range(sent, sent + count)
        parts = [[json.dumps({"id": n, "a": (n % 100) / 10, "b": 0.5}).encode() for n in numbers if n % 2 == p] for p in (0, 1)]
        kafka.send_parts(topic, parts)
        sent += count
        predictions.until(lambda rows: len(rows) >= sent)

    try:
        send(200)
        place = TopicPlace(kafka.bootstrap, f"{topic}-log")
        for version, of in ((steep, registry), (1, elsewhere), (steep, elsewhere)):
            log = ActivationLog(str(of), "line")
            assert log.activate(version, by="test", reason="a swap").effective_from_us > 0
            while not any(row["version"] == version for row in predictions.read()[sent - 1 :]):
                send(10)
            if not elsewhere.exists():  # from here on the log is in a topic; the running job follows it there
                shutil.copytree(registry, elsewhere, ignore=shutil.ignore_patterns("activations"))
                make_topic(place)
                assert log.move(place) == ActivationLog(str(elsewhere), "line").move(place)
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 0, command.told()
        command.start()
        send(200)
        for share in range(3):  # of each task something is not in a checkpoint yet
            send(50)
            if share < 2:
                command.kill()
                command.start()
    finally:
        command.process.send_signal(signal.SIGTERM)
        command.wait()
        predictions.close()
    rows = predictions.rows
    assert sorted(row["id"] for row in rows) == list(range(sent))
    assert json.loads(command.told().strip().splitlines()[-1])["predictions"] == sent, "each task counts its own"
    slopes = {1: 1.0, steep: -2.0}
    assert all(abs(slopes[row["version"]] * row["a"] + 0.5 - row["score"]) < 1e-5 for row in rows)
    timeline = ActivationLog(str(elsewhere), "line").timeline()
    times = np.array([np.datetime64(row["event_time"].rstrip("Z")) for row in rows]).astype("datetime64[us]").astype(np.int64)
    assert timeline.as_of(times).tolist() == [row["version"] for row in rows]
