"""A real broker for the tests of this folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from runners.local_kafka import Broker, kafka_broker
from transforms.kafka.client import KafkaClient

_names = itertools.count()


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    with kafka_broker() as running:
        yield running


@pytest.fixture
def client(broker: Broker) -> KafkaClient:
    return KafkaClient(broker.bootstrap)


@pytest.fixture
def new_topic(broker: Broker) -> Callable[..., str]:
    """Makes a topic of its own; gives its name."""

    def make(partitions: int = 1) -> str:
        name = f"topic-{next(_names)}"
        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        for made in admin.create_topics([NewTopic(name, partitions, 1)]).values():
            made.result()
        return name

    return make
