"""Drift in a user's stream: the monitor's output, the references that come with versions, and learners that act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner

from models.drift import Reference
from models.registry import REFERENCE, Registry
from pipelines import template as templates
from pipelines.cli import main
from pipelines.execute import Execution
from pipelines.job import JobSpec
from pipelines.resolve import JobError
from tests.pipelines import jobs
from tests.pipelines.electricity import read

ROWS, DRIFT_AT = 4000, 2500


def drifting(rows: int = ROWS, seed: int = 5, turned: int = DRIFT_AT, moved: int = DRIFT_AT) -> pd.DataFrame:
    """y follows from a and b; from row `turned` on the other way round; from `moved` on a lies higher."""
    rng = np.random.default_rng(seed)
    data = pd.DataFrame(rng.normal(size=(rows, 3)), columns=["a", "b", "c"])
    data["city"] = rng.choice(["Bern", "Rome", "Oslo"], rows)
    turn = np.arange(rows) >= turned
    data["y"] = ((data.a + data.b > 0) ^ turn).astype(int)
    data.loc[moved:, "a"] += 2.0
    return data


def learning(folder: Path, data: pd.DataFrame, template: str = "classify", **params: Any) -> JobSpec:
    """The template with a learner that is quick and forgets slowly, so that there is something to gain."""
    folder.mkdir(exist_ok=True)
    data.to_csv(folder / "in.csv", index=False)
    loaded, here = templates.load(template)
    given = {"input": folder / "in.csv", "label": "y", "output": folder / "out", "learn_every_rows": 100, "label_delay": 10}
    spec = loaded.fill({name: str(value) for name, value in (given | params).items()}, here)
    slow = {"algorithm": "mlp_classifier", "options": {"classes": 2, "hidden": [16], "memory_rows": 4000}}
    return spec.model_copy(update={"learner": spec.learner.model_copy(update=slow)})


def run(spec: JobSpec) -> Path:
    outcome = Execution(spec).run()
    assert outcome.problems == []
    return Path(spec.output)


def digests(output: Path) -> list[tuple[int, str]]:
    registry = Registry(str(output / "registry"))
    return [(v, registry.manifest("classify", v).digests.version) for v in registry.versions("classify")]


def right(output: Path, start: int, end: int) -> float:
    found = read(output, "evaluations").to_pandas()
    found = found[(found.row >= start) & (found.row < end)]
    return float((found.prediction == found.y).mean())


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    return run(learning(folder, drifting(turned=ROWS), drift_rows=250, mode="batch", on_drift="fork"))


def test_a_moved_column_gives_alarms_and_the_others_do_not(watched: Path) -> None:
    found = read(watched, "drift").to_pandas()
    alarms = found[found.alarm]
    inputs = alarms[alarms.role == "input"]
    assert set(inputs.column) == {"a"}
    assert DRIFT_AT < inputs.sequence.min() <= DRIFT_AT + 500, "seen by the end of the first whole window behind it"
    assert (found[found.column.isin(["b", "c"])].distance < 0.2).all()
    assert (found.reference == "training").all() and (found.rows == 250).all()
    assert set(found[found.role == "output"].column) == {"prediction", "score"}


def test_every_version_has_its_training_rows_summary(watched: Path) -> None:
    registry = Registry(str(watched / "registry"))
    versions = registry.versions("classify")[1:]  # the first has learnt nothing
    kept = [Reference.from_json(registry.note("classify", version, REFERENCE) or "") for version in versions]
    assert [one.rows for one in kept][-1] == 2000
    assert set(kept[-1].columns) == {"a", "b", "c", "prediction", "score"}
    assert registry.verify("classify", versions[-1]).version == versions[-1]


def test_any_cut_gives_the_same_drift_and_versions(watched: Path, tmp_path: Path) -> None:
    other = run(learning(tmp_path / "cut", drifting(turned=ROWS), drift_rows=250, micro_batch_records=777, on_drift="fork"))
    for name in ("drift", "events", "predictions"):
        assert read(watched, name).equals(read(other, name)), name
    assert digests(watched) == digests(other)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(learning(tmp_path_factory.mktemp("untouched"), drifting(moved=ROWS), mode="batch"))


@pytest.mark.parametrize("action", ["raise", "reset", "fork"])
def test_a_learner_that_acts_recovers_sooner(untouched: Path, tmp_path: Path, action: str) -> None:
    output = run(learning(tmp_path / action, drifting(moved=ROWS), mode="batch", on_drift=action))
    events = read(output, "events").to_pandas()
    first = events[events.kind == "drift"].iloc[0]
    assert DRIFT_AT <= first.sequence <= DRIFT_AT + 300 and first.after > first.before + 0.2
    assert right(output, 500, DRIFT_AT) == pytest.approx(right(untouched, 500, DRIFT_AT), abs=0.001)
    gained = right(output, DRIFT_AT + 300, ROWS) - right(untouched, DRIFT_AT + 300, ROWS)
    print(action, right(untouched, DRIFT_AT + 300, ROWS), gained)
    assert gained > 0.02
    if action == "fork":
        assert "challenger won" in set(events.kind)


def test_a_published_model_brings_its_training_rows(tmp_path: Path, world: jobs.World) -> None:
    training = jobs.write_csv(tmp_path / "training.csv", jobs.records(1500, seed=8))
    registry = str(tmp_path / "registry")
    given = ["publish", "--registry", registry, "--model", "line", "--activate", "--reference", str(training), str(world.line)]
    told = CliRunner().invoke(main, given)
    assert told.exit_code == 0, told.output
    records = jobs.records(3000).to_pandas()
    records.loc[2000:, "b"] += 1.0
    data = jobs.write_csv(tmp_path / "in.csv", pa.Table.from_pandas(records, preserve_index=False))
    outputs = []
    for number, cut in enumerate((100000, 701)):
        params = {"registry": registry, "model": "line", "time": "time", "drift_rows": 500, "micro_batch_records": cut}
        outputs.append(jobs.run("serve", input=data, output=tmp_path / f"out{number}", **params).output)
    found = read(outputs[0], "drift")
    assert found.equals(read(outputs[1], "drift"))
    table = found.to_pandas()
    assert (table.reference == "training").all() and (table.reference_rows == 1500).all()
    assert set(table[table.alarm].column) == {"b", "score", "prediction"}
    assert table[table.alarm].sequence.min() == 2499


def test_without_a_reference_the_first_rows_stand_in(serve: jobs.Serve, tmp_path: Path) -> None:
    records = jobs.records(5000).to_pandas()
    records.loc[4000:, "b"] += 1.0
    data = jobs.write_csv(tmp_path / "in.csv", pa.Table.from_pandas(records, preserve_index=False))
    found = read(serve(data, drift_rows=500, drift_columns="a,b").output, "drift").to_pandas()
    assert (found.reference == "first rows").all() and found.sequence.min() == 2499
    assert set(found[found.alarm].column) == {"b", "score", "prediction"} and found[found.alarm].sequence.min() == 4499


@pytest.mark.parametrize(
    ("params", "says"),
    [({"drift_rows": 500, "drift_columns": "a,nope"}, "no column of numbers or text named nope")],
)
def test_what_cannot_be_watched_is_said(serve: jobs.Serve, tmp_path: Path, params: dict[str, Any], says: str) -> None:
    data = jobs.write_csv(tmp_path / "in.csv", jobs.records(10))
    with pytest.raises(JobError, match=says):
        serve(data, **params)
