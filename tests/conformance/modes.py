"""The ways in which the pipeline is run. A new one is one more entry of `MODES`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import template as templates
from pipelines.execute import Execution
from pipelines.job import JobSpec
from runners.local_flink import flink_cluster
from runners.local_spark import spark_cluster
from tests.conformance.continuous import LEFT_OUT, continuous
from tests.conformance.outputs import OUTPUTS, canonical
from tests.conformance.workload import Workload

PIPELINE = Path(__file__).parent / "pipeline.yaml"
MICRO_BATCHES = 4

Given = dict[str, pa.Table]  # by output, canonical


@dataclass(frozen=True)
class Mode:
    """One way.

    Attributes:
        name: runner and mode.
        run: runs the workload, into a folder; gives what came out.
        cannot: what it cannot do, with the reason; it is then not run, and said so in the table.
        leave_out: columns that cannot be the same as in the reference.
    """

    name: str
    run: Callable[[Workload, Path], Given]
    cannot: str | None = None
    leave_out: Sequence[str] = ()


def job_of(workload: Workload, output: Path, mode: str = "batch") -> JobSpec:
    """The pipeline over a workload."""
    records = workload.records if mode == "batch" else -(-workload.records // MICRO_BATCHES)
    found, here = templates.load(str(PIPELINE))
    given = {"folder": workload.folder, "output": output, "mode": mode, "records": records}
    return found.fill({name: str(value) for name, value in given.items()}, here)


def bounded(mode: str, runner: str, parallelism: int = 1, cluster: str | None = None) -> Callable[[Workload, Path], Given]:
    """A batch or micro-batches on a runner, in the engine's own process or on a standalone cluster."""

    def run(workload: Workload, output: Path) -> Given:
        job = job_of(workload, output, mode)

        def execute(**settings: Any) -> None:
            settings |= {"runner": runner, "parallelism": parallelism}
            outcome = Execution(job.model_copy(update={"run": job.run.model_copy(update=settings)})).run()
            assert outcome.finished and not outcome.problems, outcome.problems
            assert outcome.counts["records"] == workload.records, outcome.counts

        if cluster is None:
            execute()
        else:
            with flink_cluster() if cluster == "flink" else spark_cluster() as running:
                execute(master=running.master, workers=running.workers, preinstalled=True)
        return {name: canonical(output, name) for name in OUTPUTS}

    return run


REFERENCE = Mode("DirectRunner batch", bounded("batch", "direct"))
_FOLDER = REFERENCE.name.replace(" ", "-")
MODES = [
    REFERENCE,
    Mode("DirectRunner micro-batch", bounded("micro-batch", "direct")),
    Mode("Prism batch", bounded("batch", "prism")),
    Mode("Prism micro-batch", bounded("micro-batch", "prism")),
    Mode("Flink batch, embedded", bounded("batch", "flink", 2)),
    Mode("Flink batch, standalone", bounded("batch", "flink", 2, "flink")),
    Mode("Flink micro-batch, embedded", bounded("micro-batch", "flink", 2)),
    Mode("Flink continuous, embedded, from and to Kafka", continuous(job_of, _FOLDER, False), leave_out=LEFT_OUT),
    Mode("Flink continuous, standalone, from and to Kafka", continuous(job_of, _FOLDER, True), leave_out=LEFT_OUT),
    Mode("Spark batch, local", bounded("batch", "spark", 2)),
    Mode("Spark micro-batch, local", bounded("micro-batch", "spark", 2)),
    Mode("Spark micro-batch, standalone", bounded("micro-batch", "spark", 2, "spark")),
]
CANNOT = {
    "Spark continuous": "Beam's portable Spark runner streams without sources, side inputs and state: micro-batch instead",
    "Prism continuous": "Prism gives nothing before the stream ends when there are side inputs: Flink instead",
    "DirectRunner continuous": "the in-process runner gives nothing before the stream ends: micro-batch, or Flink",
}
