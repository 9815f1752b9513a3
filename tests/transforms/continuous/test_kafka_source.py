"""The unbounded source against a real broker: the same rows, stamps and dead letters as ranges of offsets give."""

from __future__ import annotations

import json
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from confluent_kafka import Producer

from transforms.batches import MIN_WATERMARK_US, SEQUENCE, WATERMARK
from transforms.continuous.kafka_source import ReadTopic
from transforms.kafka.source import KafkaSource
from transforms.schema import Schema, TimeSpec
from transforms.sources import stamp_watermark


def produce(
    bootstrap: str, topic: str, values: list[tuple[int, bytes]], *, transaction: bool = False, abort: bool = False
) -> None:
    producer = Producer({"bootstrap.servers": bootstrap} | ({"transactional.id": topic} if transaction else {}))
    if transaction:
        producer.init_transactions()
        producer.begin_transaction()
    for partition, value in values:
        producer.produce(topic, value, partition=partition)
    producer.flush()
    if transaction:
        producer.abort_transaction() if abort else producer.commit_transaction()


def record(time: int, number: int) -> bytes:
    return json.dumps({"time": time, "n": number}).encode()


def _keep(batch: pa.RecordBatch, folder: str) -> None:
    first = batch.column(SEQUENCE)[0].as_py()
    pq.write_table(pa.Table.from_batches([batch]), f"{folder}/{first}.parquet")


def read_live(source: KafkaSource, folder: Path) -> tuple[list[dict], list[dict]]:
    for name in ("rows", "dead"):
        (folder / name).mkdir()
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        read = pipeline | ReadTopic(source, until_now=True)
        read.batches | "rows" >> beam.Map(_keep, str(folder / "rows"))
        read.dead_letters | "dead" >> beam.Map(_keep, str(folder / "dead"))
    tables = [[pq.read_table(file) for file in (folder / name).iterdir()] for name in ("rows", "dead")]
    rows, dead = ([row for table in own for row in table.to_pylist()] for own in tables)
    return sorted(rows, key=lambda row: row[SEQUENCE]), sorted(dead, key=lambda row: row[SEQUENCE])


@pytest.fixture
def source(client, new_topic) -> KafkaSource:
    schema = Schema.parse("time:int64,n:int64")
    return KafkaSource(
        client, new_topic(3), "jsonl", schema, TimeSpec("time", "s"), batch_rows=7, out_of_orderness_us=2_000_000
    )


def test_all_partitions_with_their_own_stamps(source, tmp_path) -> None:
    values = [(number % 2, record(100 + number * 7 % 5, number)) for number in range(50)]  # nothing in the third one
    values[10] = (0, b"not JSON")
    produce(source.client.bootstrap, source.topic, values)
    rows, dead = read_live(source, tmp_path)
    expected = []
    for task in source.all_tasks():
        newest = MIN_WATERMARK_US
        for piece in source.read(task.ranges[0]):
            batch, newest = stamp_watermark(piece.batch, newest, source.out_of_orderness_us)
            expected += batch.to_pylist()
    assert len(rows) == 49
    assert rows == sorted(expected, key=lambda row: row[SEQUENCE])
    assert [letter["row"] for letter in dead] == [5]
    assert min(row[WATERMARK] for row in rows) == MIN_WATERMARK_US


def test_gaps_between_offsets_are_passed(source, tmp_path) -> None:
    bootstrap, topic = source.client.bootstrap, source.topic
    produce(bootstrap, topic, [(0, record(1, 1)), (0, record(2, 2))], transaction=True)
    produce(bootstrap, topic, [(0, record(3, 3))], transaction=True, abort=True)
    produce(bootstrap, topic, [(0, record(4, 4))], transaction=True)
    rows, dead = read_live(source, tmp_path)
    assert [row["n"] for row in rows] == [1, 2, 4]
    assert dead == []


def test_an_empty_topic_ends_at_once(source, tmp_path) -> None:
    assert read_live(source, tmp_path) == ([], [])
