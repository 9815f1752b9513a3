"""A Beam worker inside this process: models stay loaded from job to job, and an error is the exception itself."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.runners.worker import statesampler
from apache_beam.runners.worker.sdk_worker import SdkHarness
from apache_beam.utils import thread_pool_executor
from apache_beam.utils.sentinel import Sentinel

_STATE_CACHE_BYTES = 100 * 2**20  # Beam's default

_READS = (
    "read_grpc_client_inputs",
    "read_state",
    "wait_until_finish_read",
)  # Beam's names of the threads that read what the engine sends


def _quiet(
    arguments: threading.ExceptHookArgs, otherwise: Callable[[threading.ExceptHookArgs], Any] = threading.excepthook
) -> None:
    """The engine hangs up at the end of each job, and Beam's reading thread ends by an exception then."""
    reads = arguments.thread is not None and arguments.thread.name.startswith(_READS)
    if not (reads and isinstance(arguments.exc_value, grpc.RpcError)):
        otherwise(arguments)


class LoopbackWorkers(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Answers an engine that asks for workers, with threads of this process.

    Attributes:
        address: host:port, the payload of an EXTERNAL environment.
        faults: what steps raised since it was last emptied, oldest first.
    """

    def __init__(self) -> None:
        threading.excepthook = _quiet
        self.faults: list[BaseException] = []
        self._workers: dict[str, _Worker] = {}
        options = [("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0)]
        self._server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=options)
        self.address = f"localhost:{self._server.add_insecure_port('localhost:0')}"
        beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(self, self._server)
        self._server.start()

    def close(self) -> None:
        """Takes no more requests, and lets the workers go."""
        self._server.stop(1)
        for worker in self._workers.values():
            worker.end()

    def StartWorker(self, request: beam_fn_api_pb2.StartWorkerRequest, context: Any) -> beam_fn_api_pb2.StartWorkerResponse:
        """Starts a worker for the engine's control service."""
        try:
            worker = _Worker(request.control_endpoint.url, request.worker_id, self.faults)
            self._workers[request.worker_id] = worker
            threading.Thread(target=worker.run_to_end, name=f"worker {request.worker_id}", daemon=True).start()
            return beam_fn_api_pb2.StartWorkerResponse()
        except Exception:
            return beam_fn_api_pb2.StartWorkerResponse(error=traceback.format_exc())

    def StopWorker(self, request: beam_fn_api_pb2.StopWorkerRequest, context: Any) -> beam_fn_api_pb2.StopWorkerResponse:
        """Ends a worker."""
        if worker := self._workers.pop(request.worker_id, None):
            worker.end()
        return beam_fn_api_pb2.StopWorkerResponse()


class _Worker(SdkHarness):
    """Beam's worker, keeping what steps raise instead of printing it."""

    def __init__(self, control_address: str, worker_id: str, faults: list[BaseException]) -> None:
        super().__init__(control_address, worker_id=worker_id, state_cache_size=_STATE_CACHE_BYTES)
        self._faults = faults

    def run_to_end(self) -> None:
        """Works until the engine hangs up, in whatever way."""
        with contextlib.suppress(grpc.RpcError):  # the engine was ended; whoever waits for the job is told by it
            self.run()

    def end(self) -> None:
        self._responses.put(Sentinel.sentinel)

    def _execute(self, task: Callable[[], Any], request: Any) -> None:
        with statesampler.instruction_id(request.instruction_id):
            try:
                response = task()
            except BaseException as error:
                self._faults.append(error)
                response = beam_fn_api_pb2.InstructionResponse(
                    instruction_id=request.instruction_id, error=traceback.format_exc()
                )
            self._responses.put(response)
