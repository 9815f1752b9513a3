"""A broker, topics and messages for tests."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from models.kafka_client import KafkaClient
from runners.local_kafka import Broker


class Cluster:
    """Talks to a broker without any of Midstream's own code."""

    def __init__(self, broker: Broker) -> None:
        self.broker, self.bootstrap = broker, broker.bootstrap
        self._settings = {"bootstrap.servers": self.bootstrap, "log_level": 0}  # it tells at length of brokers that tests kill
        self._admin = AdminClient(self._settings)

    def client(self, patience_s: float = 30.0) -> KafkaClient:
        return KafkaClient(self.bootstrap, patience_s=patience_s)

    def topic(self, partitions: int = 1, name: str | None = None, config: Mapping[str, str] | None = None) -> str:
        """A new topic."""
        name = name or f"t-{uuid.uuid4().hex[:8]}"
        new = NewTopic(name, num_partitions=partitions, config=dict(config or {}))
        self._admin.create_topics([new])[name].result()
        return name

    def exists(self, topic: str) -> bool:
        return topic in self._admin.list_topics(timeout=10).topics

    def delete(self, topic: str) -> None:
        self._admin.delete_topics([topic], operation_timeout=10)[topic].result()

    def grow(self, topic: str, partitions: int) -> None:
        self._admin.create_partitions([NewPartitions(topic, partitions)])[topic].result()

    def remove_before(self, topic: str, partition: int, offset: int) -> None:
        """What retention does."""
        for done in self._admin.delete_records([TopicPartition(topic, partition, offset)]).values():
            done.result()

    def send(self, topic: str, messages: Iterable[Any], partition: int = 0) -> None:
        """JSON of what is not bytes; None is a tombstone."""
        producer = Producer(self._settings | {"enable.idempotence": True, "linger.ms": 5})
        for message in messages:
            value = message if message is None or isinstance(message, bytes) else json.dumps(message).encode()
            producer.produce(topic, value, partition=partition)
        producer.flush()

    def send_parts(self, topic: str, parts: Iterable[Iterable[Any]]) -> None:
        """As `send`, messages for each partition."""
        for partition, messages in enumerate(parts):
            self.send(topic, messages, partition)

    def transact(self, topic: str, messages: Sequence[Any], *, commit: bool | None = True, id: str | None = None) -> Producer:
        """In a transaction, which is committed, aborted, or (None) left open."""
        producer = Producer(self._settings | {"transactional.id": id or uuid.uuid4().hex, "linger.ms": 5})
        producer.init_transactions()
        producer.begin_transaction()
        for message in messages:
            producer.produce(topic, json.dumps(message), "somebody else", partition=0)
        producer.flush()
        if commit is not None:
            producer.commit_transaction() if commit else producer.abort_transaction()
        return producer

    def read(self, topic: str, isolation: str = "read_committed") -> list[dict[str, Any]]:
        """The values of all messages there are, by partition and offset."""
        return [json.loads(value) for _, value in self.messages(topic, isolation)]

    def messages(self, topic: str, isolation: str = "read_committed") -> list[tuple[bytes | None, bytes]]:
        """The keys and values of all messages there are, by partition and offset."""
        settings: Mapping[str, Any] = {"group.id": "test", "isolation.level": isolation, "enable.partition.eof": True}
        consumer = Consumer({**self._settings, **settings})
        try:
            known = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            consumer.assign([TopicPartition(topic, number, 0) for number in known])
            waiting, found = set(known), []
            while waiting:
                for message in consumer.consume(10_000, 0.2):
                    if message.error() is None:
                        found.append((message.partition(), message.offset(), message.key(), message.value()))
                    elif message.error().name() == "_PARTITION_EOF":
                        waiting.discard(message.partition())
            return [(key, value) for _, _, key, value in sorted(found)]
        finally:
            consumer.close()
