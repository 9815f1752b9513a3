"""The unbounded source against a real broker: the same rows, stamps and dead letters as ranges of offsets give."""

from __future__ import annotations

import json
import time

import apache_beam as beam
import pytest
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from confluent_kafka import Producer

from transforms.batches import MIN_WATERMARK_US, SEQUENCE, WATERMARK
from transforms.continuous import kafka_source
from transforms.continuous.advance import LAST_US
from transforms.continuous.kafka_source import Place, ReadLive
from transforms.kafka.source import KafkaSource
from transforms.schema import Schema, TimeSpec
from transforms.sources import stamp_watermark


def produce(
    bootstrap: str, topic: str, values: list[tuple[int, bytes]], *, transaction: bool = False, abort: bool = False
) -> None:
    producer = Producer(
        {"bootstrap.servers": bootstrap, "enable.idempotence": True} | ({"transactional.id": topic} if transaction else {})
    )
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
    """What Beam keeps of a topic: a state and a timer. That a runner keeps them is tested on Flink."""

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


def read_live(source: KafkaSource, wakes_a_worker: int = 1000) -> tuple[list[dict], list[dict], list[int]]:
    """Wakes the reader until all partitions are at their ends; gives rows, dead letters, and the watermarks that it held.

    Args:
        source: the topic.
        wakes_a_worker: after so many a new worker goes on, from the state alone.
    """
    rows, dead, holds = [], [], []
    place, wake = Kept(), Kept()
    step = ReadLive(source, None, True, "records")
    step.process((0, b""), place, wake)
    while Place.unpack(place.value).open:
        if len(holds) % wakes_a_worker == wakes_a_worker - 1:
            kafka_source._readers = kafka_source._Readers()
            step = ReadLive(source, None, True, "records")
        for given in step.read(place, wake):
            (dead if isinstance(given, beam.pvalue.TaggedOutput) else rows).extend(given.value.to_pylist())
        holds.append(wake.hold.micros)
    return sorted(rows, key=lambda row: row[SEQUENCE]), sorted(dead, key=lambda row: row[SEQUENCE]), holds


@pytest.fixture
def source(client, new_topic) -> KafkaSource:
    schema = Schema.parse("time:int64,n:int64")
    return KafkaSource(
        client, new_topic(3), "jsonl", schema, TimeSpec("time", "s"), batch_rows=7, out_of_orderness_us=2_000_000
    )


@pytest.mark.parametrize("wakes_a_worker", [1000, 2])
def test_all_partitions_with_their_own_stamps(source, wakes_a_worker) -> None:
    values = [(number % 2, record(100 + number * 7 % 5, number)) for number in range(50)]  # nothing in the third one
    values[10] = (0, b"not JSON")
    produce(source.client.bootstrap, source.topic, values)
    rows, dead, holds = read_live(source, wakes_a_worker)
    expected = []
    for task in source.all_tasks():
        newest = MIN_WATERMARK_US
        for piece in source.read(task.ranges[0]):
            batch, newest = stamp_watermark(piece.batch, newest, source.out_of_orderness_us)
            expected += batch.to_pylist()
    assert len(rows) == 49
    assert rows == sorted(expected, key=lambda row: row[SEQUENCE])
    assert [letter["row"] for letter in dead] == [5]
    assert holds == sorted(holds)
    assert holds[-1] > LAST_US


def test_the_partition_that_is_farthest_behind_holds_the_stream(source) -> None:
    bootstrap, topic = source.client.bootstrap, source.topic
    place, wake = Kept(), Kept()
    step = ReadLive(source, None, False, "records")
    step.process((0, b""), place, wake)

    def read_until(rows: int) -> None:
        while rows:
            rows -= sum(given.value.num_rows for given in step.read(place, wake))

    produce(bootstrap, topic, [(0, record(500, 1)), (1, record(300, 2))])
    read_until(2)
    assert wake.hold == MIN_TIMESTAMP  # the third one may bring anything
    produce(bootstrap, topic, [(2, record(400, 3))])
    read_until(1)
    assert wake.hold.micros == 298_000_000 - 1
    produce(bootstrap, topic, [(1, record(900, 4))])
    read_until(1)
    assert wake.hold.micros == 398_000_000 - 1


def test_gaps_between_offsets_are_passed(source) -> None:
    bootstrap, topic = source.client.bootstrap, source.topic
    produce(bootstrap, topic, [(0, record(1, 1)), (0, record(2, 2))], transaction=True)
    produce(bootstrap, topic, [(0, record(3, 3))], transaction=True, abort=True)
    produce(bootstrap, topic, [(0, record(4, 4))], transaction=True)
    rows, dead, _ = read_live(source)
    assert [row["n"] for row in rows] == [1, 2, 4]
    assert dead == []


def test_a_stream_that_is_begun_again_behind_a_savepoint_goes_on_where_it_stood(source) -> None:
    produce(source.client.bootstrap, source.topic, [(0, record(100, 1))])
    place, wake = Kept(), Kept()
    step = ReadLive(source, None, False, "records")
    step.process((0, b""), place, wake)
    noted = place.value
    produce(source.client.bootstrap, source.topic, [(0, record(100, 2))])
    step.process((0, b""), place, wake)
    assert place.value == noted


def test_silent_partitions_do_not_hold_the_stream_if_they_may_not_and_their_old_rows_are_late(source) -> None:
    bootstrap, topic = source.client.bootstrap, source.topic
    produce(bootstrap, topic, [(0, record(100, 1))])
    place, wake = Kept(), Kept()
    step = ReadLive(source, 200_000, False, "records")
    step.process((0, b""), place, wake)
    rows = []
    deadline = time.monotonic() + 60
    while wake.hold == MIN_TIMESTAMP and time.monotonic() < deadline:
        produce(bootstrap, topic, [(0, record(100, 1))])
        rows += [given.value for given in step.read(place, wake)]
    assert wake.hold.micros == 98_000_000 - 1
    produce(bootstrap, topic, [(1, record(50, 2))])
    while not any(batch.column("n")[0].as_py() == 2 for batch in rows):
        rows += [given.value for given in step.read(place, wake)]
    (old,) = [batch for batch in rows if batch.column("n")[0].as_py() == 2]
    assert old.column(WATERMARK)[0].as_py() > 50_000_000


def test_a_partition_with_more_to_read_is_not_idle_however_long_it_takes(source) -> None:
    bootstrap, topic = source.client.bootstrap, source.topic
    produce(bootstrap, topic, [(1, record(50, number)) for number in range(100)])
    place, wake = Kept(), Kept()
    step = ReadLive(source, 200_000, False, "records")
    step.process((0, b""), place, wake)
    rows = [row for given in step.read(place, wake) for row in given.value.to_pylist()]
    reader = kafka_source._readers._waiting[source]
    reader.topic.pause(1)  # its broker takes its time
    while not reader.idle(2, 400_000):
        produce(bootstrap, topic, [(0, record(100, 1000))])
        for given in step.read(place, wake):
            rows += given.value.to_pylist()
    assert wake.hold.micros <= 48_000_000 - 1
    reader.topic.resume(1)
    while sum(row["n"] < 1000 for row in rows) < 100:
        rows += [row for given in step.read(place, wake) for row in given.value.to_pylist()]
    assert all(row[WATERMARK] <= 48_000_000 for row in rows if row["n"] < 1000)
