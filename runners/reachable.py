"""Whether a cluster answers where the user says that it is: asked before anything is started or sent."""

from __future__ import annotations

import socket

from runners.engines import EngineError
from runners.local_flink import rest

_ANSWER_S = 5.0
_HERE = ("localhost", "127.0.0.1", "::1")


def check_reachable(engine: str, master: str, workers: str) -> None:
    """Asks the master, and, if the whole cluster is this machine, the pool of Python workers.

    Args:
        engine: flink or spark.
        master: host:8081 of Flink, spark://host:7077 of Spark.
        workers: host:port, as each machine of the cluster sees it.

    Raises:
        EngineError: nothing answers there; says what to do.
    """
    start = f"start one here by `midstream cluster up {engine}`, or give --master of one that runs"
    address = master.removeprefix("spark://").split(",")[0]
    if engine == "flink":
        try:
            rest(master, "/overview", timeout_s=_ANSWER_S)
        except (EngineError, ValueError) as error:
            raise EngineError(f"{error}; {start}") from None
    elif not master.startswith("local"):
        _connect(address, f"there is no Spark master at {master}", start)
    if address.rpartition(":")[0] in _HERE and workers.rpartition(":")[0] in _HERE:
        port = workers.rpartition(":")[2]
        _connect(
            workers, f"there are no Python workers at {workers}", f"`python -m runners.worker_pool --port {port}` starts some"
        )


def _connect(address: str, fault: str, advice: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise EngineError(f"expected host:port, got {address!r}")
    try:
        socket.create_connection((host, int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise EngineError(f"{fault}: {error}; {advice}") from None
