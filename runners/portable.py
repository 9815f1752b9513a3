"""Runs a graph on an engine behind Beam's portability: Prism, Flink or Spark.

The interface is that of `runners.direct`: a graph is built and translated once and run for each micro-batch. The job server
stays alive between the runs, and the worker is this process, so that models stay loaded.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2_grpc, beam_runner_api_pb2
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PipelineResult, PortableRunner
from apache_beam.transforms.environments import ExternalEnvironment

from runners.engines import EngineError, folder
from runners.job_server import JobServer
from runners.loopback import LoopbackWorkers
from runners.processes import Supervisor

ENGINES = ("prism", "flink", "spark")
_WORKER_LIFE_MS = 10_000
_log = logging.getLogger("midstream.engines")
# Workers say this when the engine hangs up at the end of each job.
# Options that only the engine knows are no mistake.
logging.getLogger("apache_beam.options.pipeline_options").addFilter(lambda record: "Unparseable" not in record.getMessage())
logging.getLogger("apache_beam.runners.worker.data_plane").addFilter(lambda record: "read inputs" not in record.getMessage())
# The whole trace, Java's around Python's; what matters of it is raised here.
logging.getLogger().addFilter(lambda record: "Error received from SDK harness" not in record.getMessage())
# A job server keeps something of every job (on Flink some 20 MB were seen): a new one after this many.
_JOBS_A_SERVER = {"prism": 500, "flink": 25, "spark": 200}


class PortableGraph:
    """A graph that is built once and run as often as wanted."""

    def __init__(
        self,
        build: Callable[[beam.Pipeline], None],
        engine: str,
        *,
        parallelism: int = 1,
        master: str | None = None,
        options: Mapping[str, Any] | None = None,
        flags: Sequence[str] = (),
        environment: str | None = None,
        preinstalled: bool = False,
    ) -> None:
        """Builds the graph; the engine is started by the first run.

        Args:
            build: adds it to an empty pipeline.
            engine: prism, flink or spark.
            parallelism: how many tasks may run side by side.
            master: of a cluster; None runs the engine in the job server.
            options: more pipeline options.
            flags: the same as on a command line, for those that only the engine knows.
            environment: host:port of a worker pool; None works in this process.
            preinstalled: the cluster has Beam's jars itself, or reads them by their path here: they are not sent with each job.
        """
        if engine not in ENGINES:
            raise ValueError(f"expected one of {', '.join(ENGINES)}, got {engine!r}")
        self._engine, self._parallelism, self._master = engine, parallelism, master
        self._preinstalled = preinstalled
        self._supervisor = Supervisor()
        self._workers = LoopbackWorkers() if environment is None else None
        given: dict[str, Any] = {"parallelism": parallelism, **(options or {})}
        if engine != "prism":
            # Beam's runners for the JVM begin a new stage at every side input, and rows would go to the JVM and back there;
            # Beam's optimiser in Python, whose stages they take as they are, knows when that is not needed.
            given["experiments"] = [*given.get("experiments", []), "pre_optimize=all"]
        if environment is not None:
            # A worker is a process, which takes seconds to start: let it live from one step of the job to the next.
            given.setdefault("environment_cache_millis", _WORKER_LIFE_MS)
        if preinstalled and engine == "spark":
            # Spark sends what this names, and everything that its driver has on its class path if nothing is named.
            given["files_to_stage"] = [str(next(folder("spark").glob("beam-runners-spark*.jar")))]
        self._options = PipelineOptions(list(flags), **given)
        pipeline = beam.Pipeline(runner=PortableRunner(), options=self._options)
        build(pipeline)
        shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)  # Beam deletes it only where it runs the pipeline itself
        place = environment if self._workers is None else self._workers.address
        graph = pipeline.to_runner_api(default_environment=ExternalEnvironment(place))
        self._graph: beam_runner_api_pb2.Pipeline = PortableRunner._optimize_pipeline(graph, self._options)
        self._server: JobServer | None = None
        self._channel: grpc.Channel | None = None
        self._jobs = 0

    def start(self) -> PipelineResult:
        """Starts it, and does not wait for its end; `close` ends an engine in this process, and the job with it.

        Raises:
            EngineError: the engine cannot be started, or died before it took the job.
        """
        service = self._service()
        if self._workers is not None:
            self._workers.faults.clear()
        graph = beam_runner_api_pb2.Pipeline()
        graph.CopyFrom(self._graph)
        failed: Exception | None = None
        try:
            job, messages, states = service.submit(graph)
            result = PipelineResult(service.job_service, job, messages, states)
        except grpc.RpcError as error:
            failed = error
        if failed is not None:
            raise self.what_happened(failed)
        self._jobs += 1
        return result

    def run(self) -> PipelineResult:
        """Runs it to its end and gives its result, with the metrics.

        Raises:
            EngineError: the engine cannot be started, or died.
            Exception: whatever a step raised.
        """
        result = self.start()
        failed: Exception | None = None
        try:
            result.wait_until_finish()
            result.metrics()  # while the server knows them
        except KeyboardInterrupt:
            result.cancel()
            raise
        except (RuntimeError, grpc.RpcError) as error:
            failed = error
        if failed is not None:
            raise self.what_happened(failed)  # out here, so that it keeps the context that it was raised in
        return result

    @property
    def faults(self) -> list[BaseException]:
        """What steps raised in this process since the start, oldest first."""
        return list(self._workers.faults) if self._workers is not None else []

    def close(self) -> None:
        """Ends what it started; it can be run again, at the price of a new start."""
        self._forget_server()
        self._supervisor.close()
        if self._workers is not None:
            self._workers.close()

    def _service(self) -> JobServiceHandle:
        if self._server is not None and (self._jobs >= _JOBS_A_SERVER[self._engine] or not self._server.process.running):
            self._forget_server()
        if self._server is None:
            _log.info("starting %s", self._engine)
            self._server = JobServer(
                self._supervisor,
                self._engine,
                parallelism=self._parallelism,
                master=self._master,
                preinstalled=self._preinstalled,
            )
            self._jobs = 0
            self._channel = grpc.insecure_channel(self._server.endpoint, options=[("grpc.max_receive_message_length", -1)])
            stub = beam_job_api_pb2_grpc.JobServiceStub(self._channel)
            self._handle = _Handle(stub, self._options)
        return self._handle

    def _forget_server(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._server is not None:
            self._server.stop()
            self._server = None

    def what_happened(self, failed: Exception) -> BaseException:
        """What really happened, where the engine only says that a job failed."""
        assert self._server is not None
        gone = self._server.process.has_ended(1.0 if isinstance(failed, grpc.RpcError) else 0.0)
        if not gone:
            if self._workers is None:
                return _on_cluster(self._engine, failed)
            return self._workers.faults[0] if self._workers.faults else failed
        tail = self._server.process.tail()
        self._forget_server()
        return EngineError(
            f"{self._engine} died while it ran a job; the same command goes on where it stopped. Its last words:\n{tail}"
        )


def _on_cluster(engine: str, failed: Exception) -> Exception:
    """What a worker of a cluster raised, out of the text that comes back: the traces of Python and of Java together."""
    raised = re.findall(r"^((?:\w+\.)*\w+: .*) \[while running '(.*)'\]", str(failed), re.MULTILINE)
    if not raised:
        return failed
    what, step = raised[0]
    return EngineError(f"{engine} gave the job up, as a worker raised in step {step!r}: {what}")


class _Handle(JobServiceHandle):
    """Asks the server once which options it knows, not for every job."""

    _known: Any = None

    def get_pipeline_options(self) -> Any:
        if self._known is None:
            self._known = super().get_pipeline_options()
        return self._known
