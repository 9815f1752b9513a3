"""A continuous job on Flink while versions are swapped under it: lost, doubled, mislabelled, how late, and what it grows by.

    python -m bench.continuous [--rate 5000] [--seconds 60] [--swap-every 5] [--speed 1] [--json FILE] [--plot FILE.html]

Records go to Kafka at a steady rate, and the predictions that are committed are read back; each prediction is checked
against the version it names and the activation log. Memory is that of the job (worker and Flink in it), checkpoints are
Flink's; both are taken over the run, in quarters. With `--speed 12`, five minutes are an hour of the stream's own time.
With `--mode micro-batch` the same stream goes through micro-batches of a second on the DirectRunner.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from models.activation_log import ActivationLog
from models.kafka_client import KafkaClient
from models.registry import Registry
from runners.local_kafka import kafka_broker
from tests.pipelines import jobs

SLOPES = {1: 1.0, 2: -2.0}
START_S = 180.0


class Tail(threading.Thread):
    """Reads what is committed, with the moment at which it came."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__(daemon=True)
        self.rows: list[tuple[dict[str, Any], float]] = []
        self._settings = {"bootstrap.servers": bootstrap, "group.id": "tail", "isolation.level": "read_committed"}

    def run(self) -> None:
        consumer = Consumer(self._settings | {"auto.offset.reset": "earliest", "fetch.wait.max.ms": 10})
        consumer.assign([TopicPartition("out", 0, 0)])
        while True:
            for message in consumer.consume(5000, 0.05):
                if message.error() is None:
                    self.rows.append((json.loads(message.value()), time.time()))


