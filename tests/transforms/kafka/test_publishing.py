"""Micro-batches written into real topics: each once, whole or not at all."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import pyarrow as pa
import pytest

from models.kafka_client import KafkaUnavailable
from tests.kafka import Cluster
from transforms.kafka.publishing import Output, Publisher


def batch(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(numbers, pa.int64()), "name": pa.array([f"k{n}" for n in numbers])})


class Topics:
    """An output, notes of its own and as many publishers for it as wanted."""

    def __init__(self, kafka: Cluster) -> None:
        self._kafka = kafka
        name = uuid.uuid4().hex[:8]
        self.id, self.commits, self.out = f"midstream-{name}", f"commits-{name}", f"out-{name}"
        self.new().prepare([self.out])

    def new(self, id: str | None = None) -> Publisher:
        return Publisher(self._kafka.client(), id or self.id, self.commits)

    def publish(self, publisher: Publisher, number: int, *numbers: int) -> bool:
        return publisher.publish(number, {Output(self.out): [batch(*numbers)]})

    def numbers(self, isolation: str = "read_committed") -> list[int]:
        return sorted(row["n"] for row in self._kafka.read(self.out, isolation))


@pytest.fixture
def topics(kafka: Cluster) -> Topics:
    return Topics(kafka)


class Killed(Exception):
    pass


def dying(publisher: Publisher, topics: Topics, number: int, *numbers: int) -> None:
    """Sends a part of a micro-batch and is gone, with its transaction open."""

    def rows() -> Iterator[pa.RecordBatch]:
        yield batch(*numbers)
        assert publisher._producer is not None
        publisher._producer.flush()
        raise Killed

    with pytest.raises(Killed):
        publisher.publish(number, {Output(topics.out): rows()})


def test_a_micro_batch_is_written_once(kafka: Cluster, topics: Topics) -> None:
    first = topics.new()
    assert topics.publish(first, 0, 1, 2)
    assert topics.publish(first, 1, 3)
    assert not topics.publish(first, 1, 3)
    again = topics.new()
    assert not topics.publish(again, 1, 3), "another process finds the note"
    assert topics.publish(again, 2, 4)
    assert topics.numbers() == [1, 2, 3, 4]
    assert [note["number"] for note in kafka.read(topics.commits)] == [0, 1, 2]


def test_what_a_killed_process_had_begun_is_never_seen(topics: Topics) -> None:
    first = topics.new()
    topics.publish(first, 0, 1)
    dying(first, topics, 1, 2, 3)
    assert topics.publish(topics.new(), 1, 2, 3)
    assert topics.numbers() == [1, 2, 3]
    assert topics.numbers("read_uncommitted") == [1, 2, 2, 3, 3]


def test_a_process_that_was_thought_dead_is_shut_out(topics: Topics) -> None:
    first = topics.new()
    topics.publish(first, 0, 1)
    topics.publish(topics.new(), 1, 2)
    with pytest.raises(KafkaUnavailable, match="another process publishes"):
        topics.publish(first, 1, 2)
    assert topics.numbers() == [1, 2]


def test_two_publishers_share_a_topic_of_notes(topics: Topics) -> None:
    one, two = topics.new(), topics.new("midstream-other")
    assert topics.publish(one, 0, 1)
    assert topics.publish(two, 0, 2)
    assert topics.publish(one, 1, 3)
    assert not topics.publish(topics.new(), 1, 3)
    assert topics.publish(topics.new("midstream-other"), 1, 4)
    assert topics.numbers() == [1, 2, 3, 4]


def test_a_note_behind_the_open_transaction_of_another_job_is_waited_for(kafka: Cluster, topics: Topics) -> None:
    """Otherwise a job would take its own note for missing, and write its micro-batch twice."""
    first = topics.new()
    topics.publish(first, 0, 1)
    open_one = kafka.transact(topics.commits, [{"number": 7}], commit=None)
    topics.publish(first, 1, 2)  # its note is now behind the open transaction
    written: list[bool] = []
    thread = threading.Thread(target=lambda: written.append(topics.publish(topics.new(), 1, 2)))
    thread.start()
    thread.join(1.0)
    assert thread.is_alive(), "it waits until the other transaction is decided"
    open_one.abort_transaction()
    thread.join(30)
    assert written == [False]
    assert topics.numbers() == [1, 2]


def test_keys_and_arrow(kafka: Cluster, topics: Topics) -> None:
    many = batch(*range(2500))
    arrow = kafka.topic()
    topics.new().publish(0, {Output(topics.out, key="name"): [batch(5)], Output(arrow, "arrow"): [many]})
    assert kafka.messages(topics.out) == [(b"k5", b'{"n": 5, "name": "k5"}')]
    tables = [pa.ipc.open_stream(value).read_all() for _, value in kafka.messages(arrow)]
    assert [table.num_rows for table in tables] == [1000, 1000, 500]
    assert pa.concat_tables(tables).to_batches()[0].schema == many.schema
    assert pa.concat_tables(tables)["n"].to_pylist() == list(range(2500))


def test_a_broker_that_is_gone_for_a_while(kafka: Cluster, topics: Topics) -> None:
    publisher = topics.new()
    topics.publish(publisher, 0, 1)
    kafka.broker.kill()
    written: list[bool] = []
    thread = threading.Thread(target=lambda: written.append(topics.publish(publisher, 1, 2)))
    thread.start()
    kafka.broker.start()
    thread.join(60)
    assert written == [True]
    assert topics.numbers() == [1, 2]
