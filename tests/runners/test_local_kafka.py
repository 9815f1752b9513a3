"""A real broker comes up, survives a kill with its data, and leaves nothing behind."""

import os

from runners import guard
from runners.local_kafka import kafka_broker


def test_a_broker_starts_survives_kill_and_is_gone_afterwards() -> None:
    with kafka_broker() as broker:
        host, port = broker.bootstrap.split(":")
        assert host == "127.0.0.1"
        first = broker.process.pid
        broker.kill()
        assert not guard._alive(first)
        broker.start()
        assert broker.process.running
        assert broker.bootstrap.endswith(port)
        folder = broker.process.log_file.parent
        assert "Formatting" not in broker.process.log_file.read_text()
    assert not broker.process.running
    assert not os.path.exists(folder)  # noqa: PTH110
