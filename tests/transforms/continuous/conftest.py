"""The suite's broker, as the tests of this folder want it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from models.kafka_client import KafkaClient
from tests.kafka import Cluster


@pytest.fixture
def client(kafka: Cluster) -> KafkaClient:
    return kafka.client()


@pytest.fixture
def new_topic(kafka: Cluster) -> Callable[..., str]:
    """Makes a topic of its own; gives its name."""
    return kafka.topic
