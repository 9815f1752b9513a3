"""The unbounded source against a real broker: the same rows, stamps and dead letters as ranges of offsets give."""

from __future__ import annotations

import json
import time

import apache_beam as beam
import pytest
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from confluent_kafka import Producer

from transforms.batches import MIN_WATERMARK_US, SEQUENCE
from transforms.continuous import kafka_source
from transforms.continuous.advance import LAST_US
from transforms.continuous.kafka_source import Partition, ReadPartition
from transforms.kafka.client import Topic
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


class Kept:
    """What Beam keeps of one partition: a state and a timer. That a runner keeps them is tested on Flink."""

    def __init__(self) -> None:
        self.value: bytes | None = None
        self.hold: Timestamp | None = None
        self._input_timestamp = MIN_TIMESTAMP

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value

    def set(self, at: Timestamp) -> None:
        self.hold = self._input_timestamp


def read_live(source: KafkaSource, polls_a_worker: int = 1000) -> tuple[list[dict], list[dict], dict[int, list[int]]]:
    """Wakes each partition until it is at its end; gives rows, dead letters, and the watermarks that each held.

    Args:
        source: the topic.
        polls_a_worker: after so many a new worker goes on, from the state alone.
    """
    rows, dead, holds = [], [], {}
    for number, end in ends_of(source).items():
        place, wake = Kept(), Kept()
        step = ReadPartition(source, None, "records")
        step.process((number, Partition(number, 0, end)), MIN_TIMESTAMP, place, wake)
        polls = 0
        while json.loads(place.value or b"")[1] < end:
            polls += 1
            if polls % polls_a_worker == 0:
                kafka_source._readers = kafka_source._Readers()
                step = ReadPartition(source, None, "records")
            for given in step.read(place, wake):
                tagged = isinstance(given, beam.pvalue.TaggedOutput)
                (dead if tagged else rows).extend(given.value.to_pylist())
            holds.setdefault(number, []).append(wake.hold.micros)
    return sorted(rows, key=lambda row: row[SEQUENCE]), sorted(dead, key=lambda row: row[SEQUENCE]), holds


def ends_of(source: KafkaSource) -> dict[int, int]:
    topic = Topic(source.client, source.topic)
    try:
        return {number: end for number, end in topic.state().high.items() if end}
    finally:
        topic.close()


@pytest.fixture
def source(client, new_topic) -> KafkaSource:
    schema = Schema.parse("time:int64,n:int64")
    return KafkaSource(
        client, new_topic(3), "jsonl", schema, TimeSpec("time", "s"), batch_rows=7, out_of_orderness_us=2_000_000
    )


@pytest.mark.parametrize("polls_a_worker", [1000, 2])
def test_all_partitions_with_their_own_stamps(source, polls_a_worker) -> None:
    values = [(number % 2, record(100 + number * 7 % 5, number)) for number in range(50)]  # nothing in the third one
    values[10] = (0, b"not JSON")
    produce(source.client.bootstrap, source.topic, values)
    rows, dead, holds = read_live(source, polls_a_worker)
    expected = []
    for task in source.all_tasks():
        newest = MIN_WATERMARK_US
        for piece in source.read(task.ranges[0]):
            batch, newest = stamp_watermark(piece.batch, newest, source.out_of_orderness_us)
            expected += batch.to_pylist()
    assert len(rows) == 49
    assert rows == sorted(expected, key=lambda row: row[SEQUENCE])
    assert [letter["row"] for letter in dead] == [5]
    for number, held in holds.items():
        assert held == sorted(held)
        newest = max(row["time"] for row in rows if row["source"].endswith(f"/{number}")) * 1_000_000
        assert held[-2:-1] in ([], [newest - source.out_of_orderness_us - 1])
        assert held[-1] > LAST_US


def test_gaps_between_offsets_are_passed(source) -> None:
    bootstrap, topic = source.client.bootstrap, source.topic
    produce(bootstrap, topic, [(0, record(1, 1)), (0, record(2, 2))], transaction=True)
    produce(bootstrap, topic, [(0, record(3, 3))], transaction=True, abort=True)
    produce(bootstrap, topic, [(0, record(4, 4))], transaction=True)
    rows, dead, _ = read_live(source)
    assert [row["n"] for row in rows] == [1, 2, 4]
    assert dead == []


def test_a_partition_that_is_given_twice_is_read_once(source) -> None:
    place, wake = Kept(), Kept()
    step = ReadPartition(source, None, "records")
    step.process((0, Partition(0, 5, 9)), MIN_TIMESTAMP, place, wake)
    noted = place.value
    step.process((0, Partition(0, 0, 9)), MIN_TIMESTAMP, place, wake)
    assert place.value == noted


def test_a_silent_partition_follows_the_clock_if_it_may(source) -> None:
    produce(source.client.bootstrap, source.topic, [(0, record(100, 1))])
    place, wake = Kept(), Kept()
    step = ReadPartition(source, 200_000, "records")
    step.process((0, Partition(0, 0)), MIN_TIMESTAMP, place, wake)
    given = []
    while wake.hold.micros < 10**15:  # 2001: neither the record's time nor the end of time
        given += list(step.read(place, wake))
    assert len(given) == 1
    assert abs(wake.hold.micros / 1e6 - time.time()) < 60
