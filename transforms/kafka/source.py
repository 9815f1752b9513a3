"""A topic as a source: which columns its messages have, and how ranges of offsets are read.

A range is `[start_row, end_row)` of one partition and ends by position, not by count: compaction and transactions leave gaps
between offsets. What was written in transactions that were aborted, or are not decided yet, is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition

from models.kafka_client import KafkaClient, KafkaDataLost, Patience, Topic, TopicState, ends
from transforms.batches import MIN_WATERMARK_US
from transforms.decoding.files import DEFAULT_BATCH_ROWS, Decoded
from transforms.file_source import Range, ReadTask
from transforms.kafka.messages import MessageDecoder, Messages, gather, split_at
from transforms.planning import CACHE_BYTES
from transforms.schema import Schema, TimeSpec

_POLL_S = 0.1  # how long to wait for a poll's worth of messages


@dataclass(frozen=True)
class KafkaSource:
    """A topic of a stream and what is in its messages.

    Attributes:
        client: the cluster.
        topic: its name.
        format: `jsonl`, an object a message, or `csv`, a line a message.
        schema: the columns.
        time: where the event time comes from; without a column, from the timestamp that Kafka keeps with the message.
        key: name of the declared column that is filled with the message's key.
        fields: with `csv` the names of the fields in order; the declared columns if empty.
        batch_rows: the most messages that are decoded at a time.
        out_of_orderness_us: how far behind the newest record *of its partition* a record may come without being late.
        start: where a stream begins: `earliest`, `latest`, or the first messages from this time on (milliseconds since 1970).
        idle_s: how long a partition may be silent and still hold the stream; None for ever (see `transforms.kafka.watermarks`).
    """

    client: KafkaClient
    topic: str
    format: str
    schema: Schema
    time: TimeSpec = field(default_factory=TimeSpec)
    key: str | None = None
    fields: tuple[str, ...] = ()
    batch_rows: int = DEFAULT_BATCH_ROWS
    out_of_orderness_us: int = 0
    start: str | int = "earliest"
    idle_s: float | None = None

    def __post_init__(self) -> None:
        self.decoder(0)  # raises where the columns do not fit together
        if self.batch_rows < 1 or self.out_of_orderness_us < 0:
            raise ValueError(
                f"expected batch_rows of at least 1 and out_of_orderness_us of at least 0, "
                f"got {self.batch_rows} and {self.out_of_orderness_us}"
            )

    def decoder(self, partition: int) -> MessageDecoder:
        """The decoder of one partition."""
        return MessageDecoder(self.topic, partition, self.format, self.schema, self.time, self.key, self.fields)

    def range(self, partition: int, start: int, end: int) -> Range:
        """Offsets of one partition, as a part of the source."""
        return Range(f"{self.topic}/{partition}", partition, start, end)

    def all_tasks(self, ordered: bool = True) -> list[ReadTask]:
        """Everything that is there now: a task a partition, as the order within a partition is the only one there is.

        Args:
            ordered: plays no part.

        Raises:
            ValueError: there is no such topic.
            KafkaUnavailable: the cluster does not answer.
        """
        topic = Topic(self.client, self.topic)
        try:
            state = topic.state()
            starts = self.starts(topic, state)
        finally:
            topic.close()
        return [
            ReadTask((self.range(number, starts[number], end),), MIN_WATERMARK_US)
            for number, end in state.high.items()
            if end > starts[number]
        ]

    def starts(self, topic: Topic, state: TopicState) -> dict[int, int]:
        """By partition, where the stream begins."""
        if self.start == "earliest":
            return state.low
        return state.high if self.start == "latest" else topic.at_time(int(self.start))

    def read(self, part: Range) -> Iterator[Decoded]:
        """Reads and decodes a range, in pieces of at most `batch_rows` messages.

        What the last planned micro-batch of this process covers is taken from memory.

        Raises:
            KafkaDataLost: the range, or its beginning, is not there any more.
            KafkaUnavailable: the cluster does not answer.
        """
        planned = _planned.get(self, {}).get(part)
        if planned is not None:
            yield from planned
            return
        assert part.end_row is not None, "a range of a topic has an end"
        decoder, partition, end = self.decoder(part.index), part.index, part.end_row
        reader = TopicReader(self, {partition: part.start_row})
        try:
            reader.check_start(partition)
            while reader.positions[partition] < end:
                for _, messages in reader.poll():
                    piece = decoder.decode(messages)
                    if piece.next_row > end:
                        piece = split_at(piece, end)[0]
                    if piece.rows:
                        yield piece
        finally:
            reader.close()


# Of the last plan of each source in this process; what is in there is replaced, never changed.
_planned: dict[KafkaSource, Mapping[Range, list[Decoded]]] = {}


def keep_planned(source: KafkaSource, planned: Mapping[Range, list[Decoded]]) -> None:
    """Keeps what a planner has decoded for the run that reads it next, if it is not too much."""
    size = sum(piece.batch.nbytes + piece.dead.nbytes for pieces in planned.values() for piece in pieces)
    _planned[source] = planned if size <= CACHE_BYTES else {}


class TopicReader:
    """Reads partitions of a topic from given offsets on, in one consumer.

    Attributes:
        positions: by partition, up to where everything was given that is committed.
        at_end: the partitions of which there was nothing more when last heard of.
    """

    def __init__(self, source: KafkaSource, starts: Mapping[int, int], **settings: Any) -> None:
        """Opens the partitions.

        Args:
            source: the topic.
            starts: by partition, the first offset wanted.
            settings: further options for the consumer.
        """
        self._source = source
        self._patience = Patience(source.client, f"be read from topic {source.topic}")
        # The client tells this way of brokers that it cannot reach.
        self._consumer: Consumer = source.client.consumer(error_cb=self._patience.note, **settings)
        self._consumer.assign([TopicPartition(source.topic, number, offset) for number, offset in starts.items()])
        self.positions = dict(starts)
        self.at_end: set[int] = set()
        decoder = source.decoder(0)
        self._with_keys, self._with_timestamps = decoder.wants_keys, decoder.wants_timestamps

    def close(self) -> None:
        """Lets go of the connections."""
        self._consumer.close()

    def pause(self, partition: int) -> None:
        """Nothing of this partition until `resume`."""
        self._consumer.pause([TopicPartition(self._source.topic, partition)])

    def resume(self, partition: int) -> None:
        """Goes on with a partition."""
        self._consumer.resume([TopicPartition(self._source.topic, partition)])

    def add(self, partition: int, offset: int) -> None:
        """Reads a partition more."""
        self._consumer.incremental_assign([TopicPartition(self._source.topic, partition, offset)])
        self.positions[partition] = offset

    def check_start(self, partition: int) -> None:
        """Raises KafkaDataLost if what is wanted of a partition begins before what is there."""
        place, start = TopicPartition(self._source.topic, partition), self.positions[partition]
        asked = self._source.client.patiently(
            f"tell the offsets of {self._source.topic}/{partition}",
            lambda: ends(self._consumer, place, self._source.client.call_s),
        )
        if asked[0] > start:
            raise lost(self._source.topic, partition, start, asked[0])

    def poll(self, wait_s: float = _POLL_S, *, expected: bool = True, at_most: int | None = None) -> list[tuple[int, Messages]]:
        """What has come, at most `batch_rows` messages, by partition and in order of offset; empty after `wait_s` without any.

        Args:
            wait_s: how long to wait for that many.
            at_most: another number than `batch_rows`.
            expected: whether there is something to come, so that coming away with nothing for long is a fault.

        Raises:
            KafkaDataLost: a position is not there any more.
            KafkaUnavailable: there have been errors only for too long, or one that will not pass.
        """
        came = self._consumer.consume(at_most or self._source.batch_rows, wait_s)
        by_partition: dict[int, list[Any]] = {}
        answered = False
        for message in came:
            if (error := message.error()) is None:
                by_partition.setdefault(message.partition(), []).append(message)
                self.at_end.discard(message.partition())
            elif error.code() == KafkaError._PARTITION_EOF:
                # What is behind the last message up to here are marks of transactions and aborted records.
                self.positions[message.partition()] = max(self.positions[message.partition()], message.offset())
                self.at_end.add(message.partition())
                answered = True
            elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                partition = message.partition()
                self.check_start(partition)
                raise KafkaDataLost(
                    f"topic {self._source.topic}, partition {partition}: offset {self.positions[partition]} is beyond its end. "
                    "It was deleted and made again, or truncated: begin anew with --fresh or another output folder"
                )
            else:
                self._patience.failed(error)
        if by_partition or answered:
            self._patience.worked()
        elif not came and expected:
            self._patience.failed()
        given = []
        for partition, own in by_partition.items():
            messages = gather(own, self._with_keys, self._with_timestamps)
            # Its end may have been told of in the same poll.
            self.positions[partition] = max(self.positions[partition], int(messages.offsets[-1]) + 1)
            given.append((partition, messages))
        return given


def lost(topic: str, partition: int, start: int, low: int) -> KafkaDataLost:
    """Retention was faster than the job."""
    return KafkaDataLost(
        f"topic {topic}, partition {partition}: the offsets {start} to {low - 1} were removed by the topic's retention before "
        "they were read, and their records are lost to this job. Raise retention.ms or retention.bytes; to go on behind "
        "the gap, begin a job with another output folder"
    )
