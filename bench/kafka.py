"""`python -m bench.kafka`: from a topic to a topic, Midstream's micro-batches beside loops without Beam.

A real broker on this machine, a topic of two partitions, JSON of 16 floats, the MLP 64-32-2 of `bench.data`. All write every
prediction in transactions, of as many records as Midstream's micro-batches have. The loops do no more than that; Midstream also
keeps offsets and commits so that it can be killed, looks up each record's version, and writes Parquet.

- plain loop: confluent-kafka, `json.loads`, NumPy, the SavedModel, `json.dumps`, as most would write it
- Arrow loop: the same with Arrow's reader of JSON, and rows made into JSON by Arrow: what a loop can be at its best
- continuous: the same job of Midstream's on Flink, without any cuts; it works off what is in the topic, a transaction a bundle
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.data import FEATURES, SEED, write_models

REPORT = Path(__file__).parent / "kafka.json"
PARTITIONS, BATCH_RECORDS, POLL = 2, 100_000, 8192
SIZES, SHORT = (50_000, 250_000), (10_000, 40_000)
AIM = 0.5  # of the plain loop's slope


def fill(bootstrap: str, topic: str, rows: int) -> None:
    """Writes the records, a second apart, in turn over the partitions."""
    from confluent_kafka.admin import AdminClient, NewTopic

    from models.kafka_client import KafkaClient

    admin = AdminClient({"bootstrap.servers": bootstrap})
    for name, partitions in ((topic, PARTITIONS), *((f"{topic}-{name}", 1) for name in CONTENDERS)):
        admin.create_topics([NewTopic(name, num_partitions=partitions)])[name].result()
    producer = KafkaClient(bootstrap).producer(**{"linger.ms": 20})
    values = np.random.default_rng(SEED).normal(size=(rows, len(FEATURES))).round(6)
    for number, row in enumerate(values.tolist()):
        text = json.dumps({"time": number, **dict(zip(FEATURES, row, strict=True))})
        while True:
            try:
                producer.produce(topic, text, partition=number % PARTITIONS)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


class _Loop:
    """What the loops share: they differ in how a poll's values become predictions as JSON."""

    def __init__(self, folder: Path, bootstrap: str, topic: str, name: str) -> None:
        from confluent_kafka import Consumer, Producer, TopicPartition

        settings = {"bootstrap.servers": bootstrap}
        self._consumer = Consumer(
            settings
            | {"group.id": name, "enable.auto.commit": False, "enable.partition.eof": True, "isolation.level": "read_committed"}
        )
        self._consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
        self._producer = Producer(settings | {"transactional.id": f"{topic}-{name}", "linger.ms": 20})
        self._producer.init_transactions()
        self._out = f"{topic}-{name}"
        import tensorflow as tf

        self._predict = tf.saved_model.load(str(folder / "columns")).signatures["serving_default"]

    def polls(self) -> Iterator[list[Any]]:
        ended = 0
        while ended < PARTITIONS:
            came = self._consumer.consume(POLL, 0.1)
            messages = [message for message in came if message.error() is None]
            ended += len(came) - len(messages)
            if messages:
                yield messages

    def predict(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import tensorflow as tf

        given = self._predict(**{name: tf.constant(values) for name, values in columns.items()})
        return {name: values.numpy() for name, values in given.items()}

    def run(self, answer: Callable[[_Loop, list[bytes]], list[Any]]) -> None:
        open_records = 0
        for messages in self.polls():
            if not open_records:
                self._producer.begin_transaction()
            for text in answer(self, [message.value() for message in messages]):
                while True:
                    try:
                        self._producer.produce(self._out, text)
                        break
                    except BufferError:
                        self._producer.poll(0.1)
            open_records += len(messages)
            if open_records >= BATCH_RECORDS:
                self._producer.commit_transaction()
                open_records = 0
        if open_records:
            self._producer.commit_transaction()


def _plain_answer(loop: _Loop, values: list[bytes]) -> list[str]:
    rows = [json.loads(value) for value in values]
    columns = {name: np.array([row[name] for row in rows], np.float32) for name in FEATURES}
    given = loop.predict(columns)
    return [
        json.dumps({"time": row["time"], "prediction": int(prediction), "score": float(score), "version": 1})
        for row, prediction, score in zip(rows, given["prediction"], given["score"], strict=True)
    ]


def _arrow_answer(loop: _Loop, values: list[bytes]) -> list[bytes]:
    import pyarrow as pa
    import pyarrow.json as pajson

    from transforms.kafka.json_lines import json_objects

    table = pajson.read_json(pa.BufferReader(b"\n".join(values) + b"\n")).combine_chunks()
    given = loop.predict({name: table[name].to_numpy().astype(np.float32) for name in FEATURES})
    out = {"time": table["time"].chunk(0), **{name: pa.array(found) for name, found in given.items()}}
    out["version"] = pa.repeat(1, len(table))
    return list(json_objects(pa.record_batch(out)).cast(pa.binary()).to_pylist())


def _plain(folder: Path, bootstrap: str, topic: str) -> None:
    _Loop(folder, bootstrap, topic, "plain").run(_plain_answer)


def _arrow(folder: Path, bootstrap: str, topic: str) -> None:
    _Loop(folder, bootstrap, topic, "arrow").run(_arrow_answer)


def _job(folder: Path, bootstrap: str, topic: str, **more: Any) -> Any:
    from pipelines import template

    found, here = template.load("serve-kafka")
    given = {
        "bootstrap": bootstrap,
        "topic": topic,
        "columns": ",".join(f"{name}:float32" for name in FEATURES),
        "time": "time",
        "time_unit": "s",
        "registry": str(folder / "registry"),
        "model": "mlp",
        "output": tempfile.mkdtemp(dir=folder),
    }
    return found.fill(given | more, here)


def _midstream(folder: Path, bootstrap: str, topic: str) -> None:
    from pipelines.execute import Execution

    job = _job(folder, bootstrap, topic, predictions_topic=f"{topic}-midstream", micro_batch_records=BATCH_RECORDS)
    outcome = Execution(job).run()
    assert not outcome.problems, outcome.problems


def _continuous(folder: Path, bootstrap: str, topic: str) -> None:
    from pipelines.continuous import ContinuousExecution

    job = _job(folder, bootstrap, topic, predictions_topic=f"{topic}-continuous", mode="continuous")
    job = job.model_copy(update={"run": job.run.model_copy(update={"runner": "flink"})})
    assert ContinuousExecution(job).run().finished


CONTENDERS: dict[str, Callable[[Path, str, str], None]] = {
    "plain": _plain,
    "arrow": _arrow,
    "midstream": _midstream,
    "continuous": _continuous,
}


def prepare(folder: Path) -> None:
    """Makes the model and the registry, in a process of its own."""
    from models.activation_log import ActivationLog
    from models.registry import Registry

    write_models(folder)
    registry = str(folder / "registry")
    version = Registry(registry).publish("mlp", str(folder / "columns")).version
    ActivationLog(registry, "mlp").activate(version, by="bench", reason="the model of the benchmark")


def measure(name: str, folder: Path, bootstrap: str, topic: str) -> float:
    """Seconds, in a process of its own; imports are not counted."""
    import tensorflow as tf  # noqa: F401

    import pipelines.execute  # noqa: F401

    started = time.perf_counter()
    CONTENDERS[name](folder, bootstrap, topic)
    return time.perf_counter() - started


def check(bootstrap: str, topic: str, rows: int) -> None:
    """All have written the same predictions, each once, as readers of what is committed see it."""
    from confluent_kafka import Consumer, TopicPartition

    scores = {}
    for name in CONTENDERS:
        consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "check", "enable.partition.eof": True})
        consumer.assign([TopicPartition(f"{topic}-{name}", 0, 0)])
        found, ended = [], False
        while not ended:
            for message in consumer.consume(10_000, 0.2):
                if message.error() is None:
                    found.append(json.loads(message.value())["score"])
                else:
                    ended = True
        consumer.close()
        scores[name] = np.sort(np.array(found, np.float32))
        if len(found) != rows or not np.allclose(scores[name], scores["plain"], atol=1e-6):
            raise click.ClickException(f"{name} wrote {len(found)} predictions of {rows}, or others than the plain loop")


