"""One graph, built once and run again and again, on every engine: what it counts, what it raises, what it survives."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.metrics import Metrics

from pipelines.execute import counters
from runners import guard, portable
from runners.engines import EngineError
from runners.graphs import Graph, open_graph

_ROWS = Metrics.counter("midstream", "rows")


def _sums(pipeline: beam.Pipeline, file: Path, out: Path) -> None:
    """Sums the numbers in a file by parity, each plus the number of entries of a side input."""
    numbers = pipeline | beam.Impulse() | "read" >> beam.FlatMap(_read, str(file))
    side = pipeline | "other root" >> beam.Impulse() | "entries" >> beam.FlatMap(lambda _: [1, 2])
    added = numbers | "add" >> beam.Map(_add, beam.pvalue.AsIter(side))
    sums = added | beam.Map(lambda n: (n % 2, n)) | beam.GroupByKey() | "sum" >> beam.MapTuple(lambda k, v: (k, sum(v)))
    sums | "all" >> beam.Map(lambda pair: (None, pair)) | "one" >> beam.GroupByKey() | "write" >> beam.Map(_write, str(out))


def _read(_: bytes, file: str) -> Iterator[int]:
    for line in Path(file).read_text().split():
        _ROWS.inc()
        yield int(line)


def _add(number: int, side: Iterable[int]) -> int:
    return number + len(list(side))


def _write(keyed: tuple[None, Iterable[tuple[int, int]]], out: str) -> None:
    Path(out).write_text(str(sorted(keyed[1])))


def _open(runner: str, folder: Path) -> Graph:
    return open_graph(lambda pipeline: _sums(pipeline, folder / "in", folder / "out"), runner, parallelism=2)


@pytest.mark.parametrize("runner", ["direct", "prism", "spark", "flink"])
def test_runs_again_with_other_data_and_raises_what_a_step_raised(runner: str, tmp_path: Path) -> None:
    graph = _open(runner, tmp_path)
    try:
        for given, sums in (("1 2 3", "[(0, 4), (1, 8)]"), ("10 20", "[(0, 34)]")):
            (tmp_path / "in").write_text(given)
            counts = counters(graph.run())
            assert counts == {"rows": len(given.split())}
            assert (tmp_path / "out").read_text() == sums
        (tmp_path / "in").unlink()
        with pytest.raises(RuntimeError) as raised:
            graph.run()
        causes = [raised.value.__cause__, raised.value.__context__]
        assert any(isinstance(cause, FileNotFoundError) for cause in causes), causes
        (tmp_path / "in").write_text("5")
        graph.run()
        assert (tmp_path / "out").read_text() == "[(1, 7)]"
    finally:
        graph.close()


def test_a_job_server_that_is_killed_is_an_error_and_replaced(tmp_path: Path) -> None:
    graph = _open("prism", tmp_path)
    assert isinstance(graph, portable.PortableGraph)
    try:
        (tmp_path / "in").write_text("1")
        graph.run()
        assert graph._server is not None
        first = graph._server.process
        first.kill()
        graph.run()
        assert graph._server.process.pid != first.pid
    finally:
        graph.close()
    assert not guard._alive(first.pid)


def test_a_job_server_is_replaced_before_it_grows_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(portable._JOBS_A_SERVER, "prism", 2)
    graph = _open("prism", tmp_path)
    assert isinstance(graph, portable.PortableGraph)
    (tmp_path / "in").write_text("1")
    servers = []
    try:
        for _ in range(4):
            graph.run()
            assert graph._server is not None
            servers.append(graph._server.process.pid)
    finally:
        graph.close()
    assert servers[0] == servers[1] != servers[2] == servers[3]
    assert not any(map(guard._alive, servers))


def test_what_is_missing_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(EngineError, match=r"no java in PATH.*Java 17: install it"):
        _open("flink", tmp_path).run()
    monkeypatch.setenv("MIDSTREAM_ENGINES", str(tmp_path / "engines"))
    with pytest.raises(EngineError, match="there is no Go to build it with: install Go"):
        _open("prism", tmp_path).run()
