"""Learners on Flink and Spark, and continuously from topics with a kill: a batch's bits everywhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from bench.cluster_streams import StreamConfig, make_stream
from models.registry import Registry
from pipelines import template as templates
from pipelines.execute import Execution
from tests.kafka import Cluster
from tests.pipelines import jobs
from tests.pipelines.continuous import PARTITIONS, Command, Tail, bits
from tests.pipelines.test_cluster import assert_same

ROWS = 2400
LEARN_ROWS = 200
pytestmark = pytest.mark.timeout(600)


class Case(NamedTuple):
    """A template, its stream, and what is compared.

    Attributes:
        records: as JSON, in order of time.
        columns: of the records.
        params: of the template, in files and from topics.
        compared: columns by output.
    """

    records: list[bytes]
    columns: str
    params: Mapping[str, Any]
    compared: Mapping[str, tuple[str, ...]]


LINEAGE = ("sequence", "id", "version", "digest", "policy")


def clusters() -> Case:
    rows = make_stream(StreamConfig(2, 12, rows=ROWS, births=2, deaths=2, merges=0, splits=0)).rows
    records = [{"t": i, "id": i, "x": x, "y": y} for i, (x, y) in enumerate(rows.round(3).tolist())]
    events = ("sequence", "version", "kind", "cluster", "other")
    return Case(
        [json.dumps(record).encode() for record in records],
        "t:int64,id:int64,x:float64,y:float64",
        {"features": "x,y", "learn_rows": LEARN_ROWS},
        {"predictions": (*LINEAGE, "cluster", "distance"), "events": events},
    )


def features() -> Case:
    draw = np.random.default_rng(5)
    x = draw.normal(size=(ROWS, 4)).round(3)
    label = np.where(np.arange(ROWS) < ROWS // 2, x[:, 0] - x[:, 1], x[:, 2]) > 0
    records = [
        {"t": i, "id": i, **{f"f{j}": v for j, v in enumerate(x[i].tolist())}, "label": "yes" if label[i] else "no"}
        for i in range(ROWS)
    ]
    return Case(
        [json.dumps(record).encode() for record in records],
        "t:int64,id:int64,f0:float64,f1:float64,f2:float64,f3:float64,label:string",
        {
            "features": "f0,f1,f2,f3",
            "label": "label",
            "classes": "no,yes",
            "label_delay": "30s",
            "learn_rows": LEARN_ROWS,
            "relevance_half_life": 200,
        },
        {
            "predictions": (*LINEAGE, "prediction", "score"),
            "evaluations": ("sequence", "label", "prediction", "version"),
            "events": ("sequence", "version", "kind", "feature"),
        },
    )


def classes() -> Case:
    """Half-way the classes change places, and one column lies higher: the learner acts, and the monitor tells."""
    draw = np.random.default_rng(5)
    x = draw.normal(size=(ROWS, 3)).round(3)
    late = np.arange(ROWS) >= ROWS // 2
    label = (x[:, 0] + x[:, 1] > 0) ^ late
    x[late, 2] += 2.0
    records = [{"t": i, "id": i, **dict(zip("abc", x[i].tolist(), strict=True)), "label": int(label[i])} for i in range(ROWS)]
    params = {"label": "label", "label_delay": "30s", "classes": "0,1", "on_drift": "fork", "drift_rows": 200}
    return Case(
        [json.dumps(record).encode() for record in records],
        "t:int64,id:int64,a:float64,b:float64,c:float64,label:int64",
        params | {"learn_every_rows": LEARN_ROWS},
        {
            "predictions": (*LINEAGE, "prediction", "score"),
            "evaluations": ("sequence", "label", "prediction", "version"),
            "events": ("sequence", "version", "kind", "after"),
            "drift": ("sequence", "version", "column", "role", "distance", "alarm"),
        },
    )


CASES = {"cluster": clusters(), "select-features": features(), "classify": classes()}


def params(name: str, output: Path, **more: Any) -> dict[str, Any]:
    case = CASES[name]
    given = {"columns": case.columns, "time": "t", "time_unit": "s", "keep": "id", "output": output}
    return {**given, **case.params, **more}


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By template, the output of a batch over files, a file a partition, on the DirectRunner."""
    folder = tmp_path_factory.mktemp("batch")
    for name, case in CASES.items():
        for partition in range(PARTITIONS):
            (folder / f"{name}-{partition}.jsonl").write_bytes(b"\n".join(case.records[partition::PARTITIONS]) + b"\n")
        # Files come one after the other, so rows of the second one would be late by a watermark of all files together.
        more = {"input": folder / f"{name}-*.jsonl", "out_of_orderness": "1000d", "mode": "batch"}
        _run(name, params(name, folder / name, **more))
        assert len(jobs.read(folder / name)) == ROWS
    return {name: folder / name for name in CASES}