def _in_process(function: Callable[..., Any], *given: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def _slope(least: int, most: int, seconds: dict[int, float]) -> float:
    """Records/s of the records that the larger run has more; infinite if noise hides them."""
    took = seconds[most] - seconds[least]
    return (most - least) / took if took > 0 else float("inf")


@click.command()
@click.option("--short", is_flag=True, help="Fewer records, once; what `make bench` runs.")
def main(short: bool) -> None:
    """Measure, print a table, write bench/kafka.json and one line of JSON."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from runners.local_kafka import kafka_broker

    sizes, repetitions = (SHORT, 1) if short else (SIZES, 2)
    seconds: dict[str, dict[int, list[float]]] = {name: {rows: [] for rows in sizes} for name in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="midstream-bench-kafka-") as name, kafka_broker() as broker:
        folder = Path(name)
        _in_process(prepare, folder)
        for repetition in range(repetitions):
            for rows in sizes:
                topic = f"records-{rows}-{repetition}"
                _in_process(fill, broker.bootstrap, topic, rows)
                for contender in CONTENDERS:
                    took = _in_process(measure, contender, folder, broker.bootstrap, topic)
                    seconds[contender][rows].append(took)
                check(broker.bootstrap, topic, rows)
    least, most = sizes
    medians = {name: {rows: statistics.median(found) for rows, found in by.items()} for name, by in seconds.items()}
    result = {name: {"records_s": most / by[most], "slope_records_s": _slope(least, most, by)} for name, by in medians.items()}
    ratio = result["midstream"]["slope_records_s"] / result["plain"]["slope_records_s"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("topic to topic", f"records/s, {most:,} records", f"slope from {least:,}", "slope beside the plain loop"):
        table.add_column(heading, justify="left" if heading == "topic to topic" else "right")
    for name, found in result.items():
        beside = found["slope_records_s"] / result["plain"]["slope_records_s"]
        table.add_row(name, f"{found['records_s']:,.0f}", f"{found['slope_records_s']:,.0f}", f"{beside:.2f}")
    console = Console(width=None if Console().is_terminal else 128)
    console.print(table)
    line = {"bench": "kafka", "sizes": sizes, "repetitions": repetitions, **result, "ratio": ratio, "aim": AIM}
    line["reached"] = None if short else ratio >= AIM
    REPORT.write_text(json.dumps(line, indent=2) + "\n")
    click.echo(json.dumps(line))


if __name__ == "__main__":
    main()
