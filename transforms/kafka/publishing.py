"""Rows into topics, exactly once: each micro-batch in one transaction that also notes its number.

The last message of the transaction goes to a small compacted topic: the publisher's id as the key, the number of the
micro-batch as the value. It becomes visible together with the rows or not at all. After a kill, the transaction that was open
is decided first (`init_transactions`), then the note is read: a micro-batch that it names is not written again.

References:
    KIP-98, "Exactly Once Delivery and Transactional Messaging".
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import NewTopic

from models.kafka_client import CALL_S, KafkaClient, KafkaUnavailable, Patience, ends
from transforms.kafka.json_lines import json_objects

ARROW_ROWS, ARROW_BYTES = 1000, 500_000  # of a message of format arrow at the most: brokers take 1 MB unless told otherwise
# A transaction that is open for longer is aborted by the cluster; the second is the most that brokers allow by default.
TRANSACTION_S, LONG_TRANSACTION_S = 60, 900
_PAUSE_S = 0.1
_END_S = 30.0  # how long one try to end a transaction may take
_BY_DEFAULT = -1  # as many partitions and replicas as the cluster gives a new topic


@dataclass(frozen=True)
class Output:
    """A topic to write to.

    Attributes:
        topic: its name.
        format: `json`, an object a row, or `arrow`, an Arrow IPC stream of up to 1,000 rows a message.
        key: with `json`, the column that becomes the message's key.
    """

    topic: str
    format: Literal["json", "arrow"] = "json"
    key: str | None = None


class TransactionFailed(Exception):
    """The transaction was given up and can be tried again."""


class Publisher:
    """Writes micro-batches into topics.

    Args:
        client: the cluster.
        id: names this publisher for ever, in its transactions and in its notes; one process at a time uses it.
        commits: the topic for the notes.
        transaction_s: how long sending a micro-batch may take. After a kill, readers of what is committed wait that long, if
            the job is not started again.
    """

    def __init__(self, client: KafkaClient, id: str, commits: str, transaction_s: int = TRANSACTION_S) -> None:
        self._client, self._id, self._commits, self._transaction_s = client, id, commits, transaction_s
        self._producer: Producer | None = None
        self._last = -1

    def prepare(self, topics: Iterable[str]) -> list[str]:
        """Makes the topics that do not exist yet, with the cluster's defaults; gives their names.

        Raises:
            KafkaUnavailable: the cluster does not answer, or refuses.
        """
        commits = NewTopic(self._commits, 1, _BY_DEFAULT, config={"cleanup.policy": "compact"})
        make_topics(self._client, [commits])
        return make_topics(self._client, map(default_topic, dict.fromkeys(topics)))

    def publish(self, number: int, rows: Mapping[Output, Iterable[pa.RecordBatch]]) -> bool:
        """Writes a micro-batch, if it is not there yet.

        Args:
            number: of the micro-batch; higher than any before.
            rows: by topic; iterated again where the transaction has to be tried again.

        Returns:
            Whether it was written; False if an earlier try had got so far.

        Raises:
            KafkaUnavailable: the cluster does not answer, or refuses. Nothing of the micro-batch is visible then, or all of it;
                the next try finds out.
        """
        patience = Patience(self._client, f"take the output of micro-batch {number}")
        while True:
            try:
                producer = self._opened()
                if number <= self._last:
                    return False
                self._write(producer, number, rows, patience)
                self._last = number
                return True
            except TransactionFailed as error:
                patience.failed(error.args[0])
                time.sleep(_PAUSE_S)

    def close(self) -> None:
        """Lets go of the connections."""
        self._producer = None

    def _opened(self) -> Producer:
        if self._producer is None:
            producer = self._client.producer(
                **{"transactional.id": self._id, "transaction.timeout.ms": self._transaction_s * 1000}
            )
            what = f"decide what {self._id} had begun to write"
            self._client.patiently(what, lambda: producer.init_transactions(CALL_S))
            self._last = self._last_noted()
            self._producer = producer
        return self._producer

    def _write(
        self, producer: Producer, number: int, rows: Mapping[Output, Iterable[pa.RecordBatch]], patience: Patience
    ) -> None:
        try:
            producer.begin_transaction()
            counts: dict[str, int] = {}
            for output, batches in rows.items():
                for batch in batches:
                    _produce(producer, output, batch)
                    counts[output.topic] = counts.get(output.topic, 0) + batch.num_rows
            producer.produce(self._commits, json.dumps({"number": number, "rows": counts}), self._id)
            while True:
                try:
                    producer.commit_transaction(_END_S)
                    return
                except KafkaException as error:
                    if not error.args[0].retriable():
                        raise
                    patience.failed(error.args[0])
        except KafkaException as error:
            self._give_up(producer, error.args[0])
        except BaseException:
            self._producer = None  # its transaction is open: the next try begins with a producer that decides it
            raise

    def _give_up(self, producer: Producer, error: KafkaError) -> None:
        """Aborts; the next try begins with a new producer, which learns from the cluster what became of this one."""
        self._producer = None
        if error.code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH):
            raise KafkaUnavailable(
                f"another process publishes as {self._id}: stop one of the two. If there is none, sending took longer than "
                f"{self._transaction_s} s: make the micro-batches smaller"
            ) from None
        if not error.fatal():
            try:
                producer.abort_transaction(CALL_S)
            except KafkaException as failed:
                raise TransactionFailed(failed.args[0]) from None
        raise TransactionFailed(error) from None

    def _last_noted(self) -> int:
        """The number of the last micro-batch of ours that is visible; -1 if there is none."""
        plain = self._client.consumer(**{"isolation.level": "read_uncommitted"})
        consumer = self._client.consumer()
        try:
            what = f"read the topic {self._commits}"
            topics = self._client.patiently(what, lambda: plain.list_topics(self._commits, timeout=CALL_S)).topics
            last = -1
            for partition in topics[self._commits].partitions:
                place = TopicPartition(self._commits, partition)
                low, end = self._client.patiently(what, partial(ends, plain, place))
                self._wait_until_decided(consumer, place, end)
                last = max([last, *self._notes(consumer, place, low, end)])
            return last
        finally:
            plain.close()
            consumer.close()

    def _wait_until_decided(self, consumer: Consumer, place: TopicPartition, end: int) -> None:
        """Waits for transactions of others: a note of ours behind an undecided one of theirs cannot be seen yet."""
        waited_until = time.monotonic() + LONG_TRANSACTION_S + self._client.patience_s
        while self._client.patiently(f"read the topic {place.topic}", partial(ends, consumer, place))[1] < end:
            if time.monotonic() > waited_until:
                raise KafkaUnavailable(f"topic {place.topic} has a transaction of another job that is never decided")
            time.sleep(_PAUSE_S)

    def _notes(self, consumer: Consumer, place: TopicPartition, low: int, end: int) -> Iterator[int]:
        consumer.assign([TopicPartition(place.topic, place.partition, low)])
        patience, position = Patience(self._client, f"be read from topic {place.topic}"), low
        while position < end:
            for message in consumer.consume(10_000, _PAUSE_S):
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    patience.failed(error)
                    continue
                patience.worked()
                position = message.offset() + (error is None)
                if error is None and message.key() == self._id.encode() and message.value():
                    yield int(json.loads(message.value())["number"])


def default_topic(name: str) -> NewTopic:
    """A topic with the partitions and replicas that the cluster gives a new one, and the broker's time on its messages.

    A broker refuses messages from the future, so that a job on a machine whose clock is wrong would stand still.
    """
    config = {"message.timestamp.type": "LogAppendTime"}
    return NewTopic(name, num_partitions=_BY_DEFAULT, replication_factor=_BY_DEFAULT, config=config)


def make_topics(client: KafkaClient, topics: Iterable[NewTopic]) -> list[str]:
    """Makes the topics that do not exist yet; gives their names.

    Raises:
        KafkaUnavailable: the cluster does not answer, or refuses.
    """
    admin = client.admin()
    known = client.patiently("list the topics", lambda: admin.list_topics(timeout=CALL_S)).topics
    missing = [topic for topic in topics if topic.topic not in known]
    for topic in missing:
        client.patiently(f"make the topic {topic.topic}", partial(_made, admin, topic))
    return [topic.topic for topic in missing]


def _produce(producer: Producer, output: Output, batch: pa.RecordBatch) -> None:
    keys: list[str | None] = []
    if output.format == "arrow":
        rows = max(1, min(ARROW_ROWS, ARROW_BYTES * batch.num_rows // max(batch.nbytes, 1)))
        values = [_ipc(batch.slice(start, rows)) for start in range(0, batch.num_rows, rows)]
        keys = [None] * len(values)
    else:
        values, keys = json_messages(batch, output.key)
    for value, key in zip(values, keys, strict=True):
        while True:
            try:
                producer.produce(output.topic, value, key)
                break
            except BufferError:  # its queue is full: it is being sent
                producer.poll(_PAUSE_S)
    producer.poll(0)


def json_messages(batch: pa.RecordBatch, key: str | None) -> tuple[list[bytes], list[str | None]]:
    """The rows as values and keys of messages; `key` is the column for the keys, if they have any."""
    values = json_objects(batch).cast(pa.binary()).to_pylist()
    if key is None:
        return values, [None] * len(values)
    column = batch.column(key)
    column = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    return values, column.cast(pa.string()).to_pylist()


def _ipc(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _made(admin: Any, topic: NewTopic) -> None:
    try:
        admin.create_topics([topic], request_timeout=CALL_S)[topic.topic].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
