"""A Kafka broker on this machine: one process that is its own controller (KRaft)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runners.engines import LOGGING, OPENS, EngineError, jars, java
from runners.processes import Process, Supervisor, with_free_ports

_READY = r"Kafka Server started"
HEAP_MIB = 256
_SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
num.partitions=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
log.cleaner.dedupe.buffer.size=16777216
"""


class Broker:
    """A broker that can be killed and started again with its data.

    Attributes:
        bootstrap: host:port for clients.
        process: the running process.
    """

    def __init__(self, supervisor: Supervisor, folder: Path, ports: list[int], settings: dict[str, Any] | None = None) -> None:
        """Formats the folder if it is empty, and starts the broker.

        Args:
            supervisor: owns the process.
            folder: for the data; kept.
            ports: for clients, and for the controller.
            settings: more lines for server.properties.

        Raises:
            EngineError: it does not start.
        """
        self._supervisor, self._folder = supervisor, folder
        self.bootstrap = f"127.0.0.1:{ports[0]}"
        self._file = folder / "server.properties"
        lines = _SETTINGS.format(port=ports[0], controller=ports[1], data=folder / "data")
        lines += "".join(f"{name}={value}\n" for name, value in (settings or {}).items())
        folder.mkdir(parents=True, exist_ok=True)
        self._file.write_text(lines)
        if not (folder / "data" / "meta.properties").exists():
            self._format()
        self.process = self.start()

    def start(self) -> Process:
        """Starts it, after `kill` or `stop`, over the same data and on the same port."""
        self.process = self._supervisor.start(
            "kafka", [*_java(HEAP_MIB, self._folder), "kafka.Kafka", str(self._file)], log_folder=self._folder, ready=_READY
        )
        return self.process

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()

    def stop(self) -> None:
        """Stops it in order."""
        self._supervisor.end(self.process)

    def _format(self) -> None:
        # Any id will do for a broker of its own.
        options = ["format", "-t", "MidstreamLocalBroker01", "-c", str(self._file)]
        command = [*_java(64, self._folder), "kafka.tools.StorageTool", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EngineError(f"Kafka's folder {self._folder} could not be formatted:\n{done.stdout}{done.stderr}")


def start_broker(supervisor: Supervisor, folder: Path, port: int | None = None, **settings: Any) -> Broker:
    """Starts a broker over a folder, on a free port if none is given."""
    given = [] if port is None else [port]
    return with_free_ports(2 - len(given), lambda ports: Broker(supervisor, folder, given + ports, settings))


@contextmanager
def kafka_broker(
    folder: Path | None = None, port: int | None = None, settings: dict[str, Any] | None = None
) -> Iterator[Broker]:
    """A broker for the length of a block.

    Args:
        folder: for its data, kept afterwards; None takes a scratch folder.
        port: for clients; None takes a free one.
        settings: more settings for server.properties, by their names there.
    """
    with Supervisor() as supervisor:
        yield start_broker(supervisor, folder or supervisor.folder("kafka"), port, **(settings or {}))


def _java(heap_mib: int, folder: Path) -> list[str]:
    # Libraries unpacked into the temporary folder outlive a broker that is killed.
    return [java(), f"-Xmx{heap_mib}m", f"-Djava.io.tmpdir={folder}", *OPENS, *LOGGING, "-cp", jars("kafka")]
