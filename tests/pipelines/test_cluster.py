"""The templates cluster and select-features on files of a user, whole and in pieces."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from bench.cluster_metrics import measure
from bench.cluster_streams import StreamConfig, make_stream
from models.registry import Registry
from pipelines import template as templates
from pipelines.execute import Execution, Outcome
from pipelines.job import JobSpec
from tests.pipelines.electricity import read

CONFIG = StreamConfig(3, 12, rows=3000, births=1, deaths=1, merges=0, splits=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("stream") / "in.csv"
    rows = make_stream(CONFIG).rows
    pyarrow.csv.write_csv(pa.table({f"column {place}": rows[:, place] for place in range(3)}), file)
    return file


def job(output: Path, data: Path, **params: Any) -> JobSpec:
    template, here = templates.load("cluster")
    content = template.fill({"output": str(output), "input": str(data), "learn_rows": 250, **params}, here).model_dump(
        mode="json"
    )
    content["learner"]["options"]["compiled"] = False  # some seconds a process that these tests need not spend
    return JobSpec.model_validate(content)


def run(spec: JobSpec) -> Outcome:
    return Execution(spec).run()


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    outcome = run(job(output, data, mode="batch"))
    assert outcome.summary is not None and not outcome.problems
    return output


def assert_same(left: Path, right: Path, model: str = "cluster") -> None:
    for name in ("predictions", "evaluations", "events", "dead_letters"):
        ours, theirs = read(left, name), read(right, name)
        assert ours.equals(theirs), name
    registries = [Registry(str(output / "registry")) for output in (left, right)]
    ours, theirs = ([r.manifest(model, v).digests.version for v in r.versions(model)] for r in registries)
    assert ours == theirs


def test_clusters_of_a_file(whole: Path, data: Path) -> None:
    found = read(whole, "predictions")
    assert {"row", "cluster", "distance", "version"} <= set(found.schema.names)
    assert found.column("row").to_pylist() == list(range(CONFIG.rows))
    quality = measure(make_stream(CONFIG).labels, found.column("cluster").fill_null(-1).to_numpy())
    print(quality)
    assert quality.ari > 0.85  # the first of twelve windows comes before the first version
    events = read(whole, "events").to_pylist()
    assert [event["kind"] for event in events][: CONFIG.start] == ["born"] * CONFIG.start
    assert {"born", "died"} == {event["kind"] for event in events}
    page = (whole / "report.html").read_text()
    assert "Clusters over time" in page and "Where the clusters went" in page


@pytest.mark.parametrize("records", [333, 1000])
def test_any_cut_gives_the_same(whole: Path, data: Path, tmp_path: Path, records: int) -> None:
    run(job(tmp_path / "cut", data, micro_batch_records=records))
    assert_same(whole, tmp_path / "cut")


def _die(spec: JobSpec, output: str, die_at: int | None, counted: Any) -> None:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.link") and output in str(args[0] if args else ""):
            counted.value += 1
            if counted.value == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    run(spec)


@pytest.mark.timeout(400)
def test_killed_and_gone_on_with(whole: Path, data: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "apache_beam", "pipelines.execute"])
    output = tmp_path / "killed"
    spec = job(output, data, micro_batch_records=600)
    draw = np.random.default_rng(21)
    deaths = 0
    for die_at in [*draw.integers(40, 220, 4).tolist(), None]:
        counted = context.Value("q", 0, lock=False)
        process = context.Process(target=_die, args=(spec, str(output), die_at, counted))
        process.start()
        process.join()
        deaths += process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0 and deaths >= 3
    assert_same(whole, output)


def test_features_that_matter_are_selected(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    rows = draw.normal(size=(3000, 8))
    label = np.where(np.arange(3000) < 1500, rows[:, 0] - rows[:, 1], rows[:, 2] + rows[:, 3]) > 0
    table = pa.table({f"f{place}": rows[:, place] for place in range(8)} | {"y": np.where(label, "yes", "no")})
    pyarrow.csv.write_csv(table, tmp_path / "in.csv")
    template, here = templates.load("select-features")
    given = {"input": str(tmp_path / "in.csv"), "label": "y", "output": str(tmp_path / "out"), "relevance_half_life": 200}
    outcome = run(template.fill(given, here))
    assert outcome.summary is not None and not outcome.problems
    assert (outcome.summary.accuracy or 0) > 0.75
    selected: dict[str, str] = {}
    at_change = {}
    for event in read(tmp_path / "out", "events").to_pylist():
        if event["sequence"] < 1500:
            at_change[event["feature"]] = event["kind"]
        selected[event["feature"]] = event["kind"]
    dropped = {feature for feature, kind in at_change.items() if kind == "dropped"}
    assert dropped == {f"f{place}" for place in range(2, 8)}  # all were let through at first
    assert {feature for feature in (f"f{place}" for place in range(8)) if selected.get(feature) != "dropped"} == {"f2", "f3"}
    assert "Which features mattered when" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads(outcome.to_json())["records"] == 3000
