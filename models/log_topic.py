"""The entries of an activation log as messages of a Kafka topic: for operators and jobs that share no disk.

The topic has one partition, so its messages have one order, and keeps everything. A message counts as entry n if it is the
first one behind entry n - 1 that says so. Who appends has read up to entry n - 1, sends, and reads on up to what he sent:
whether he was first is then what everybody reads, too. No transaction is needed, and a writer that is killed leaves nothing
that others would have to wait for.

The first message with the key `log` says what holds for the whole log; entries have the key `entry`.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import ConfigResource, NewTopic

from models.kafka_client import KafkaClient, KafkaUnavailable, Patience, ends
from models.log_faults import LogCorrupt, LogError
from models.log_store import TopicPlace

_HEADER, _ENTRY = b"log", b"entry"
_POLL_S = 0.1
_MESSAGES = 10_000  # taken at once
_KEPT = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
_BY_DEFAULT = -1  # as many replicas as the cluster gives a new topic


class LogTopic:
    """See `models.log_store.LogStore`. Safe to share between threads and to pickle."""

    _consumer: Consumer | None
    _asker: Consumer | None  # a connection without fetches: behind one that waits for news, a question waits 100 ms
    _producer: Producer | None
    _header: str | None
    _position: int  # the next offset to read
    _count: int  # entries that were read
    _texts: list[str]  # of the entries behind the first `_dropped`: who asks has seen those
    _dropped: int
    _mine: bytes  # names the message that was sent last
    _won: bool  # whether that one counts

    def __init__(self, place: TopicPlace, patience_s: float = 60.0) -> None:
        """Takes a topic; nothing is asked before the first call.

        Args:
            place: the topic.
            patience_s: how long a cluster that does not answer is asked again.
        """
        self._place = place
        self._client = KafkaClient(place.bootstrap, (), place.config, patience_s)
        self._lock = threading.RLock()
        self._forget()

    def header(self) -> str | None:
        with self._lock:
            self._read_on()
            return self._header

    def begin(self, text: str) -> None:
        with self._lock:
            self._read_on()
            if self._header is None:
                self._send(_HEADER, text)

    def read(self, seen: int) -> list[str]:
        with self._lock:
            if seen < self._dropped:  # of another object's view
                self._close()
            self._read_on()
            if self._count < seen:
                raise LogCorrupt(
                    f"{self.place(seen)} was there and is gone: the topic was made anew, or is another one. Restore it."
                )
            del self._texts[: seen - self._dropped]
            self._dropped = seen
            return list(self._texts)

    def create(self, sequence: int, text: str) -> bool:
        with self._lock:
            self._read_on()
            if self._count >= sequence:
                return False
            self._send(_ENTRY, text)
            return self._won

    def place(self, sequence: int) -> str:
        return f"entry {sequence} in topic {self._place.topic} at {self._place.bootstrap}"

    def __getstate__(self) -> dict[str, Any]:
        return {"_place": self._place, "_client": self._client}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self._consumer, self._asker, self._producer, self._header = None, None, None, None
        self._position = self._count = self._dropped = 0
        self._texts = []
        self._mine, self._won = b"", False

    def _close(self) -> None:
        for consumer in (self._consumer, self._asker):
            if consumer is not None:
                consumer.close()
        self._forget()

    def _send(self, key: bytes, text: str) -> None:
        """Sends a message and reads on to it.

        Raises:
            KafkaUnavailable: whether it is in the log is not known.
        """
        self._mine, self._won = uuid.uuid4().hex.encode(), False
        came: list[KafkaError | None] = []
        if self._producer is None:
            self._producer = self._client.producer(
                **{"linger.ms": 0, "message.timeout.ms": int(self._client.patience_s * 1000)}
            )
        self._producer.produce(
            self._place.topic,
            text,
            key,
            partition=0,
            headers={"id": self._mine},
            on_delivery=lambda error, _: came.append(error),
        )
        deadline = time.monotonic() + self._client.patience_s + 5.0
        while not came and time.monotonic() < deadline:
            self._producer.poll(_POLL_S)
        if not came or came[0] is not None:
            self._producer = None
            raise KafkaUnavailable(
                f"the activation log in topic {self._place.topic} at {self._place.bootstrap} did not answer whether it took an "
                f"entry ({came[0].str() if came and came[0] else 'no answer'}): look at the log before you try again"
            )
        self._read_on()

    def _read_on(self) -> None:
        """Reads all that was in the topic when this was called."""
        if self._consumer is None or self._asker is None:
            self._asker, self._consumer = self._client.consumer(), self._client.consumer()
            self._consumer.assign([TopicPartition(self._place.topic, 0, 0)])
        consumer, place = self._consumer, TopicPartition(self._place.topic, 0)
        what = f"tell the end of the activation log in topic {self._place.topic}"
        low, end = self._client.patiently(what, partial(ends, self._asker, place, self._client.call_s))
        if low > 0 or end < self._position:
            raise LogCorrupt(
                f"messages of topic {self._place.topic} at {self._place.bootstrap} were removed: it has offsets {low} to {end} "
                f"and was read up to {self._position}. The log needs all of them: restore the topic, and set retention.ms=-1"
            )
        patience = Patience(self._client, f"be read from topic {self._place.topic}")
        while self._position < end:
            came = consumer.consume(min(end - self._position, _MESSAGES), _POLL_S)  # waits for so many, and not for more
            if not came:
                patience.failed()
            for message in came:
                error = message.error()
                if error is None:
                    patience.worked()
                    self._take(message)
                    self._position = message.offset() + 1
                elif error.code() != KafkaError._PARTITION_EOF:
                    patience.failed(error)

    def _take(self, message: Any) -> None:
        try:
            text = message.value().decode()
            if message.key() == _HEADER:
                self._header = self._header or text
                return
            sequence = json.loads(text)["sequence"]
            if message.key() != _ENTRY or type(sequence) is not int or sequence > self._count + 1:
                raise ValueError(f"expected entry {self._count + 1} at the most")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LogCorrupt(
                f"offset {message.offset()} of topic {self._place.topic} is no entry of an activation log ({error}): somebody "
                "else writes to this topic, or it is another one"
            ) from error
        if sequence == self._count + 1:  # the first one of this number
            self._count = sequence
            self._texts.append(text)
            self._won = self._won or dict(message.headers() or ()).get("id") == self._mine


def make_topic(place: TopicPlace) -> None:
    """Makes the topic for a log, or checks that one that is there will do.

    Raises:
        LogError: it has several partitions, or forgets messages.
        KafkaUnavailable: the cluster does not answer, or refuses.
    """
    client = KafkaClient(place.bootstrap, (), place.config)
    admin, call_s = client.admin(), client.call_s
    topics = client.patiently("list the topics", lambda: admin.list_topics(timeout=call_s)).topics
    if place.topic not in topics:
        new = NewTopic(place.topic, num_partitions=1, replication_factor=_BY_DEFAULT, config=_KEPT)

        def make() -> None:
            try:
                admin.create_topics([new], request_timeout=call_s)[place.topic].result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise

        client.patiently(f"make the topic {place.topic}", make)
        return
    if len(topics[place.topic].partitions) != 1:
        count = len(topics[place.topic].partitions)
        raise LogError(f"topic {place.topic} has {count} partitions; a log needs one order, that is one: name another topic")
    resource = ConfigResource(ConfigResource.Type.TOPIC, place.topic)
    found = client.patiently(
        f"describe the topic {place.topic}",
        lambda: admin.describe_configs([resource], request_timeout=call_s)[resource].result(),
    )
    other = [f"{name}={found[name].value}, not {want}" for name, want in _KEPT.items() if found[name].value != want]
    if other:
        raise LogError(f"topic {place.topic} would forget entries of the log ({'; '.join(other)}): set that, or name another")
