"""A continuous job on Flink whose command decides by rule: on labels, killed on the way, and before there are any."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from models.activation_log import ActivationLog
from models.activations import Activation
from models.registry import Registry
from tests.chaos.bad_models import line, save
from tests.kafka import Cluster
from tests.pipelines.continuous import Command, Tail
from transforms.keys import places

pytestmark = pytest.mark.timeout(300)
SLOPES = {1: 1.0, 2: -1.0}


def _nan_above(self: Any, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
    """NaN for what the stream brings, and for nothing that the gate could know."""
    given = line(self, a, b)
    return given | {"score": tf.where(a > 1.5, a * float("nan"), given["score"])}


def test_rules_decide_in_a_continuous_job(kafka: Cluster, tmp_path: Path) -> None:
    registry, log = Registry(str(tmp_path / "registry")), ActivationLog(str(tmp_path / "registry"), "line")
    for version, slope in SLOPES.items():
        registry.publish("line", str(save(tmp_path / f"saved-{version}", slope=slope)))
    registry.publish("line", str(save(tmp_path / "saved-3", _nan_above)))
    log.activate(1, by="test", reason="start")
    topics = {name: kafka.topic(1) for name in ("predictions", "evaluations")}
    params = {
        "bootstrap": kafka.bootstrap,
        "topic": kafka.topic(1),
        "columns": "id:int64,time:int64,a:float32,b:float32,label:int64",
        "time": "time",
        "time_unit": "us",
        "registry": registry.root,
        "model": "line",
        "keep": "id,a,b",
        "label": "label",
        "label_delay": "1s",
        "canary_key": "id",
        "compare": "true",
        "guard": "1h",
        "rules_rows": 100,
        "predictions_topic": topics["predictions"],
        "evaluations_topic": topics["evaluations"],
        "output": tmp_path / "out",
        "mode": "continuous",
        "every": "1s",
        "checkpoint_every": "1s",
    }
    given = [part for name, value in params.items() for part in ("-p", f"{name}={value}")]
    command = Command(Path("serve-kafka"), tmp_path / "log.txt", *given)
    tail = Tail(kafka.bootstrap, topics["predictions"])
    draw, sent = np.random.default_rng(4), 0

    def send() -> None:
        """Twenty records; the labels are those of slope 1."""
        nonlocal sent
        records = []
        for a, b in draw.normal(size=(20, 2)).round(3).tolist():
            row = {"id": sent, "time": time.time_ns() // 1000, "a": a, "b": b, "label": int(a + b > 0)}
            records.append(json.dumps(row).encode())
            sent += 1
        kafka.send(params["topic"], records)

    def stream_until(done: Callable[[], Any], timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline, command.told()
            send()
            tail.read(0.1)

    def decisions() -> list[Activation]:
        return [entry for entry in log.entries() if isinstance(entry, Activation) and entry.evidence is not None]

    try:
        stream_until(lambda: tail.rows)
        log.activate(2, by="test", reason="try", kind="canary", share=0.5)
        stream_until(lambda: sum(row["version"] == 2 for row in tail.rows) >= 20)
        command.kill()
        assert decisions() == [], "too few rows were judged before"
        command.start()
        stream_until(decisions)
        log.activate(3, by="test", reason="looks good")
        stream_until(lambda: len(decisions()) == 2)
        first, second = decisions()
        stream_until(lambda: sum(row["version"] == 1 for row in tail.rows[-200:]) >= 200)
        tail.until(lambda rows: len(rows) >= sent, 60)
    finally:
        command.process.send_signal(signal.SIGINT)
        command.wait()
        tail.close()
    assert (first.kind, first.version, first.by) == ("rollback", 1, "serve-kafka")
    assert first.evidence is not None and first.evidence["p_worse"] < 0.001
    assert (second.kind, second.version) == ("rollback", 1)
    assert "NaN or infinite" in second.reason
    assert second.reason in command.told()
    rows = sorted(tail.rows, key=lambda row: row["id"])
    assert [row["id"] for row in rows] == list(range(sent)), "lost or doubled"
    times = np.array([row["event_time"].rstrip("Z") for row in rows], "datetime64[us]").astype(np.int64)
    standing = places(pa.record_batch({"id": pa.array([row["id"] for row in rows])}), ["id"], "")
    np.testing.assert_array_equal([row["version"] for row in rows], log.timeline().serving(times, standing))
    np.testing.assert_array_equal(
        [row["beside_version"] for row in rows], log.timeline().beside(times, standing, 3_600_000_000)
    )
    known = [row for row in rows if row["version"] in SLOPES]
    expected = [np.float32(SLOPES[row["version"]]) * np.float32(row["a"]) + np.float32(row["b"]) for row in known]
    np.testing.assert_allclose([row["score"] for row in known], expected, rtol=1e-5, atol=1e-6)
    assert {row["version"] for row in rows} == {1, 2, 3}
