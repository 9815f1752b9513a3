"""Micro-batches cut from a real topic."""

from __future__ import annotations

import json
import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from models.kafka_client import KafkaClient, KafkaDataLost, KafkaUnavailable
from tests.kafka import Cluster
from transforms.batches import MIN_WATERMARK_US, SEQUENCE
from transforms.kafka import source as source_module
from transforms.kafka.planning import KafkaPlan, KafkaPlanner, KafkaPosition
from transforms.kafka.source import KafkaSource
from transforms.schema import Schema, TimeSpec
from transforms.sources import read_ranges

SECOND = 1_000_000
START = KafkaPosition()


def topic_source(kafka: Cluster, topic: str, **options: Any) -> KafkaSource:
    client = options.pop("client", kafka.client())
    return KafkaSource(client, topic, "jsonl", Schema.parse("t:int64,n:int64"), TimeSpec("t", "s"), **options)


def records(*times: int) -> list[dict[str, int]]:
    return [{"t": time, "n": number} for number, time in enumerate(times)]


def plans(planner: KafkaPlanner, position: KafkaPosition = START, **limits: Any) -> list[KafkaPlan]:
    found = []
    while (plan := planner.plan(position, **limits)) is not None:
        found.append(plan)
        assert KafkaPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        position = plan.end
    return found


def rows(source: KafkaSource, plan: KafkaPlan, *, from_memory: bool = True) -> pa.Table:
    if not from_memory:
        source_module._planned.clear()
    pieces = [piece for task in plan.tasks for piece in read_ranges(source, *task, True)]
    return pa.Table.from_batches([piece.batch for piece in pieces]).unify_dictionaries().sort_by(SEQUENCE)


def times(table: pa.Table) -> list[list[int]]:
    """The event times in seconds, by partition."""
    found: dict[str, list[int]] = {}
    for row in table.to_pylist():
        found.setdefault(row["source"][-1], []).append(row["t"])
    return [found[number] for number in sorted(found)]


def stamps(table: pa.Table) -> dict[int, int]:
    """The watermark that each time met."""
    return dict(zip(table["t"].to_pylist(), table["watermark_us"].to_pylist(), strict=True))


def test_micro_batches_of_so_many_records_cover_a_topic_once(kafka: Cluster) -> None:
    topic = kafka.topic(3)
    for partition in range(3):
        kafka.send(topic, records(*range(partition, 300, 3)), partition)
    kafka.send(topic, [b"rubbish", None], 1)
    source = topic_source(kafka, topic, batch_rows=40)
    planner = KafkaPlanner(source)
    found = plans(planner, max_records=77)
    planner.close()
    assert [plan.rows for plan in found] == [77, 77, 77, 71]
    tables = [rows(source, plan, from_memory=False) for plan in found]
    assert sorted(pa.concat_tables(tables)["t"].to_pylist()) == list(range(300))
    # The partition that is farthest behind goes first: none gets far ahead of the others.
    reached = [max(column) for column in times(pa.concat_tables(tables[:2]))]
    assert max(reached) - min(reached) <= 3 * 40
    assert [plan.watermark_us for plan in found] == sorted(plan.watermark_us for plan in found)
    assert found[-1].watermark_us == 297 * SECOND - 1
    assert found[-1].max_event_time_us == 299 * SECOND


def test_what_memory_holds_is_what_is_read_again(kafka: Cluster) -> None:
    topic = kafka.topic(2)
    kafka.send(topic, records(5, 3, 9, 7))
    kafka.send(topic, records(4, 8), 1)
    source = topic_source(kafka, topic)
    (plan,) = plans(KafkaPlanner(source))
    kept = rows(source, plan)
    assert kept.equals(rows(source, plan, from_memory=False))
    # Each partition has a watermark of its own: 3 and 7 are behind 5 and 9, and 4 is behind nothing.
    assert pc.less(kept["event_time"].cast(pa.int64()), kept["watermark_us"]).to_pylist() == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]


