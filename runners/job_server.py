"""Beam's job servers: Prism, and those of Flink and Spark with the engine in the same process or on a cluster.

A job server takes graphs over gRPC and runs them. One is kept alive over many jobs: starting it costs 2 to 6 s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from runners import engines
from runners.engines import LOGGING, OPENS, jars, java, prism
from runners.processes import Process, Supervisor

_ASKS_ITS_LOADER = re.compile(r"/beam-runners-flink[^/]*$|/flink-(?!shaded|rpc)[^/]*$")
HEAP_MIB = {"flink": 1024, "spark": 1536}


def _is_here(master: str | None) -> bool:
    return master is None or "//127.0.0.1" in master or "//localhost" in master


def executor_options(memory_mib: int = 1024) -> list[str]:
    """Options of the job server's `java` by which Spark's executors find Beam's jars, by their path."""
    settings = {
        "spark.executor.memory": f"{memory_mib}m",
        "spark.executor.extraClassPath": jars("spark"),
        "spark.executor.extraJavaOptions": " ".join([*OPENS, *LOGGING]),
    }
    return [f"-D{name}={value}" for name, value in settings.items()]


class JobServer:
    """A running job server.

    Attributes:
        endpoint: host:port of its job service.
        process: the process.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        engine: str,
        *,
        parallelism: int = 1,
        master: str | None = None,
        options: Sequence[str] = (),
        preinstalled: bool = False,
        folder: Path | None = None,
    ) -> None:
        """Starts it, and waits until it answers.

        Args:
            supervisor: owns the process and its scratch folder.
            engine: prism, flink or spark.
            parallelism: of an engine in the same process.
            master: of a cluster: host:port for Flink, spark://host:port for Spark; None runs the engine in the same process.
            options: more options of `java` (Spark's settings are such: -Dspark.executor.memory=1g).
            preinstalled: the cluster has Beam's jars on its class path, or reads them by their path here.
            folder: for log and artifacts; None takes a scratch folder.

        Raises:
            EngineError: it cannot be had or started; says what to do.
        """
        self._supervisor = supervisor
        self.folder = folder or supervisor.folder(engine)
        self.process: Process = supervisor.start(
            f"{engine}-job-server",
            self._command(engine, parallelism, master, options, preinstalled),
            log_folder=self.folder,
            ready=r'Serving JobManagement"? endpoint=(\S+)' if engine == "prism" else r"JobService started on (\S+)",
            # Spark names this machine by what the resolver says, which need not lead back to it.
            env={"SPARK_LOCAL_IP": "127.0.0.1"} if engine == "spark" and _is_here(master) else None,
        )
        self.endpoint = self.process.wait_until_ready()[1].strip('"')

    def stop(self) -> None:
        """Ends it."""
        self._supervisor.end(self.process)

    def _command(
        self, engine: str, parallelism: int, master: str | None, options: Sequence[str], preinstalled: bool
    ) -> list[str]:
        if engine == "prism":
            return [prism(), "--job_port=0", "--serve_http=false", "--log_kind=text", "--log_level=info"]
        common = ["--job-host=localhost", "--job-port=0", "--artifact-port=0", "--expansion-port=0"]
        common += [f"--artifacts-dir={self.folder / 'artifacts'}"]
        base = [java(), f"-Xmx{HEAP_MIB[engine]}m", f"-Djava.io.tmpdir={self.folder}", *OPENS, *LOGGING, *options]
        if engine == "flink":
            program = "org.apache.beam.runners.flink.FlinkJobServerDriver"
            paths = ["-cp", jars("flink")]
            if preinstalled:
                # Beam uploads with each job what is on the class path, and not what is on the boot class path. Flink's own
                # classes and those of Beam's runner ask for their class loader, which has to be there.
                every = sorted(map(str, engines.folder("flink").glob("*.jar")))
                own = [jar for jar in every if _ASKS_ITS_LOADER.search(jar)]
                paths = [f"-Xbootclasspath/a:{':'.join(jar for jar in every if jar not in own)}", "-cp", ":".join(own)]
            return [*base, *paths, program, *common, f"--flink-master={master or '[local]'}"]
        program = "org.apache.beam.runners.spark.SparkJobServerDriver"
        if preinstalled:
            base += executor_options()
        base += ["-Dbeam.spark.test.reuseSparkContext=true", "-Dspark.ui.enabled=false", f"-Dspark.local.dir={self.folder}"]
        return [
            *base,
            "-cp",
            jars("spark", "spark-cluster"),
            program,
            *common,
            f"--spark-master-url={master or f'local[{parallelism}]'}",
        ]
