"""A standalone Spark of real processes on this machine: a master, a worker, and a pool of Python workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runners import engines
from runners.engines import LOGGING, OPENS, jars, java
from runners.local_flink import start_worker_pool
from runners.processes import Process, Supervisor, with_free_ports

_HOST = "127.0.0.1"


class SparkCluster:
    """A running cluster.

    Attributes:
        master: spark://host:port, where jobs go.
        workers: host:port of the pool of Python workers.
        master_process, worker, pool: the processes; executors are children of `worker`.
        folder: for logs and work.
    """

    def __init__(
        self, supervisor: Supervisor, folder: Path, ports: list[int], *, cores: int = 2, memory_mib: int = 2048
    ) -> None:
        """Starts it, and waits until the worker has registered.

        Args:
            supervisor: owns the processes.
            folder: for everything it writes.
            ports: one, of the master.
            cores: that executors may use.
            memory_mib: that executors may use.

        Raises:
            EngineError: it does not start.
        """
        self._supervisor, self.folder = supervisor, folder
        (folder / "work").mkdir(parents=True, exist_ok=True)
        self.master = f"spark://{_HOST}:{ports[0]}"
        self._cores, self._memory_mib = cores, memory_mib
        self.master_process: Process = supervisor.start(
            "spark-master",
            [
                *self._java(),
                "org.apache.spark.deploy.master.Master",
                *f"--host {_HOST} --port {ports[0]} --webui-port 0".split(),
            ],
            log_folder=folder,
            ready=r"I have been elected leader|New state: ALIVE",
            env=self._env(),
        )
        self.worker = self.start_worker()
        self.pool, self.workers = start_worker_pool(supervisor, folder)

    def start_worker(self) -> Process:
        """Starts the worker, at first or after it was killed."""
        options = f"--host {_HOST} --cores {self._cores} --memory {self._memory_mib}m --webui-port 0".split()
        self.worker = self._supervisor.start(
            "spark-worker",
            [
                *self._java(),
                "org.apache.spark.deploy.worker.Worker",
                *options,
                "--work-dir",
                str(self.folder / "work"),
                self.master,
            ],
            log_folder=self.folder,
            ready=r"Successfully registered with master",
            env=self._env(),
        )
        return self.worker

    def _java(self) -> list[str]:
        # Finished applications leave their jars behind, some hundred MB each.
        cleanup = [
            "-Dspark.worker.cleanup.enabled=true",
            "-Dspark.worker.cleanup.interval=60",
            "-Dspark.worker.cleanup.appDataTtl=60",
        ]
        return [java(), "-Xmx384m", *OPENS, *LOGGING, *cleanup, "-cp", jars("spark-cluster")]

    def _env(self) -> dict[str, str]:
        # The worker starts executors from the jars/ of SPARK_HOME, and wants to be told Scala's version.
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        if not (home / "jars").is_symlink():
            (home / "jars").symlink_to(engines.folder("spark-cluster"))
        return {"SPARK_HOME": str(home), "SPARK_SCALA_VERSION": "2.12", "SPARK_LOCAL_IP": _HOST}


@contextmanager
def spark_cluster(folder: Path | None = None, *, cores: int = 2, memory_mib: int = 2048) -> Iterator[SparkCluster]:
    """A cluster for the length of a block; arguments as those of `SparkCluster`, the folder a scratch folder if None."""
    with Supervisor() as supervisor:
        yield start_spark(supervisor, folder or supervisor.folder("spark"), cores=cores, memory_mib=memory_mib)


def start_spark(supervisor: Supervisor, folder: Path, port: int | None = None, **settings: Any) -> SparkCluster:
    """Starts a cluster, on a free port if none is given."""
    given = [] if port is None else [port]
    return with_free_ports(1 - len(given), lambda ports: SparkCluster(supervisor, folder, given + ports, **settings))
