"""Whatever of a cluster is killed, the output of a continuous job is that of a batch over the same records, to the last bit.

One job on a standalone Flink, and one after the other everything it consists of is killed with SIGKILL: the Python worker, the
TaskManager, the JobManager, the Kafka broker, and the command that submitted it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.execute import Execution
from pipelines.job import JobSpec
from runners import flink_jobs
from runners.local_flink import FlinkCluster, start_flink
from runners.processes import Supervisor
from tests.kafka import Cluster
from tests.pipelines import jobs
from tests.pipelines.continuous import PARTITIONS, Command, Tail, bits, lines, loop, write_template

ROWS = 12_000
SHARES = 6  # the records come in so many parts; behind each but the last something is killed
pytestmark = pytest.mark.timeout(900)


def kill_worker(cluster: FlinkCluster) -> None:
    """Ends the Python workers that run for the job; the pool starts others when they are asked for."""
    pids = [int(pid) for pid in re.findall(r"worker \S+ started, process (\d+)", (cluster.folder / "workers.log").read_text())]
    running = [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists()]
    assert running, "there was no worker to kill"
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def test_every_part_of_a_cluster_is_killed_once(kafka: Cluster, tmp_path) -> None:
    parts = lines(ROWS)
    for partition, part in enumerate(parts):
        (tmp_path / f"in-{partition}.jsonl").write_bytes(b"\n".join(part) + b"\n")
    source = {"path": str(tmp_path / "in-*.jsonl"), "out_of_orderness": "1000d"}
    batch = loop(source, tmp_path / "batch", tmp_path / "batch-registry", run={"mode": "batch"})
    Execution(JobSpec.model_validate(batch)).run()
    with Supervisor() as supervisor:
        cluster = start_flink(supervisor, tmp_path / "flink")
        bootstrap, topic = kafka.bootstrap, kafka.topic(PARTITIONS)
        topics = {name: kafka.topic() for name in ("predictions", "dead_letters")}
        run = {"mode": "continuous", "trigger": "1s", "tick": "1h", "checkpoint_every": "1s"}
        run |= {"master": cluster.master, "workers": cluster.workers, "preinstalled": True}
        publish = {"bootstrap": bootstrap, **topics}
        source = {"kafka": {"bootstrap": bootstrap, "topic": topic}, "out_of_orderness": "60s"}
        job = loop(source, tmp_path / "out", tmp_path / "registry", publish=publish, run=run)
        command = Command(write_template(tmp_path / "loop.yaml", job), tmp_path / "log.txt")
        predictions = Tail(bootstrap, topics["predictions"])

        def kill_taskmanager() -> None:
            cluster.taskmanagers[0].kill()
            cluster.start_taskmanager()

        def kill_jobmanager() -> None:
            cluster.jobmanager.kill()
            cluster.start_jobmanager()

        def kill_broker() -> None:
            kafka.broker.kill()
            kafka.broker.start()

        def kill_command() -> None:
            # The cluster goes on with the job; the new command ends that and takes over.
            before = {job.id for job in flink_jobs.jobs(cluster.master)}
            command.kill()
            command.start()
            deadline = time.monotonic() + 240
            while not any(job.id not in before and job.state == "RUNNING" for job in flink_jobs.jobs(cluster.master)):
                assert time.monotonic() < deadline and command.process.poll() is None, command.told()
                time.sleep(0.2)

        faults: list[tuple[str, Callable[[], None]]] = [
            ("worker", lambda: kill_worker(cluster)),
            ("TaskManager", kill_taskmanager),
            ("JobManager", kill_jobmanager),
            ("broker", kill_broker),
            ("command", kill_command),
        ]
        assert len(faults) == SHARES - 1
        try:
            sent = 0
            for share in range(SHARES):
                begin, end = (len(parts[0]) * place // SHARES for place in (share, share + 1))
                kafka.send_parts(topic, [part[begin:end] for part in parts])
                # What has been sent is predicted up to the last tick; killed while the next part is under way.
                predictions.until(lambda rows, sent=sent: len(rows) > sent, 240)
                if share < len(faults):
                    name, kill = faults[share]
                    began, had = time.monotonic(), len(predictions.rows)
                    kill()
                    predictions.until(lambda rows, had=had, sent=sent: len(rows) > had or len(rows) > sent + 1000, 240)
                    print(f"{name} killed at {had} predictions, the next one after {time.monotonic() - began:.1f} s")
                sent = PARTITIONS * end - 800  # the last two hours wait for the watermark
            # An open stream gives what its watermark has passed, by whole ticks: here of an hour, a minute out of order.
            times = [json.loads(line)["time"] for part in parts for line in part]
            passed = (max(times) - 60 - 40) // 3600 * 3600
            whole = sum(at <= passed for at in times)
            last = predictions.until(lambda rows: len(rows) >= whole, 240)
        finally:
            command.process.send_signal(signal.SIGINT)
            command.wait()
            predictions.close()
        letters = Tail(bootstrap, topics["dead_letters"])
        assert letters.read(2.0) == []
        letters.close()
    names = ("sequence", "id", "prediction", "score", "version", "digest", "policy")
    known = {row["id"]: row for row in jobs.read(tmp_path / "batch").to_pylist()}
    assert len({row["id"] for row in last}) == len(last)
    assert len(last) == whole
    assert bits(last, names) == bits([known[row["id"]] for row in last], names)
    assert len({row["version"] for row in last}) > 5
    counts = [line for line in command.told().splitlines() if line.startswith("{")][-1]
    assert json.loads(counts)["predictions"] == len(last)
