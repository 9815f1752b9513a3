"""Settings of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kafka import Cluster

# Before TensorFlow is imported: what it says of devices that are not there would bury what a failing test says.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


@pytest.fixture(scope="session")
def kafka() -> Iterator[Cluster]:
    """A real broker, which all tests share: each takes topics of its own."""
    from runners.local_kafka import kafka_broker
    from tests.kafka import Cluster

    with kafka_broker() as broker:
        yield Cluster(broker)
