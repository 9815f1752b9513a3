"""The suite's broker, as the tests of this folder want it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kafka import Cluster
from transforms.kafka.client import KafkaClient


@pytest.fixture
def client(kafka: Cluster) -> KafkaClient:
    return kafka.client()


@pytest.fixture
def new_topic(kafka: Cluster) -> Callable[..., str]:
    """Makes a topic of its own; gives its name."""
    return kafka.topic