def main() -> None:
    """Runs it and prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=5000, help="records/s")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--swap-every", type=float, default=5.0, help="seconds between activations")
    parser.add_argument("--speed", type=float, default=1.0, help="seconds of event time a second")
    parser.add_argument("--mode", choices=["continuous", "micro-batch"], default="continuous", help="on Flink, or DirectRunner")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="a page with memory and checkpoint size over time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="midstream-bench-") as folder, kafka_broker() as broker:
        found = measure(Path(folder), broker.bootstrap, options)
    sizes = found.pop("sizes")
    print(json.dumps(found))
    if options.plot:
        _plot(sizes, options.plot)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    sys.exit(bool(found["lost"] or found["doubled"] or found["mislabelled"]))


def measure(folder: Path, bootstrap: str, options: argparse.Namespace) -> dict[str, Any]:
    """Sends records for so long, swaps versions, and says what came of it."""
    registry = folder / "registry"
    jobs.publish(registry, jobs.save_module(folder / "one", SLOPES[1]))
    Registry(str(registry)).publish("line", str(jobs.save_module(folder / "two", SLOPES[2])))
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for made in admin.create_topics([NewTopic("in", 2, 1), NewTopic("out", 1, 1)]).values():
        made.result()
    params = {
        "bootstrap": bootstrap,
        "topic": "in",
        "columns": "id:int64,time:int64,a:float32,b:float32",
        "time": "time",
        "time_unit": "us",
        "registry": registry,
        "model": "line",
        "keep": "id,a",
        "predictions_topic": "out",
        "output": folder / "job",
        "mode": options.mode,
        "every": "1s",
    }
    if options.mode == "continuous":
        params["checkpoint_every"] = "2s"
    runner = "flink" if options.mode == "continuous" else "direct"
    given = [part for name, value in params.items() for part in ("-p", f"{name}={value}")]
    command = [sys.executable, "-m", "pipelines.cli", "run", "serve-kafka", "--runner", runner, *given]
    with (folder / "log.txt").open("wb") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log)
    tail = Tail(bootstrap)
    tail.start()
    try:
        return _drive(job, tail, folder, registry, bootstrap, options)
    finally:
        job.send_signal(signal.SIGINT)
        job.wait()


def _drive(
    job: subprocess.Popen[bytes],
    tail: Tail,
    folder: Path,
    registry: Path,
    bootstrap: str,
    options: argparse.Namespace,
) -> dict[str, Any]:
    producer, log = KafkaClient(bootstrap).producer(**{"linger.ms": 5}), ActivationLog(str(registry), "line")
    sent_at: list[float] = []
    zero = time.time()

    def send(until: int) -> None:
        while len(sent_at) < until:
            number = len(sent_at)
            now = time.time()
            at_us = int((zero + (now - zero) * options.speed) * 1e6)
            value = b'{"id": %d, "time": %d, "a": %.2f, "b": 0.5}' % (number, at_us, number % 1000 / 100)
            producer.produce("in", value, partition=number % 2)
            sent_at.append(now)
        producer.poll(0)

    began = time.time()
    while not tail.rows:  # the first prediction loads the model
        send(len(sent_at) + 1)
        time.sleep(0.5)
        assert time.time() - began < START_S and job.poll() is None, (folder / "log.txt").read_text()
    first, start, version = len(sent_at), time.time(), 1
    swaps: list[tuple[float, int]] = []
    sizes: list[tuple[int, int]] = []
    while (passed := time.time() - start) < options.seconds:
        send(first + int(passed * options.rate))
        if passed > options.swap_every * (len(swaps) + 1):
            version = 3 - version
            log.activate(version, by="bench", reason=f"swap {len(swaps)}")
            swaps.append((time.time(), version))
        if passed > len(sizes):
            sizes.append((_resident_kib(job.pid), _checkpoint_bytes(folder / "job" / "checkpoint" / "flink")))
        time.sleep(0.005)
    producer.flush()
    deadline = time.time() + 30
    while len(tail.rows) < len(sent_at) and time.time() < deadline:
        time.sleep(0.2)
    rows = list(tail.rows)
    ids = [row["id"] for row, _ in rows]
    times = np.array([np.datetime64(row["event_time"].rstrip("Z")) for row, _ in rows], "datetime64[us]").astype(np.int64)
    due = log.timeline().as_of(times)
    wrong = sum(
        row["version"] != want or abs(SLOPES[row["version"]] * row["a"] + 0.5 - row["score"]) > 1e-4
        for (row, _), want in zip(rows, due.tolist(), strict=True)
    )
    late = np.array([at - sent_at[row["id"]] for row, at in rows if row["id"] >= first])
    moments = [at for _, at in rows]
    versions = np.array([row["version"] for row, _ in rows])
    first_new = []
    for at, live in swaps:
        after = np.searchsorted(moments, at)
        new = np.flatnonzero(versions[after:] == live)
        if len(new):
            first_new.append(moments[after + int(new[0])] - at)
    quarter = max(len(sizes) // 4, 1)
    memory, checkpoints = (np.array(column, float) for column in zip(*sizes, strict=True))
    return {
        "sent": len(sent_at),
        "records_per_s": round((len(sent_at) - first) / options.seconds),
        "lost": len(set(range(len(sent_at))) - set(ids)),
        "doubled": len(ids) - len(set(ids)),
        "mislabelled": int(wrong),
        "swaps": len(swaps),
        "late_s_p50_p99_max": np.percentile(late, [50, 99, 100]).round(2).tolist(),
        "first_new_prediction_s_median_max": [round(float(np.median(first_new)), 2), round(max(first_new), 2)],
        "memory_mib_quarters": [round(float(np.median(part)) / 1024) for part in np.split(memory[: quarter * 4], 4)],
        "checkpoint_kib_quarters": [round(float(np.median(part)) / 1024) for part in np.split(checkpoints[: quarter * 4], 4)],
        "sizes": sizes,
    }


def _plot(sizes: list[tuple[int, int]], file: Path) -> None:
    import plotly.graph_objects as go

    memory, checkpoints = zip(*sizes, strict=True)
    figure = go.Figure()
    figure.add_scatter(y=[kib / 1024 for kib in memory], name="memory of worker and Flink, MiB")
    figure.add_scatter(y=[size / 1024 for size in checkpoints], name="checkpoint, KiB")
    figure.update_layout(xaxis_title="seconds", template="plotly_white")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(file, include_plotlyjs=True)
    print(f"memory and checkpoint size over time: {file}")


def _resident_kib(pid: int) -> int:
    """Resident memory of a process and all below it."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            waiting += [int(child) for child in Path(f"/proc/{one}/task/{one}/children").read_text().split()]
        except OSError:
            continue
        total += int(status.partition("VmRSS:")[2].split()[0])
    return total


def _checkpoint_bytes(folder: Path) -> int:
    """Of the newest complete checkpoint."""
    found = []
    for file in folder.glob("*/chk-*/_metadata"):
        try:
            found.append((file.stat().st_mtime, sum(part.stat().st_size for part in file.parent.iterdir())))
        except OSError:
            continue
    return max(found)[1] if found else 0


if __name__ == "__main__":
    main()
