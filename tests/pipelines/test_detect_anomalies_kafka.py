"""Anomalies in a topic, continuously on Flink: the scores that a batch over files gives, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.kafka import Cluster
from tests.pipelines.continuous import Command, Tail, bits
from tests.pipelines.detections import run, swapped, times, values, write

ROWS, SENSORS, PARTITIONS = 800, 4, 2
pytestmark = pytest.mark.timeout(600)


def test_a_topic_scored_with_a_kill_gives_a_batch_s_bits(kafka: Cluster, tmp_path: Path) -> None:
    series = {f"s{number}": values(ROWS, number) for number in range(SENSORS)}
    parts: list[list[bytes]] = [[], []]
    for row, when in enumerate(times(ROWS)):
        for number, (sensor, x) in enumerate(series.items()):
            record = {"timestamp": when, "sensor": sensor, "value": float(x[row])}
            parts[number % PARTITIONS].append(json.dumps(record).encode())
    topic = kafka.topic(PARTITIONS)
    kafka.send_parts(topic, parts)
    for sensor, x in series.items():
        write(tmp_path / "in" / f"{sensor}.csv", {"timestamp": times(ROWS), "sensor": [sensor] * ROWS, "value": x})
    # Half-way another detector goes live, which goes on with the states of the first one.
    for output, name in (("batch", "detect-anomalies"), ("out", "detect-anomalies-kafka")):
        swapped(tmp_path / output, name, ROWS // 2)
    run(tmp_path / "in", tmp_path / "batch", by="sensor", mode="batch")
    params = {
        "bootstrap": kafka.bootstrap,
        "topic": topic,
        "columns": "sensor:string,value:float64",
        "time": "timestamp",
        "by": "sensor",
        "scores_topic": f"{topic}-scores",
        "alarms_topic": f"{topic}-alarms",
        "output": tmp_path / "out",
        "tick": "12h",
        "checkpoint_every": "1s",
    }
    options = [part for name, value in params.items() for part in ("-p", f"{name}={value}")]
    command = Command(Path("detect-anomalies-kafka"), tmp_path / "log.txt", *options)
    scores = Tail(kafka.bootstrap, f"{topic}-scores")
    try:
        scores.until(lambda rows: len(rows) > 0.2 * ROWS * SENSORS)
        command.kill()
        command.start()
        assert command.wait() == 0, command.told()
        rows = scores.until(lambda rows: len(rows) >= ROWS * SENSORS, 10)
    finally:
        command.kill()
        scores.close()
    batch = pq.read_table(tmp_path / "batch" / "scores").to_pylist()
    for row in batch:
        row["event_time"] = row["event_time"].isoformat()
    for row in rows:
        row["event_time"] = str(np.datetime64(row["event_time"].rstrip("Z"), "s")) + "+00:00"
        for name in ("value", "anomaly_score", "p_value"):
            row[name] = float(row[name])  # JSON writes 1.0 as 1
    names = ("sensor", "event_time", "value", "anomaly_score", "p_value", "alarm", "version", "digest")
    assert bits(rows, names) == bits(batch, names)
    half = times(ROWS)[ROWS // 2]
    assert {(row["event_time"] >= half.replace(" ", "T"), row["version"]) for row in batch} == {(False, 1), (True, 2)}
    alarms = Tail(kafka.bootstrap, f"{topic}-alarms")
    expected = [row for row in batch if row["alarm"]]
    assert expected
    found = alarms.until(lambda rows: len(rows) >= len(expected), 10)
    alarms.close()
    assert sorted((row["sensor"], row["value"]) for row in found) == sorted((row["sensor"], row["value"]) for row in expected)
