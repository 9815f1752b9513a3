"""A stream in files and the same one in a topic, and a closed loop over either, for tests of continuous jobs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from confluent_kafka import Consumer, TopicPartition

PARTITIONS = 3
COLUMNS = "time:int64,id:int64,key:string,a:float64,b:float64,label:int64"


def lines(rows: int, seed: int = 3) -> list[list[bytes]]:
    """Records by partition, 10 s apart and up to 40 s out of order; the label, a + b > 0, turns round half-way."""
    draw = np.random.default_rng(seed)
    times = np.arange(rows) * 10 + draw.integers(0, 40, rows)
    a, b = draw.normal(size=(2, rows)).round(3)
    turned = np.arange(rows) > rows // 2
    label = ((a + b > 0) ^ turned).astype(int)
    records = [
        {"time": int(times[i]), "id": i, "key": f"k{i % 5}", "a": a[i], "b": b[i], "label": int(label[i])} for i in range(rows)
    ]
    return [[json.dumps(record).encode() for record in records[p::PARTITIONS]] for p in range(PARTITIONS)]


def loop(source: dict[str, Any], output: Path, registry: Path, **more: Any) -> dict[str, Any]:
    """A closed loop: lags by key, labels an hour late, a version every four hours, none at the start."""
    return {
        "name": "loop",
        "kind": "loop",
        "source": {"columns": COLUMNS, "time": {"column": "time", "unit": "s"}, **source},
        "steps": [{"lags": {"columns": {"a_1": ["a", 1]}, "by": ["key"]}}],
        "labels": {"column": "label", "delay": "1h"},
        "learner": {"features": ["a", "b", "a_1"], "every": "4h", "warm_up_rows": 500},
        "model": {"registry": str(registry), "name": "loop"},
        "keep": ["id"],
        "output": str(output),
        **more,
    }


def write_template(file: Path, job: dict[str, Any]) -> Path:
    """The job as a template without parameters."""
    parameters = {"output": {"type": "path", "default": job["output"], "description": "folder for everything"}}
    content = {"name": job["name"], "description": "a test", "parameters": parameters, "job": job | {"output": "${output}"}}
    file.write_text(yaml.safe_dump(content))
    return file


class Tail:
    """What is committed in a topic, read on and on."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        settings = {"bootstrap.servers": bootstrap, "group.id": "test", "isolation.level": "read_committed"}
        self._consumer = Consumer(settings | {"auto.offset.reset": "earliest", "enable.auto.commit": False})
        self._consumer.assign([TopicPartition(topic, 0, 0)])
        self.rows: list[dict[str, Any]] = []

    def read(self, wait_s: float = 0.2) -> list[dict[str, Any]]:
        """All rows up to now."""
        for message in self._consumer.consume(10_000, wait_s):
            if message.error() is None:
                self.rows.append(json.loads(message.value()))
        return self.rows

    def until(self, done: Any, timeout_s: float = 300.0) -> list[dict[str, Any]]:
        """Reads until something holds of the rows; fails if it does not come to that."""
        deadline = time.monotonic() + timeout_s
        while not done(self.read()):
            assert time.monotonic() < deadline, f"after {timeout_s:g} s there are {len(self.rows)} rows"
        return self.rows

    def close(self) -> None:
        self._consumer.close()


class Command:
    """`midstream run` in a process of its own, which can be killed and given again."""

    def __init__(self, template: Path, log: Path, *options: str) -> None:
        self._command = [sys.executable, "-m", "pipelines.cli", "run", str(template), "--runner", "flink", *options]
        self._log = log
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait(self, timeout_s: float = 300.0) -> int:
        return self.process.wait(timeout_s)

    def told(self) -> str:
        return self._log.read_text()


def bits(rows: Iterator[dict[str, Any]] | Sequence[dict[str, Any]], names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Rows, sorted, as values that are equal only if every bit is; scores are single precision."""
    exact = [
        tuple(np.float32(row[name]).tobytes() if isinstance(row[name], float) else row[name] for name in names) for row in rows
    ]
    return sorted(exact, key=str)
