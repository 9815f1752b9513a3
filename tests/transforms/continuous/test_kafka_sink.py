"""The sink against a real broker: whatever a job gives again after it went back to a checkpoint stands in the topics once."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from transforms.batches import NAME_TYPE, SOURCE
from transforms.continuous import kafka_sink
from transforms.continuous.kafka_sink import TopicsSpec, Write


class State:
    """What Beam keeps of one shard."""

    def __init__(self) -> None:
        self.value: bytes | None = None

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value


class Job:
    """Bundles of one shard, checkpoints, and going back to one in the same process or a new one."""

    def __init__(self, spec: TopicsSpec, shard: int = 0, shards: int = 1) -> None:
        self.spec, self.starts, self.state, self.shard = spec, spec.ends(), State(), shard
        self.step = Write(spec, self.starts, shards=shards)

    def bundle(self, *numbers: int, output: str = "predictions", commit: bool = True) -> None:
        self.step.start_bundle()
        for number in numbers:
            batch = pa.RecordBatch.from_pydict({SOURCE: pa.array(["in/0"]).cast(NAME_TYPE), "number": pa.array([number])})
            self.step.process((self.shard, (output, batch)), self.state, None)
        if commit:
            self.step.finish_bundle()

    def go_back(self, state: bytes | None, *, new_process: bool) -> None:
        self.state.value = state
        if new_process:
            kafka_sink._writers.clear()


def committed(bootstrap: str, topic: str) -> list[int]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "isolation.level": "read_committed"})
    low, high = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
    consumer.assign([TopicPartition(topic, 0, low)])
    return list(_numbers(consumer, high))


def _numbers(consumer: Consumer, high: int) -> Iterator[int]:
    at = consumer.assignment()[0]
    position = 0
    try:
        while position < high:
            for message in consumer.consume(1000, 0.2):
                assert message.error() is None
                position = message.offset() + 1
                yield json.loads(message.value())["number"]
            position = max(position, consumer.position([TopicPartition(at.topic, 0)])[0].offset)
    finally:
        consumer.close()


@pytest.fixture
def job(client, new_topic, request) -> Job:
    topics = {"predictions": new_topic(), "dead_letters": new_topic()}
    return Job(TopicsSpec(client, topics, {}, request.node.name))


@pytest.mark.parametrize("new_process", [False, True])
@pytest.mark.parametrize("committed_last", [False, True])
def test_a_job_that_goes_back_writes_nothing_twice(job, new_process, committed_last) -> None:
    job.bundle(1, 2)
    checkpoint = job.state.value
    job.bundle(3)
    job.bundle(4, 5, commit=committed_last)
    job.go_back(checkpoint, new_process=new_process)
    # Cut otherwise than before, as a runner does.
    job.bundle(3, 4)
    job.bundle(5, 6)
    assert committed(job.spec.client.bootstrap, job.spec.topics["predictions"]) == [1, 2, 3, 4, 5, 6]


def test_a_job_without_any_checkpoint_begins_behind_what_was_there_before_it(job) -> None:
    job.bundle(1)
    before = Job(job.spec)  # a second job: what the first one wrote is not its own
    before.bundle(1, 2)
    before.go_back(None, new_process=True)
    before.bundle(1, 2, 3)
    assert committed(job.spec.client.bootstrap, job.spec.topics["predictions"]) == [1, 1, 2, 3]


def test_a_job_that_goes_back_twice_and_gives_in_another_order_writes_nothing_twice(job) -> None:
    job.bundle(1, 2)
    first = job.state.value
    job.bundle(3, 4, 5)
    job.go_back(first, new_process=True)
    job.bundle(3, 9)  # 4 and 5 are still to come
    job.bundle(9)
    second = job.state.value
    job.go_back(second, new_process=True)
    job.bundle(4, 5, 10)
    assert committed(job.spec.client.bootstrap, job.spec.topics["predictions"]) == [1, 2, 3, 4, 5, 9, 9, 10]
    assert json.loads(job.state.value)["counts"][job.spec.topics["predictions"]] == 7  # before its last bundle


def test_a_shard_knows_its_own_messages_from_those_of_another(job) -> None:
    one, other = (Job(job.spec, shard, 2) for shard in (0, 1))
    one.bundle(1, 2)
    other.bundle(1)
    checkpoint = one.state.value
    one.bundle(3)
    other.bundle(3, 4)
    one.go_back(checkpoint, new_process=True)
    one.bundle(3, 4)  # its own 3 stands there, and no 4 yet
    one.bundle(5)
    other.go_back(None, new_process=False)
    other.bundle(1, 3, 4, 6)
    assert sorted(committed(job.spec.client.bootstrap, job.spec.topics["predictions"])) == [1, 1, 2, 3, 3, 4, 4, 5, 6]
    topic = job.spec.topics["predictions"]
    assert [json.loads(shard.state.value)["counts"][topic] for shard in (one, other)] == [4, 3]  # before their last bundles


def test_equal_messages_count_as_often_as_they_are_given(job) -> None:
    job.bundle(0)
    checkpoint = job.state.value
    job.bundle(7, 7)
    job.go_back(checkpoint, new_process=True)
    job.bundle(7, 7, 7)
    assert committed(job.spec.client.bootstrap, job.spec.topics["predictions"]) == [0, 7, 7, 7]


def test_topics_are_told_apart(job) -> None:
    job.bundle(1)
    checkpoint = job.state.value
    job.bundle(2)
    job.go_back(checkpoint, new_process=True)
    job.bundle(2, output="dead_letters")
    job.bundle(2)
    bootstrap, topics = job.spec.client.bootstrap, job.spec.topics
    assert committed(bootstrap, topics["predictions"]) == [1, 2]
    assert committed(bootstrap, topics["dead_letters"]) == [2]


def test_a_worker_that_was_given_up_cannot_write_any_more(job) -> None:
    job.bundle(1)
    old, checkpoint = kafka_sink._writers.copy(), job.state.value
    lost = Job(job.spec)
    lost.state.value = checkpoint
    lost.bundle(2, commit=False)  # it hangs in the middle of a bundle
    job.go_back(checkpoint, new_process=True)
    job.bundle(2, 3)
    kafka_sink._writers.update(old)
    with pytest.raises(KafkaException, match=r"(?i)fenced|invalid producer epoch|newer instance|higher epoch"):
        lost.step.finish_bundle()
    assert committed(job.spec.client.bootstrap, job.spec.topics["predictions"]) == [1, 2, 3]


def test_recovery_reads_no_more_than_what_stands_behind_the_checkpoint(job, monkeypatch) -> None:
    for number in range(5):
        job.bundle(*np.arange(100 * number, 100 * number + 100).tolist())
    checkpoint = job.state.value
    job.bundle(1000)
    seen: list[bytes] = []
    real = kafka_sink._digest
    monkeypatch.setattr(kafka_sink, "_digest", lambda topic, value: seen.append(value) or real(topic, value))
    job.go_back(checkpoint, new_process=True)
    job.bundle(1000, 1001)
    assert len(seen) <= 100 + 1 + 2  # the last bundle before the checkpoint, what came behind, what is asked about now