def test_a_span_of_event_time(kafka: Cluster) -> None:
    topic = kafka.topic(2)
    kafka.send(topic, records(1, 4, 12, 14, 31))
    kafka.send(topic, records(11, 15, 22), 1)
    source = topic_source(kafka, topic)
    found = plans(KafkaPlanner(source), max_span_us=10 * SECOND)
    assert [times(rows(source, plan)) for plan in found] == [[[1, 4]], [[12, 14], [11, 15]], [[22]], [[31]]]


def test_gaps_that_transactions_leave(kafka: Cluster) -> None:
    topic = kafka.topic()
    kafka.transact(topic, records(1, 2))
    kafka.transact(topic, records(3, 4), commit=False)
    kafka.transact(topic, records(5, 6))
    source = topic_source(kafka, topic)
    planner = KafkaPlanner(source)
    found = plans(planner, max_records=3)
    assert [times(rows(source, plan, from_memory=False)) for plan in found] == [[[1, 2, 5]], [[6]]]
    # The last mark of a transaction is passed over, so that there is nothing new.
    assert planner.plan(found[-1].end) is None
    open_one = kafka.transact(topic, records(7), commit=None)
    assert planner.plan(found[-1].end) is None, "what is not decided is not read"
    open_one.commit_transaction()
    # The broker has the decision then, and the partition gets its mark a moment later.
    deadline = time.monotonic() + 30
    while not (later := plans(planner, found[-1].end)):
        assert time.monotonic() < deadline
    assert times(rows(source, later[0])) == [[7]]


def test_a_planner_that_starts_again_plans_on(kafka: Cluster) -> None:
    topic = kafka.topic()
    kafka.send(topic, records(*range(10)))
    source = topic_source(kafka, topic)
    first = KafkaPlanner(source).plan(START, 4)
    assert first is not None
    position = KafkaPosition.from_json(json.loads(json.dumps(first.end.to_json())))
    assert [times(rows(source, plan)) for plan in plans(KafkaPlanner(source), position)] == [[list(range(4, 10))]]


def test_where_a_stream_begins(kafka: Cluster) -> None:
    topic = kafka.topic()
    kafka.send(topic, records(1, 2))
    latest = KafkaPlanner(topic_source(kafka, topic, start="latest"))
    assert latest.plan(START) is None
    kafka.send(topic, records(3))
    source = topic_source(kafka, topic, start="latest")
    plan = latest.plan(START)
    assert plan is not None, "what came after the first look is not skipped"
    assert times(rows(source, plan)) == [[3]]
    future = KafkaPlanner(topic_source(kafka, topic, start=2**42))
    assert future.plan(START) is None


def test_partitions_that_are_added(kafka: Cluster) -> None:
    topic = kafka.topic()
    kafka.send(topic, records(100, 200))
    source = topic_source(kafka, topic)
    planner = KafkaPlanner(source)
    (first,) = plans(planner)
    assert first.watermark_us == 200 * SECOND - 1
    kafka.grow(topic, 2)
    kafka.send(topic, records(150, 300), 1)
    kafka.send(topic, records(400), 0)
    deadline = 50
    while not (found := [plan for plan in plans(planner, first.end) if len(plan.tasks) == 2]) and deadline:
        deadline -= 1  # the client learns of the new partition when it asks for the topic's description again
    table = rows(source, found[-1], from_memory=False)
    assert times(table) == [[400], [150, 300]]
    assert found[-1].watermark_us == 300 * SECOND - 1
    # What lies before what the stream has released by then is late: it cannot be put in order any more.
    assert stamps(table)[150] == 200 * SECOND


def test_an_empty_partition_holds_the_stream_unless_it_is_idle(kafka: Cluster) -> None:
    topic = kafka.topic(2)
    kafka.send(topic, records(100, 200))
    (held,) = plans(KafkaPlanner(topic_source(kafka, topic)))
    assert held.watermark_us == MIN_WATERMARK_US
    source = topic_source(kafka, topic, idle_s=0.0)
    planner = KafkaPlanner(source)
    (first,) = plans(planner)
    assert first.watermark_us == 200 * SECOND - 1
    kafka.send(topic, records(150, 250), 1)
    (second,) = plans(planner, first.end)
    table = rows(source, second, from_memory=False)
    assert stamps(table) == {150: 200 * SECOND, 250: 200 * SECOND}
    assert second.watermark_us >= first.watermark_us


