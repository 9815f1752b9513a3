"""A standalone Flink of real processes on this machine: a JobManager, TaskManagers, and a pool of Python workers."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runners.engines import LOGGING, OPENS, EngineError, jars, java
from runners.processes import START_S, Process, Supervisor, with_free_ports

_CONF = """\
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: {rpc}
jobmanager.bind-host: 127.0.0.1
taskmanager.bind-host: 127.0.0.1
taskmanager.host: 127.0.0.1
rest.address: 127.0.0.1
rest.bind-address: 127.0.0.1
rest.port: {rest}
taskmanager.numberOfTaskSlots: {slots}
parallelism.default: 1
jobmanager.memory.process.size: 1024m
taskmanager.memory.managed.size: 512m
execution.checkpointing.externalized-checkpoint-retention: RETAIN_ON_CANCELLATION
state.backend.type: hashmap
state.checkpoints.dir: file://{folder}/checkpoints
state.savepoints.dir: file://{folder}/savepoints
taskmanager.network.sort-shuffle.min-buffers: 64
io.tmp.dirs: {folder}/tmp
heartbeat.interval: 2000
heartbeat.timeout: 10000
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 100
restart-strategy.fixed-delay.delay: 1 s
"""
# What Flink's start script would have computed for a TaskManager with this much heap.
_TASK_HEAP_MIB = 512
_TASK_MEMORY = {
    "taskmanager.cpu.cores": "2.0",
    "taskmanager.memory.task.heap.size": f"{_TASK_HEAP_MIB}m",
    "taskmanager.memory.task.off-heap.size": "0",
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.network.min": "256m",
    "taskmanager.memory.network.max": "256m",
    "taskmanager.memory.managed.size": "512m",
    "taskmanager.memory.jvm-metaspace.size": "384m",
    "taskmanager.memory.jvm-overhead.min": "192m",
    "taskmanager.memory.jvm-overhead.max": "192m",
}
_TASK_JVM = [f"-Xmx{_TASK_HEAP_MIB + 256}m", "-Xms128m", "-XX:MaxDirectMemorySize=512m", "-XX:MaxMetaspaceSize=384m"]


class FlinkCluster:
    """A running cluster whose parts can be killed and started again.

    Attributes:
        master: host:port of its REST interface, where jobs go.
        workers: host:port of the worker pool.
        jobmanager, taskmanagers, pool: the processes.
        folder: with configuration, logs, checkpoints/ and savepoints/.
        has_beam: whether Beam's jars are part of it, so that a job need not bring them.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        folder: Path,
        ports: list[int],
        *,
        taskmanagers: int = 1,
        slots: int = 2,
        with_beam: bool = True,
    ) -> None:
        """Starts it, and waits until all slots are there.

        Args:
            supervisor: owns the processes.
            folder: for everything it writes.
            ports: of the REST interface, and for the JobManager.
            taskmanagers: how many.
            slots: of each.
            with_beam: put Beam's jars on its class path: a job is submitted in a second instead of twenty.

        Raises:
            EngineError: it does not start.
        """
        self._supervisor, self.folder, self.has_beam = supervisor, folder, with_beam
        for name in ("conf", "tmp", "checkpoints", "savepoints"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        conf = _CONF.format(rest=ports[0], rpc=ports[1], slots=slots, folder=folder)
        if with_beam:
            conf += "classloader.resolve-order: parent-first\n"  # a job brings the runner's own jar all the same
        (folder / "conf" / "config.yaml").write_text(conf)
        self._env = {"FLINK_CONF_DIR": str(folder / "conf")}
        self.master = f"127.0.0.1:{ports[0]}"
        self.jobmanager = self.start_jobmanager()
        self.taskmanagers: list[Process] = []
        for _ in range(taskmanagers):
            self.start_taskmanager(wait=False)
        pool, self.workers = start_worker_pool(supervisor, folder)
        self.pool: Process = pool
        self.wait_for_slots(taskmanagers * slots)

    def start_jobmanager(self) -> Process:
        """Starts the JobManager, at first or after it was killed."""
        program = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        self.jobmanager = self._supervisor.start(
            "jobmanager",
            [*self._java("-Xmx512m"), program, "--configDir", self._env["FLINK_CONF_DIR"]],
            log_folder=self.folder,
            ready=r"Rest endpoint listening at",
            env=self._env,
        )
        return self.jobmanager

    def start_taskmanager(self, *, wait: bool = True) -> Process:
        """Starts one more TaskManager."""
        settings = [part for name, value in _TASK_MEMORY.items() for part in ("-D", f"{name}={value}")]
        program = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        process = self._supervisor.start(
            f"taskmanager-{len(self.taskmanagers)}",
            [*self._java(*_TASK_JVM), program, "--configDir", self._env["FLINK_CONF_DIR"], *settings],
            log_folder=self.folder,
            ready=r"Successful registration at resource manager" if wait else None,
            env=self._env,
        )
        self.taskmanagers.append(process)
        return process

    def wait_for_slots(self, count: int, timeout_s: float = START_S) -> None:
        """Waits until so many slots have registered.

        Raises:
            EngineError: they do not come.
        """
        deadline = time.monotonic() + timeout_s
        while rest(self.master, "/overview")["slots-total"] < count:
            for process in (self.jobmanager, *self.taskmanagers):
                if not process.running:
                    raise EngineError(f"{process.name} ended:\n{process.tail()}")
            if time.monotonic() > deadline:
                raise EngineError(
                    f"Flink has fewer than {count} slots after {timeout_s:.0f} s:\n{self.taskmanagers[-1].tail()}"
                )
            time.sleep(0.1)

    def _java(self, *options: str) -> list[str]:
        # `flink` holds the whole of Flink as well, as Beam embeds it.
        return [java(), *options, *OPENS, *LOGGING, "-cp", jars("flink" if self.has_beam else "flink-cluster")]


@contextmanager
def flink_cluster(
    folder: Path | None = None, *, taskmanagers: int = 1, slots: int = 2, with_beam: bool = True
) -> Iterator[FlinkCluster]:
    """A cluster for the length of a block; arguments as those of `FlinkCluster`, the folder a scratch folder if None."""
    with Supervisor() as supervisor:
        yield start_flink(
            supervisor, folder or supervisor.folder("flink"), taskmanagers=taskmanagers, slots=slots, with_beam=with_beam
        )


def start_flink(supervisor: Supervisor, folder: Path, port: int | None = None, **settings: Any) -> FlinkCluster:
    """Starts a cluster, on a free port if none is given."""
    given = [] if port is None else [port]
    return with_free_ports(2 - len(given), lambda ports: FlinkCluster(supervisor, folder, given + ports, **settings))


def start_worker_pool(supervisor: Supervisor, folder: Path) -> tuple[Process, str]:
    """Starts a pool of Python workers on a free port; gives the process and host:port."""
    here = str(Path(__file__).parents[1])
    process = supervisor.start(
        "workers",
        [sys.executable, "-m", "runners.worker_pool", "--port", "0"],
        log_folder=folder,
        ready=r"worker pool ready at (\S+)",
        env={"PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])},
    )
    return process, process.wait_until_ready()[1]


def rest(master: str, path: str, method: str = "GET", body: Any = None, timeout_s: float = 30) -> Any:
    """Asks Flink's REST interface; gives what it answered, as JSON.

    Raises:
        EngineError: it is not there, or refuses; with its reason.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{master}{path}", data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        reason = error.read().decode(errors="replace")
        raise EngineError(f"Flink at {master} refused {method} {path}: {error.code} {reason[:500]}") from None
    except OSError as error:
        raise EngineError(f"there is no Flink at {master}: {error}") from None
    return json.loads(text) if text else None
