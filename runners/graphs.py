"""Which runner executes a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import apache_beam as beam
from apache_beam.runners.runner import PipelineResult

from runners.direct import DirectGraph
from runners.portable import PortableGraph


class Graph(Protocol):
    """A graph that is built once and run as often as wanted."""

    def run(self) -> PipelineResult:
        """Runs it to its end and gives its result, with the metrics."""

    def close(self) -> None:
        """Ends what it started."""


def open_graph(
    build: Callable[[beam.Pipeline], None],
    runner: str = "direct",
    *,
    parallelism: int = 1,
    master: str | None = None,
    workers: str | None = None,
    preinstalled: bool = False,
    name: str | None = None,
) -> Graph:
    """Builds a graph for a runner.

    Args:
        build: adds it to an empty pipeline.
        runner: direct, prism, flink or spark.
        parallelism: how many tasks may run side by side; the direct runner has one.
        master: of a cluster of Flink or Spark; None runs the engine on this machine, for as long as the graph is open.
        workers: host:port of a pool of Python workers; None works in this process.
        preinstalled: the cluster has Beam's jars itself, or reads them by their path here: they are not sent with each job.
        name: of the job, where an engine shows it.
    """
    if runner == "direct":
        return DirectGraph(build)
    return PortableGraph(
        build,
        runner,
        parallelism=parallelism,
        master=master,
        environment=workers,
        preinstalled=preinstalled,
        options={} if name is None else {"job_name": name},
    )
