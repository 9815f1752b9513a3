"""kill -9 at any moment while it writes into a topic: readers of what is committed see every prediction once."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kafka import Cluster
from tests.pipelines import jobs
from tests.pipelines.test_kill import FILE_EVENTS

ROWS, KILLS, SEED = 600, 10, 20261125
_EVERY = 40  # of the messages that are sent, so many to one moment: there are more of them than of all else


class _Counting:
    """A producer whose every call is two moments, before and after, in which the process may die."""

    def __init__(self, producer: Any, moment: Any) -> None:
        self._producer, self._moment, self._sent = producer, moment, 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._producer, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._sent += name == "produce"
            counts = name in ("init_transactions", "begin_transaction", "commit_transaction") or (
                name == "produce" and self._sent % _EVERY == 0
            )
            if counts:
                self._moment()
            result = call(*args, **kwargs)
            if counts:
                if name == "produce":
                    self._producer.flush()  # it is in the broker now, in a transaction that is not decided
                self._moment("committed" if name == "commit_transaction" else "any")
            return result

        return counted


def _run(params: dict[str, Any], die_at: tuple[str, int] | None, counted: Any) -> None:
    """Runs the job in this process and counts moments; in one of them, or in one just behind a transaction, it is killed."""
    from models.kafka_client import KafkaClient

    committed = 0

    def moment(kind: str = "any") -> None:
        nonlocal committed
        counted.value += 1
        committed += kind == "committed"
        if die_at in (("any", counted.value), (kind, committed)):
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and str(params["output"]) in str(args[0] if args else ""):
            moment()

    producer = KafkaClient.producer
    KafkaClient.producer = lambda client, **own: _Counting(producer(client, **own), moment)  # type: ignore[method-assign,misc,assignment]
    sys.addaudithook(hook)
    jobs.run("serve-kafka", **params)


@pytest.fixture(scope="module")
def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "apache_beam", "tests.pipelines.electricity", "tests.pipelines.jobs"])
    return context


def _try(processes: Any, params: dict[str, Any], die_at: tuple[str, int] | None) -> tuple[int, int]:
    counted = processes.Value("q", 0, lock=False)
    process = processes.Process(target=_run, args=(params, die_at, counted))
    process.start()
    process.join()
    return process.exitcode, counted.value


@pytest.mark.timeout(600)
def test_killed_ten_times(kafka: Cluster, tmp_path: Path, processes: Any) -> None:
    jobs.publish(tmp_path / "registry", jobs.save_module(tmp_path / "saved" / "1", 1.0))
    topic = kafka.topic(2)
    for number in range(2):
        kafka.send(topic, jobs.records(ROWS, start=number * ROWS).to_pylist(), number)
    kafka.send(topic, [b"rubbish"], 1)
    common = {
        "bootstrap": kafka.bootstrap,
        "topic": topic,
        "columns": "time:string,id:int64,a:float64,b:float64",
        "time": "time",
        "registry": tmp_path / "registry",
        "model": "line",
        "micro_batch_records": 150,
    }

    def outputs(name: str) -> dict[str, Any]:
        return common | {
            "output": tmp_path / name,
            "predictions_topic": f"{topic}-{name}",
            "dead_letters_topic": f"{topic}-{name}-dead",
        }

    def read(name: str, isolation: str = "read_committed") -> list[dict[str, Any]]:
        found = kafka.read(f"{topic}-{name}", isolation) + kafka.read(f"{topic}-{name}-dead", isolation)
        return sorted(found, key=lambda row: row["sequence"])

    status, events = _try(processes, outputs("undisturbed"), None)
    assert status == 0
    draw, moments = random.Random(SEED), []
    print(f"seed {SEED}, {events} moments in a run")
    for number in range(KILLS):
        # Every third time where it is the most delicate: what was written is seen, and the checkpoint does not know of it.
        delicate = number % 3 == 1
        moments.append(("committed", draw.randint(1, 2)) if delicate else ("any", draw.randint(1, events // 5)))
        status, _ = _try(processes, outputs("killed"), moments[-1])
        assert status == -signal.SIGKILL, f"ended with {status} after kills at {moments}"
    assert any((tmp_path / "killed" / "checkpoint" / "commits").iterdir()), "no try got beyond its first micro-batch"
    status, _ = _try(processes, outputs("killed"), None)
    assert status == 0
    assert read("killed") == read("undisturbed")
    assert len(read("killed")) == 2 * ROWS + 1
    assert len(read("killed", "read_uncommitted")) > 2 * ROWS + 1, "no kill fell into a transaction"
    assert jobs.read(tmp_path / "killed").equals(jobs.read(tmp_path / "undisturbed"))
