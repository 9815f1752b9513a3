"""Exactly once into topics, from a job that starts again from its last checkpoint whenever anything fails.

A job that goes back to a checkpoint gives once more what it had given since. Beam has no hook that would let a transaction wait
for the checkpoint, so the sink looks: Beam's state holds, from the last checkpoint, how far the topics went then, and what
stands behind that when the sink starts again has been written already. What the job gives is a function of its input, so it is
the same bytes again, and left out.

Two instances never write at once: each bundle is one transaction of a `transactional.id` of its shard, and opening that shuts
out whoever had it before, his open transaction included. Where there are several shards, each message names its own in a
header, so that a shard knows its messages again. Readers that set `isolation.level=read_committed` see every message once.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from models.kafka_client import CALL_S, KafkaClient, Topic, ends
from models.storage import write_text_atomically
from transforms.batches import SOURCE
from transforms.continuous.advance import LAST_US
from transforms.kafka.publishing import json_messages

_BEGIN = ""  # in place of the name of an output
SHARD_HEADER = "midstream-shard"
Message = tuple[str, str | None, bytes]  # topic, key, value
Ends = dict[str, dict[int, int]]  # by topic and partition, the offset behind the last message
_POLL_S = 0.1  # a poll returns what has come after this, and waits no longer for more
_OPEN_S = 30.0  # for opening and committing a transaction, which may have to wait for the broker


@dataclass(frozen=True)
class TopicsSpec:
    """Where a job writes to.

    Attributes:
        client: the cluster.
        topics: by name of the output, the topic.
        keys: by name of the output, the column that becomes the message's key; none where it is missing.
        job: names the transactions; two jobs of one name shut each other out.
        status: beginning of the names of files that tell how many messages each shard has written, by topic; None for none.
    """

    client: KafkaClient
    topics: Mapping[str, str]
    keys: Mapping[str, str]
    job: str
    status: str | None = None

    def ends(self) -> Ends:
        """How far the topics go now."""
        found: Ends = {}
        for name in set(self.topics.values()):
            topic = Topic(self.client, name)
            try:
                found[name] = topic.state().high
            finally:
                topic.close()
        return found


class WriteTopics(beam.PTransform):
    """Writes streams of RecordBatches, a JSON object a row. Input: a dict from name of the output to
    PCollection.

    Counts `written` and `written_before` (left out, as they stood there already) in the metrics namespace `midstream`.
    """

    def __init__(
        self, spec: TopicsSpec, starts: Ends, columns: Mapping[str, list[str]], shards: int = 1, finished: str | None = None
    ) -> None:
        """Creates the sink.

        Args:
            spec: the topics.
            starts: how far they went when the job was made: what a job that has no checkpoint yet begins behind.
            columns: by name of the output, the columns to write, in order; all where it is missing.
            shards: how many transactions side by side; rows of a source stay in one shard.
            finished: a file to write when the stream has ended and all is in the topics; `-` and the shard's number behind it.
        """
        super().__init__()
        self._spec, self._starts, self._columns = spec, starts, columns
        self._shards, self._finished = shards, finished

    def expand(self, streams: Mapping[str, beam.PCollection]) -> beam.PCollection:
        hint = tuple[int, tuple[str, pa.RecordBatch]]
        keyed = [
            rows | f"to {name}" >> beam.FlatMap(_shard, name, self._columns.get(name), self._shards).with_output_types(hint)
            for name, rows in streams.items()
        ]
        # An element for each shard from the start, so that one without rows says, too, when the stream has ended.
        (any_stream,) = list(streams.values())[:1]
        begin = any_stream.pipeline | beam.Impulse()
        keyed.append(begin | "shards" >> beam.FlatMap(_each_shard, self._shards).with_output_types(hint))
        write = Write(self._spec, self._starts, self._finished, self._shards)
        return keyed | beam.Flatten() | "write" >> beam.ParDo(write).with_output_types(int)


def _shard(
    batch: pa.RecordBatch, name: str, columns: list[str] | None, shards: int
) -> Iterator[tuple[int, tuple[str, pa.RecordBatch]]]:
    if not batch.num_rows:
        return
    source = batch.column(SOURCE)[0].as_py() if shards > 1 else None
    yield (
        (blake2b(str(source).encode(), digest_size=8).digest()[0] % shards if source else 0),
        (name, batch if columns is None else batch.select(columns)),
    )


def _each_shard(_: bytes, shards: int) -> Iterator[tuple[int, tuple[str, pa.RecordBatch]]]:
    for shard in range(shards):
        yield shard, (_BEGIN, pa.RecordBatch.from_pydict({SOURCE: pa.array([], pa.string())}))


class Write(beam.DoFn):
    """Takes (shard, (name of the output, batch)); each bundle is a transaction."""

    NOTED = ReadModifyWriteStateSpec("noted", BytesCoder())
    END = TimerSpec("end", TimeDomain.WATERMARK)

    def __init__(self, spec: TopicsSpec, starts: Ends, finished: str | None = None, shards: int = 1) -> None:
        self._spec, self._starts, self._finished, self._shards = spec, starts, finished, shards
        self._written = Metrics.counter("midstream", "written")
        self._before = Metrics.counter("midstream", "written_before")

    def start_bundle(self) -> None:
        self._pending: dict[int, list[Message]] = {}
        self._writers: dict[int, _Writer] = {}
        self._ended: list[int] = []

    def process(
        self,
        keyed: tuple[int, tuple[str, pa.RecordBatch]],
        noted: beam.DoFn.StateParam = beam.DoFn.StateParam(NOTED),
        end: beam.DoFn.TimerParam = beam.DoFn.TimerParam(END),
    ) -> None:
        shard, (name, batch) = keyed
        if name == _BEGIN:
            end.set(Timestamp(micros=LAST_US))
            return
        if shard not in self._writers:
            self._writers[shard] = _writer(self._spec, shard, self._shards)
        recorded = noted.read()
        writer = self._writers[shard]
        if not writer.follows(recorded):
            note = json.loads(recorded) if recorded else {}
            writer.recover(note.get("ends", self._starts), note.get("counts", {}), note.get("there", {}))
        noted.write(writer.note())
        topic = self._spec.topics[name]
        values, keys = json_messages(batch, self._spec.keys.get(name))
        fresh = [(topic, key, value) for key, value in zip(keys, values, strict=True) if not writer.stands_there(topic, value)]
        self._before.inc(len(values) - len(fresh))
        self._pending.setdefault(shard, []).extend(fresh)

    @on_timer(END)
    def at_end(self, shard: int = beam.DoFn.KeyParam) -> None:
        self._ended.append(shard)

    def finish_bundle(self) -> None:
        for shard, messages in self._pending.items():
            if messages:
                self._writers[shard].commit(messages)
                self._written.inc(len(messages))
        for shard in self._ended if self._finished is not None else ():
            write_text_atomically(f"{self._finished}-{shard}", "")


class _Writer:
    """The one writer of a shard in this process."""

    def __init__(self, spec: TopicsSpec, shard: int, shards: int) -> None:
        self._spec, self._shard = spec, shard
        self._headers = [(SHARD_HEADER, str(shard).encode())] if shards > 1 else []
        self._producer: Any = None
        self._token = ""
        self._number = 0
        self._ends: Ends = {}
        self._counts: Counter[str] = Counter()
        self._there: Counter[bytes] = Counter()

    def follows(self, recorded: bytes | None) -> bool:
        """Whether Beam's state is as this writer left it; otherwise the job has gone back to a checkpoint, or just started."""
        return bool(recorded) and self._producer is not None and json.loads(recorded or b"{}")["token"] == self._last_token()

    def recover(self, ends: Ends, counts: Mapping[str, int], there: Mapping[str, int]) -> None:
        """Shuts out who wrote before, and reads what stands behind these ends; `counts` by topic stand before them."""
        self._token, self._number, self._counts = uuid.uuid4().hex, 0, Counter(counts)
        # The state names partitions by text, as JSON does.
        self._ends = {topic: {int(number): offset for number, offset in own.items()} for topic, own in ends.items()}
        self._producer = self._spec.client.producer(**{"transactional.id": f"midstream-{self._spec.job}-{self._shard}"})
        self._spec.client.patiently("open a transaction", lambda: self._producer.init_transactions(_OPEN_S))
        # What a recovery before this one had found, and the job had not given again by its checkpoint, may still come.
        self._there = Counter({bytes.fromhex(digest): count for digest, count in there.items()})
        for topic, value in self._read_behind():
            self._there[_digest(topic, value)] += 1
            self._counts[topic] += 1

    def note(self) -> bytes:
        """What the state has to say before what comes now is written."""
        self._number += 1
        note: dict[str, Any] = {"token": self._last_token(), "ends": self._ends, "counts": self._counts}
        if self._there:
            note["there"] = {digest.hex(): count for digest, count in self._there.items()}
        return json.dumps(note).encode()

    def stands_there(self, topic: str, value: bytes) -> bool:
        """Whether this message was written before the job went back; asked once for each."""
        if not self._there:
            return False
        digest = _digest(topic, value)
        if not self._there[digest]:
            return False
        self._there[digest] -= 1
        if not self._there[digest]:
            del self._there[digest]
        return True

    def commit(self, messages: list[Message]) -> None:
        """Writes messages in one transaction.

        Raises:
            KafkaException: it did not work. Nothing is written then; the bundle, and the job, go back.
        """
        ends: Ends = {}

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is None:
                own = ends.setdefault(message.topic(), {})
                own[message.partition()] = max(own.get(message.partition(), 0), message.offset() + 1)

        producer, self._producer = self._producer, None  # if anything fails, the next bundle begins anew
        producer.begin_transaction()
        for topic, key, value in messages:
            while True:
                try:
                    producer.produce(topic, value, key, on_delivery=delivered, headers=self._headers)
                    break
                except BufferError:
                    producer.poll(1.0)
        producer.flush(_OPEN_S)
        producer.commit_transaction(_OPEN_S)
        for topic, own in ends.items():
            self._ends.setdefault(topic, {}).update(own)
        self._counts.update(topic for topic, _, _ in messages)
        self._producer = producer
        if self._spec.status is not None:
            write_text_atomically(f"{self._spec.status}-{self._shard}.json", json.dumps(self._counts))

    def _last_token(self) -> str:
        return f"{self._token}-{self._number}"

    def _read_behind(self) -> Iterator[tuple[str, bytes]]:
        # Up to where the topics end with all that is not decided: a message of ours may stand behind the open transaction of
        # another shard, and is seen when that is decided.
        plain = self._spec.client.consumer(**{"isolation.level": "read_uncommitted"})
        consumer = self._spec.client.consumer(**{"auto.offset.reset": "earliest"})
        try:
            for topic in set(self._spec.topics.values()):
                for number in plain.list_topics(topic, timeout=CALL_S).topics[topic].partitions:
                    place = TopicPartition(topic, number, self._ends.setdefault(topic, {}).setdefault(number, 0))
                    what = f"tell the end of {topic}/{number}"
                    _, end = self._spec.client.patiently(what, partial(ends, plain, place))
                    yield from ((topic, value) for value in _values(consumer, place, end, self._headers))
                    self._ends[topic][number] = max(end, self._ends[topic][number])
        finally:
            plain.close()
            consumer.close()


def _values(consumer: Consumer, place: TopicPartition, end: int, headers: Sequence[tuple[str, bytes]]) -> Iterator[bytes]:
    """The committed messages of a partition from a place on, of those that have all of these headers."""
    position = place.offset
    if position < end:
        consumer.assign([place])
    while position < end:
        for message in consumer.consume(10_000, _POLL_S):
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            position = message.offset() + (error is None)
            if error is None and message.offset() < end and set(headers) <= set(message.headers() or ()):
                yield message.value() or b""


def _digest(topic: str, value: bytes) -> bytes:
    return blake2b(value, digest_size=16, key=topic.encode()[:64]).digest()


_writers: dict[tuple[str, str, int], _Writer] = {}
_lock = threading.Lock()


def _writer(spec: TopicsSpec, shard: int, shards: int) -> _Writer:
    """The process's writer for a shard; the bundles of a shard come one after the other, in whichever instance of the DoFn."""
    with _lock:
        return _writers.setdefault((spec.client.bootstrap, spec.job, shard), _Writer(spec, shard, shards))
