"""A pool of Python workers for engines that run elsewhere: each TaskManager or executor asks it for one.

    python -m runners.worker_pool --port 50000

is to be started once on every machine of a cluster, from an environment that has Midstream (runners/container/ has a recipe);
jobs then name it as localhost:50000. Beam's own pool starts `python` from PATH, whichever that is, and never reads what its
workers print, so that one that prints much stops for good; this one starts its own Python and lets workers print.
"""

from __future__ import annotations

import argparse
import logging
import signal
import subprocess
import sys
import threading
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.utils import thread_pool_executor

from runners import guard

# A worker imports what jobs need, which takes seconds, and then waits to be told where to work.
_WORK = """
import logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
import pipelines.graph
from apache_beam.runners.worker.sdk_worker import SdkHarness
address, worker_id = sys.stdin.readline().split()
SdkHarness(address, worker_id=worker_id, state_cache_size=100 * 2**20).run()
"""


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts a process for each worker that is asked for.

    Attributes:
        workers: the running ones by id.
    """

    def __init__(self) -> None:
        self.workers: dict[str, subprocess.Popen[str]] = {}
        self._lock = threading.Lock()
        self._spare = _spare()

    def StartWorker(self, request: beam_fn_api_pb2.StartWorkerRequest, context: Any) -> beam_fn_api_pb2.StartWorkerResponse:
        """Starts a worker for the engine's control service."""
        try:
            with self._lock:
                worker, self._spare = self._spare, _spare()
                self.workers[request.worker_id] = worker
            assert worker.stdin is not None
            worker.stdin.write(f"{request.control_endpoint.url} {request.worker_id}\n")
            worker.stdin.close()
            print(f"worker {request.worker_id} started, process {worker.pid}", flush=True)
            return beam_fn_api_pb2.StartWorkerResponse()
        except OSError as error:
            return beam_fn_api_pb2.StartWorkerResponse(error=str(error))

    def StopWorker(self, request: beam_fn_api_pb2.StopWorkerRequest, context: Any) -> beam_fn_api_pb2.StopWorkerResponse:
        """Ends a worker."""
        with self._lock:
            worker = self.workers.pop(request.worker_id, None)
        if worker is not None:
            worker.terminate()
            try:
                worker.wait(guard.GRACE_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        return beam_fn_api_pb2.StopWorkerResponse()

    def close(self) -> None:
        """Ends all workers."""
        for worker in (self._spare, *self.workers.values()):
            worker.kill()
            worker.wait()


def _spare() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _WORK], stdin=subprocess.PIPE, text=True)


def serve(port: int) -> None:
    """Serves until the process is asked to end; its workers go with it."""
    server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=[("grpc.so_reuseport", 0)])
    pool = WorkerPool()
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    try:
        bound = server.add_insecure_port(f"0.0.0.0:{port}")
    except RuntimeError:
        sys.exit(f"error: port {port} is in use: choose another with --port")
    server.start()
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    print(f"worker pool ready at localhost:{bound}", flush=True)
    end.wait()
    server.stop(0)
    pool.close()


def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=50000, help="0 takes a free one")
    serve(parser.parse_args().port)


if __name__ == "__main__":
    main()
