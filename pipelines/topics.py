"""A job's topics: the sections that name them made into a source, with what can be found wrong found before anything runs."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from models.kafka_client import KafkaClient, Topic
from pipelines.job import KafkaSection, SourceSection
from transforms.batches import MIN_WATERMARK_US
from transforms.kafka.planning import KafkaPosition
from transforms.kafka.source import KafkaSource, TopicReader
from transforms.schema import Schema, TimeSpec
from transforms.sources import Position, Source

_SHOWN_MESSAGES = 1000  # looked at to propose columns


def client_of(section: KafkaSection) -> KafkaClient:
    """The cluster that a section names."""
    options = tuple(sorted(section.options.items()))
    return KafkaClient(section.bootstrap, options, section.config, section.patience / 1e6)


def topic_source(section: SourceSection, time: TimeSpec, declare: str) -> KafkaSource:
    """The source that a section names.

    Args:
        section: has the section `kafka`.
        time: where the event time comes from.
        declare: the parameter that declares columns.

    Raises:
        ValueError: something does not fit, or there is no such topic.
        KafkaUnavailable: the cluster does not answer.
    """
    kafka = section.kafka
    assert kafka is not None
    format = "jsonl" if section.format == "auto" else section.format
    client = client_of(kafka)
    if not section.columns:
        raise ValueError(_columns_wanted(client, kafka.topic, format, declare))
    source = KafkaSource(
        client,
        kafka.topic,
        format,
        Schema.parse(section.columns),
        time,
        kafka.key,
        kafka.fields,
        section.batch_rows,
        section.out_of_orderness,
        kafka.start if kafka.start in ("earliest", "latest") else _milliseconds(kafka.start),
        None if kafka.idle is None else kafka.idle / 1e6,
    )
    topic = Topic(client, kafka.topic)
    try:
        topic.partitions()
    finally:
        topic.close()
    return source


def empty_partitions(source: Source | None, end: Position | KafkaPosition) -> str | None:
    """What to tell of partitions that have had no record yet, where a stream waits for them; None if it does not."""
    if not isinstance(source, KafkaSource) or not isinstance(end, KafkaPosition):
        return None
    empty = [number for number, at in end.partitions.items() if at.newest_us == MIN_WATERMARK_US and not at.idle]
    if not empty or len(empty) == len(end.partitions):
        return None
    names = ", ".join(map(str, sorted(empty)))
    return (
        f"topic {source.topic}: nothing is closed or put in order before there is a record in partition {names}, too. If it "
        "may stay empty, name a time after which it is not waited for: --param idle=1m"
    )


def _columns_wanted(client: KafkaClient, topic: str, format: str, declare: str) -> str:
    """Why a topic's columns are not inferred, with a proposal from its first messages."""
    wanted = (
        "the columns of a topic have to be declared: its first messages go one day, and a job that is gone on with must read "
        f"the others as before. Give --param {declare}="
    )
    if format != "jsonl":
        return f"{wanted}price:float64,city:string"
    source = KafkaSource(client, topic, format, Schema.parse("unknown:string?"))
    lines: list[bytes] = []
    for task in source.all_tasks():
        (part,) = task.ranges
        reader = TopicReader(source, {part.index: part.start_row})
        found: list[bytes | None] = []
        try:
            while reader.positions[part.index] < (part.end_row or 0) and len(found) < _SHOWN_MESSAGES:
                for _, messages in reader.poll(at_most=_SHOWN_MESSAGES):
                    found += messages.values
        finally:
            reader.close()
        lines += [line.replace(b"\n", b" ") for line in found if line]
        if len(lines) >= _SHOWN_MESSAGES:
            break
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "messages.jsonl"
        file.write_bytes(b"".join(line + b"\n" for line in lines))
        try:
            return f"{wanted}{Schema.infer(str(file))} (this is what the first messages look like)"
        except ValueError:
            return f"{wanted}price:float64,city:string"


def _milliseconds(moment: str) -> int:
    given = datetime.fromisoformat(moment)
    return int((given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp() * 1000)
