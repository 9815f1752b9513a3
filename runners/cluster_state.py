"""Clusters that outlive the command that started them: `midstream cluster up|down|status`.

A keeper process owns the processes of a cluster and waits to be ended; what it started goes with it, however it ends. Where it
is, and where the cluster takes jobs, is in `$MIDSTREAM_CLUSTERS/NAME/state.json` (`~/.local/state/midstream/clusters`).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from runners.engines import EngineError
from runners.processes import Supervisor, is_free

NAMES = ("flink", "spark", "kafka")
_UP_S = 180.0
_DOWN_S = 30.0


def root() -> Path:
    """Where the states of clusters lie."""
    return Path(os.environ.get("MIDSTREAM_CLUSTERS") or Path.home() / ".local" / "state" / "midstream" / "clusters").absolute()


def up(name: str, *, port: int | None = None) -> dict[str, Any]:
    """Starts a cluster and waits until it answers; gives its state.

    Raises:
        EngineError: it is up already, or does not start.
    """
    if (state := status(name)) is not None:
        raise EngineError(f"{name} is up already, at {state['address']}: midstream cluster down {name} ends it")
    if port is not None and not is_free(port):
        raise EngineError(f"port {port} is in use: give another with --port, or leave it out to have a free one")
    folder = root() / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "keeper.log").open("w") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "runners.cluster_state", name, str(folder), str(port or 0)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            text=True,
            cwd=Path(__file__).parents[1],
        )
    assert keeper.stdout is not None
    ready, _, _ = select.select([keeper.stdout], [], [], _UP_S)
    line = keeper.stdout.readline() if ready else ""
    if line.strip() != "ready":
        keeper.terminate()
        keeper.wait()
        raise EngineError(f"{name} did not start:\n{(folder / 'keeper.log').read_text()[-2000:]}")
    found = status(name)
    assert found is not None
    return found


def status(name: str) -> dict[str, Any] | None:
    """The state of a cluster: pids, addresses, folder; None if it is not up."""
    try:
        state: dict[str, Any] = json.loads((root() / name / "state.json").read_text())
        command = Path(f"/proc/{state['keeper']}/cmdline").read_bytes().decode()
    except (OSError, ValueError):
        return None
    # The number may be another process's by now.
    return state if "runners.cluster_state" in command and name in command.split("\0") else None


def down(name: str) -> bool:
    """Ends a cluster, and just what belongs to it; False if it was not up.

    Raises:
        EngineError: it does not end.
    """
    state = status(name)
    if state is None:
        return False
    handle = os.pidfd_open(state["keeper"])
    try:
        os.kill(state["keeper"], signal.SIGTERM)
        if not select.select([handle], [], [], _DOWN_S)[0]:
            raise EngineError(f"{name}: its keeper, process {state['keeper']}, does not end")
    finally:
        os.close(handle)
    return True


def _start(supervisor: Supervisor, name: str, port: int | None) -> dict[str, Any]:
    folder = supervisor.folder(f"cluster-{name}")
    if name == "kafka":
        from runners.local_kafka import start_broker

        broker = start_broker(supervisor, folder, port)
        return {"address": broker.bootstrap, "folder": str(folder), "processes": {"broker": broker.process.pid}}
    if name == "flink":
        from runners.local_flink import start_flink

        flink = start_flink(supervisor, folder, port)
        processes = {"jobmanager": flink.jobmanager.pid, "taskmanager": flink.taskmanagers[0].pid, "workers": flink.pool.pid}
        return {"address": flink.master, "workers": flink.workers, "folder": str(folder), "processes": processes}
    from runners.local_spark import start_spark

    spark = start_spark(supervisor, folder, port)
    processes = {"master": spark.master_process.pid, "worker": spark.worker.pid, "workers": spark.pool.pid}
    return {"address": spark.master, "workers": spark.workers, "folder": str(folder), "processes": processes}


def _keep(name: str, folder: Path, port: int | None) -> None:
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    file = folder / "state.json"
    with Supervisor() as supervisor:
        state = _start(supervisor, name, port) | {"keeper": os.getpid(), "name": name}
        file.write_text(json.dumps(state, indent=1))
        print("ready", flush=True)
        os.close(1)  # whoever waits for the line need not live on
        end.wait()
    with suppress(FileNotFoundError):
        file.unlink()


if __name__ == "__main__":
    try:
        _keep(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) or None)
    except EngineError as error:
        sys.exit(str(error))