def _run(name: str, given: Mapping[str, Any], **run: Any) -> None:
    found, here = templates.load(name)
    job = found.fill({key: str(value) for key, value in given.items()}, here)
    outcome = Execution(job.model_copy(update={"run": job.run.model_copy(update=run)})).run()
    assert outcome.finished and not outcome.problems, outcome.problems


@pytest.mark.parametrize(("name", "runner"), [("cluster", "flink"), ("classify", "spark"), ("select-features", "prism")])
def test_micro_batches_on_an_engine(batch: dict[str, Path], tmp_path: Path, name: str, runner: str) -> None:
    more = {"input": batch[name].parent / f"{name}-*.jsonl", "out_of_orderness": "1000d", "micro_batch_records": 1000}
    _run(name, params(name, tmp_path / name, **more), runner=runner, parallelism=2)
    assert_same(batch[name], tmp_path / name, name)
    for kind, names in CASES[name].compared.items():
        ours, theirs = (jobs.read(output / name, kind).to_pylist() for output in (batch[name].parent, tmp_path))
        assert len(ours) > 0 and bits(ours, names) == bits(theirs, names), kind


@pytest.mark.parametrize("name", ["cluster", "classify"])
def test_continuously_with_a_kill(kafka: Cluster, batch: dict[str, Path], tmp_path: Path, name: str) -> None:
    case, output = CASES[name], tmp_path / name
    topic = kafka.topic(PARTITIONS)
    kafka.send_parts(topic, [case.records[partition::PARTITIONS] for partition in range(PARTITIONS)])
    topics = {f"{kind}_topic": kafka.topic() for kind in (*case.compared, "dead_letters")}
    more = {"bootstrap": kafka.bootstrap, "topic": topic, "mode": "continuous", "tick": "100s", "checkpoint_every": "1s"}
    given = params(name, output, **topics, **more, out_of_orderness="10s")
    options = [part for key, value in given.items() for part in ("-p", f"{key}={value}")]
    command = Command(Path(f"{name}-kafka"), tmp_path / "log.txt", *options)
    tails = {kind: Tail(kafka.bootstrap, topics[f"{kind}_topic"]) for kind in case.compared}
    try:
        tails["predictions"].until(lambda rows: len(rows) > 0.3 * ROWS)
        command.kill()
        command.start()
        assert command.wait() == 0, command.told()
        for kind, names in case.compared.items():
            expected = jobs.read(batch[name], kind).to_pylist()
            enough = len(expected)
            found = tails[kind].until(lambda rows, enough=enough: len(rows) >= enough, 10)
            for row, real in itertools.product(found, {"distance", "score", "after"} & set(names)):
                row[real] = None if row[real] is None else float(row[real])  # JSON writes 1.0 as 1
            assert bits(found, names) == bits(expected, names), kind
    finally:
        command.kill()
        for tail in tails.values():
            tail.close()
    assert _versions(output, name) == _versions(batch[name], name)
    counts = json.loads(command.told().strip().splitlines()[-1])
    assert counts["predictions"] == ROWS and counts["dead_letters"] == 0


def _versions(output: Path, name: str) -> list[str]:
    registry = Registry(str(output / "registry"))
    return [registry.manifest(name, version).digests.version for version in registry.versions(name)]
