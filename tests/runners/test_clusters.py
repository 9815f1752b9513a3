"""Standalone clusters of real processes come up, run a graph with workers of their own, and are gone afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.execute import counters
from runners import guard
from runners.local_flink import flink_cluster, rest
from runners.local_spark import spark_cluster
from runners.portable import PortableGraph
from tests.runners.test_portable import _sums


@contextmanager
def _cluster(engine: str) -> Iterator[tuple[PortableGraph, list[int], Path]]:
    with flink_cluster() if engine == "flink" else spark_cluster() as cluster:
        parts = [cluster.pool, *([cluster.jobmanager, *cluster.taskmanagers] if engine == "flink" else [cluster.worker])]
        folder = cluster.folder
        graph = PortableGraph(
            lambda pipeline: _sums(pipeline, folder / "in", folder / "out"),
            engine,
            parallelism=2,
            master=cluster.master,
            environment=cluster.workers,
            preinstalled=True,
        )
        try:
            if engine == "flink":
                assert rest(cluster.master, "/overview")["slots-total"] == 2
            yield graph, [part.pid for part in parts], folder
        finally:
            graph.close()


@pytest.mark.parametrize("engine", ["flink", "spark"])
def test_a_cluster_runs_a_graph_with_a_pool_of_workers_and_is_gone(engine: str) -> None:
    with _cluster(engine) as (graph, pids, folder):
        for given, sums in (("1 2 3", "[(0, 4), (1, 8)]"), ("10 20", "[(0, 34)]")):
            (folder / "in").write_text(given)
            assert counters(graph.run()) == {"rows": len(given.split())}
            assert (folder / "out").read_text() == sums
        assert all(map(guard._alive, pids))
    assert not any(map(guard._alive, pids))
    assert not folder.exists()