def test_a_watermark_that_moves_alone_is_a_plan_without_rows(kafka: Cluster) -> None:
    topic = kafka.topic(2)
    kafka.send(topic, records(100))
    kafka.send(topic, records(50), 1)
    (first,) = plans(KafkaPlanner(topic_source(kafka, topic)))
    assert first.watermark_us == 50 * SECOND - 1
    kafka.send(topic, records(100), 1)
    idle = KafkaPlanner(topic_source(kafka, topic, idle_s=0.0))
    (second,) = plans(idle, first.end)
    assert (second.rows, second.watermark_us) == (1, 100 * SECOND - 1)


def test_what_retention_took_is_told(kafka: Cluster) -> None:
    topic = kafka.topic()
    kafka.send(topic, records(*range(10)))
    source = topic_source(kafka, topic)
    planner = KafkaPlanner(source)
    plan = planner.plan(START, 4)
    assert plan is not None
    kafka.remove_before(topic, 0, 6)
    with pytest.raises(KafkaDataLost, match="offsets 4 to 5 were removed"):
        planner.plan(plan.end)
    with pytest.raises(KafkaDataLost, match="offsets 0 to 5 were removed"):
        rows(source, plan, from_memory=False)
    assert times(rows(source, plans(KafkaPlanner(source))[0])) == [[6, 7, 8, 9]], "a new job begins with what is there"


def test_a_topic_that_was_made_again_is_told(kafka: Cluster) -> None:
    topic = kafka.topic()
    kafka.send(topic, records(*range(5)))
    (plan,) = plans(KafkaPlanner(topic_source(kafka, topic)))
    kafka.delete(topic)
    kafka.topic(name=topic)
    kafka.send(topic, records(*range(9)))
    with pytest.raises(KafkaDataLost, match="made again"):
        KafkaPlanner(topic_source(kafka, topic)).plan(plan.end)


def test_offsets_beyond_the_end_are_told(kafka: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transforms.kafka.planning._AGAIN_S", 0.0)
    topic = kafka.topic()
    kafka.send(topic, records(1))
    planner = KafkaPlanner(topic_source(kafka, topic))
    (plan,) = plans(planner)
    shorter = plan.to_json()["end"] | {"topic_id": None, "partitions": {"0": {"offset": 7}}}
    with pytest.raises(KafkaDataLost, match="read up to offset 7, and it ends at 1"):
        planner.plan(KafkaPosition.from_json(shorter))


def test_a_cluster_that_does_not_answer_and_a_topic_that_is_not_there(kafka: Cluster) -> None:
    nobody = KafkaClient("127.0.0.1:1", patience_s=0.3)
    with pytest.raises(KafkaUnavailable, match=r"127\.0\.0\.1:1 could not list the topics for 0\.3 s"):
        KafkaPlanner(topic_source(kafka, "t", client=nobody)).plan(START)
    kafka.topic()
    with pytest.raises(ValueError, match=r"no topic 'nowhere' .*topics there: ."):
        KafkaPlanner(topic_source(kafka, "nowhere")).plan(START)


def test_options_that_exactly_once_rests_on_and_secrets_are_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"isolation\.level is set by Midstream"):
        KafkaClient("b:1", (("consumer.isolation.level", "read_uncommitted"),)).consumer()
    with pytest.raises(ValueError, match=r"sasl\.password is a secret"):
        KafkaClient("b:1", (("sasl.password", "x"),))
    config = tmp_path / "client.properties"
    config.write_text("# TLS\nsecurity.protocol = SSL\nproducer.compression.type=lz4\n\nssl.ca.location=/nowhere.pem\n")
    with pytest.raises(Exception, match=r"ssl\.ca\.location"):
        KafkaClient("b:1", config_file=str(config)).consumer()
    config.write_text("security.protocol\n")
    with pytest.raises(ValueError, match="line 1: expected name=value"):
        KafkaClient("b:1", config_file=str(config)).consumer()
