"""A continuous job on Flink that predicts a stream from a topic, in processes of its own, while somebody does his worst."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from models.activation_log import ActivationLog
from models.kafka_client import KafkaClient
from models.registry import Registry
from tests.chaos.bad_models import save
from tests.chaos.people import MODEL
from tests.chaos.stream import Counts, count
from tests.chaos.surroundings import JumpingClock, SmallDisk
from tests.kafka import Cluster
from tests.pipelines.continuous import Tail
from transforms.batches import TIME_TYPE
from transforms.kafka.publishing import default_topic, make_topics

ROOT = Path(__file__).parents[2]
RATE = 200  # records/s, at their event times
CATCH_UP_S = 120.0
_COLUMNS = ("id", "a", "b", "version", "score", "digest")


class LiveJob:
    """The job, and the stream that it predicts.

    Attributes:
        folder: to work in.
        registry: root folder.
        slopes: by version: score = slope * a + b.
        disk, clock: of the job's processes.
    """

    def __init__(
        self, folder: Path, kafka: Cluster, disk: SmallDisk | None, clock: JumpingClock | None, dies_loading: int | None = None
    ) -> None:
        """Makes versions 1 and 2, of which 1 is live, and begins to send.

        Args:
            folder: to work in.
            kafka: a broker.
            disk: for the job's output; None takes a folder.
            clock: for the job's processes; None takes the machine's.
            dies_loading: the first process of the job is killed when it loads this version.
        """
        self.folder, self.registry, self.disk, self.clock = folder, str(folder / "registry"), disk, clock
        self._dies_loading = dies_loading
        self.slopes = {1: 1.0, 2: 2.0}
        for version, slope in self.slopes.items():
            Registry(self.registry).publish(MODEL, str(save(folder / f"saved-{version}", slope=slope)))
        self.activate(1)
        self._topic, predictions = kafka.topic(2), f"predictions-{uuid.uuid4().hex[:8]}"
        make_topics(kafka.client(), [default_topic(predictions)])  # as the job would
        given = {"bootstrap": kafka.bootstrap, "topic": self._topic, "predictions_topic": predictions}
        given |= {"columns": "id:int64,time:int64,a:float32,b:float32", "time": "time", "time_unit": "us", "keep": "id,a,b"}
        given |= {"registry": self.registry, "model": MODEL, "mode": "continuous", "every": "1s", "checkpoint_every": "1s"}
        given["output"] = str(disk.folder if disk is not None else folder / "out")
        self._arguments = ["run", "serve-kafka", "--runner", "flink"]
        self._arguments += [part for name, value in given.items() for part in ("--param", f"{name}={value}")]
        self._log = folder / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None
        self._tail = Tail(kafka.bootstrap, predictions)
        self.sent = 0
        self._ended = threading.Event()
        self._sender = threading.Thread(target=self._send, args=(kafka.bootstrap,), daemon=True)
        self._sender.start()

    def _send(self, bootstrap: str) -> None:
        producer, begun = KafkaClient(bootstrap).producer(**{"linger.ms": 5}), time.monotonic()
        while not self._ended.wait(0.01):
            for number in range(self.sent, int((time.monotonic() - begun) * RATE)):
                record = {"id": number, "time": time.time_ns() // 1000, "a": number % 100 / 10, "b": number % 7 / 10}
                producer.produce(self._topic, json.dumps(record).encode(), partition=number % 2)
                self.sent = number + 1
            producer.poll(0)
        producer.flush()

    def start(self) -> None:
        """Starts the job, or goes on with it."""
        module = ["pipelines.cli"] if self._dies_loading is None else ["tests.chaos.launch", str(self._dies_loading)]
        self._dies_loading = None
        command = [sys.executable, "-m", *module, *self._arguments]
        if self.disk is not None:
            command = self.disk.enter(command)
        # Who enters another mount namespace does not stay in the folder.
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | (self.clock.environment if self.clock is not None else {})
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment)

    def kill(self) -> None:
        """SIGKILL; what it started ends with it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def has_ended(self) -> bool:
        """Whether the job's command has ended."""
        return self.status is not None

    @property
    def status(self) -> int | None:
        """The exit status of the job's command; None while it runs."""
        return self._process.poll() if self._process is not None else None

    def told(self) -> str:
        """What the job has said."""
        return self._log.read_text(errors="replace")

    def activate(self, version: int) -> None:
        """Makes a version live as soon as possible."""
        ActivationLog(self.registry, MODEL).activate(version, by="chaos", reason=f"at {time.time_ns()}")

    @contextlib.contextmanager
    def without(self, version: int) -> Iterator[None]:
        """A version's folder is gone within the block."""
        folder, kept = Path(Registry(self.registry).path(MODEL, version)), self.folder / f"kept-{version}"
        shutil.move(folder, kept)
        try:
            yield
        finally:
            shutil.move(kept, folder)

    def caught_up(self) -> None:
        """Waits until all that was sent before is predicted."""
        sent = self.sent
        self._until(lambda: len(self._tail.rows) >= sent, f"{sent} predictions")

    def until_predicted(self, version: int) -> None:
        """Waits until a record that was sent from now on is predicted by this version."""
        sent = self.sent
        self._until(
            lambda: any(row["version"] == version and row["id"] >= sent for row in self._tail.rows[-5000:]), f"{version}"
        )

    def _until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + CATCH_UP_S
        while not done():
            assert time.monotonic() < deadline and not self.has_ended, (
                f"waited for {what}, came to {len(self._tail.rows)} of {self.sent}\n{self.told()[-3000:]}"
            )
            self._tail.read(0.1)

    def finish(self) -> None:
        """Sends no more, and stops the job when all is predicted."""
        self._ended.set()
        self._sender.join()
        self.caught_up()
        self.close()
        self._tail.read(1.0)

    def counts(self, begin: int, end: int) -> Counts:
        """What became of the records with ids from `begin` up to `end`."""
        rows = [row for row in self._tail.rows if begin <= row["id"] < end]
        columns = {name: pa.array([row[name] for row in rows]) for name in _COLUMNS}
        columns["event_time"] = pa.array([row["event_time"] for row in rows], pa.string()).cast(TIME_TYPE)
        return count(pa.table(columns), self.registry, self.slopes, end - begin)

    def close(self) -> None:
        """Stops everything."""
        self._ended.set()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
