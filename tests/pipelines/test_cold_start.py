"""From the first record on, and for each new key: what predicts before there is a version, and before a key has its own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.activation_log import ActivationLog
from models.registry import Registry
from pipelines import template as templates
from pipelines.execute import Execution
from pipelines.resolve import JobError
from pipelines.template import TemplateError
from tests.pipelines import jobs
from tests.pipelines.electricity import read
from tests.pipelines.test_classify import SMALL
from tests.pipelines.test_drift import digests

KEYS = {"key": "customer", "keep": "customer", "metrics_by": "key_age", "metrics_rows": 200}


def keyed(rows: int = 6000, keys: int = 60, seed: int = 3) -> pd.DataFrame:
    """Keys appear over time; for half of them the label is the other way round."""
    rng = np.random.default_rng(seed)
    newest = np.minimum(np.arange(rows) * keys // (rows * 3 // 4) + 1, keys)
    data = pd.DataFrame(rng.normal(size=(rows, 2)), columns=["a", "b"])
    data["customer"] = rng.integers(0, newest) + 1000
    turned = data.customer % 3 == 0
    data["y"] = np.where((data.a + 0.5 * data.b > 0) ^ turned, "yes", "no")
    return data


def run(folder: Path, data: pd.DataFrame, template: str = "classify", **params: Any) -> Path:
    folder.mkdir(exist_ok=True)
    data.to_csv(folder / "in.csv", index=False)
    loaded, here = templates.load(template)
    given = {"input": folder / "in.csv", "label": "y", "output": folder / "out", "label_delay": 5, "learn_every_rows": 100}
    spec = loaded.fill({name: str(value) for name, value in (given | params).items()}, here)
    assert spec.learner is not None
    small = SMALL if "key" not in params else {}
    spec = spec.model_copy(update={"learner": spec.learner.model_copy(update={"options": spec.learner.options | small})})
    outcome = Execution(spec).run()
    assert outcome.problems == []
    return folder / "out"


def right(output: Path) -> float:
    found = read(output, "evaluations").to_pandas()
    return float((found.prediction == found.y).mean())


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    return run(folder, keyed(), mode="batch", **KEYS)


def test_keys_graduate_and_beat_one_model_for_all(with_keys: Path, tmp_path: Path) -> None:
    given = read(with_keys, "predictions").to_pandas()
    late = given.iloc[-500:]
    turned = (late.customer % 3 == 0).to_numpy()  # what is true of most is wrong for them
    assert late.graduated[turned].mean() > 0.9 > late.graduated[~turned].mean()
    for_all = run(tmp_path / "all", keyed(), key="customer", graduate_rows=10**9, mode="batch")
    print(right(with_keys), right(for_all))
    assert right(with_keys) > right(for_all) + 0.1
    metrics = read(with_keys, "metrics").to_pandas()
    by_age = metrics[metrics.version.isna()].groupby("segment").accuracy.mean()
    assert by_age["50 to 99"] > by_age["0 to 4"] + 0.1, by_age


def test_any_cut_gives_the_same_keyed_versions(with_keys: Path, tmp_path: Path) -> None:
    cut = run(tmp_path / "cut", keyed(), micro_batch_records=1700, **KEYS)
    for name in ("predictions", "evaluations", "metrics"):
        assert read(with_keys, name).equals(read(cut, name)), name
    assert digests(with_keys) == digests(cut)


def test_a_key_that_has_not_graduated_may_have_no_prediction(tmp_path: Path) -> None:
    output = run(tmp_path, keyed(1500, 10), key="customer", new_keys="abstain", graduate_rows=20, mode="batch")
    given = read(output, "predictions").to_pandas()
    given = given[given.version > 0]
    silent = given.graduated == 0
    assert silent.any() and (~silent).any()
    assert given[silent].prediction.isna().all() and given[silent].score.isna().all()
    assert given[~silent].prediction.notna().all()


def test_records_wait_for_the_first_version(tmp_path: Path) -> None:
    data = keyed(150).drop(columns="customer")
    outputs = [
        run(tmp_path / name, data, cold_start="hold", **cut)
        for name, cut in (("whole", {"mode": "batch"}), ("cut", {"micro_batch_records": 7}))
    ]
    for name in ("predictions", "evaluations"):
        assert read(outputs[0], name).equals(read(outputs[1], name)), name
    given = read(outputs[0], "predictions").to_pandas()
    assert len(given) == 150 and given.prediction.notna().all()
    held = given[given.policy == "hold"]
    assert held.row.tolist() == list(range(13)) and set(held.version) == {2}  # 8 labels, each 5 records late
    assert len(read(outputs[0], "evaluations")) == 150


def test_nothing_is_lost_when_no_version_ever_comes(tmp_path: Path) -> None:
    output = run(tmp_path, keyed(7).drop(columns="customer"), cold_start="hold", classes="yes,no")
    given = read(output, "predictions").to_pandas()
    assert len(given) == 7 and given.prediction.isna().all()


def test_a_learner_that_knows_nothing_may_begin(tmp_path: Path) -> None:
    given = read(run(tmp_path, keyed(200).drop(columns="customer"), cold_start="prior"), "predictions").to_pandas()
    assert given.prediction.notna().all() and given.version.iloc[0] == 1 and given.score.iloc[0] == pytest.approx(0.5)


def test_a_parent_predicts_from_the_first_record_on_and_is_learnt_on_from(tmp_path: Path) -> None:
    data = keyed(1500).drop(columns="customer")
    data["y"] = np.where(data.a > 0, "yes", "no")
    parent = run(tmp_path / "parent", data.iloc[:1000])
    newest = Registry(str(parent / "registry")).versions("classify")[-1]
    path = parent / "registry" / "classify" / str(newest)
    params = {"cold_start": "parent", "parent": path}
    output = run(tmp_path / "child", data.iloc[1000:], **params)
    given = read(output, "predictions").to_pandas()
    truth = data.y.iloc[1000:].to_numpy()
    assert (given.prediction.to_numpy()[:13] == truth[:13]).mean() > 0.8 and given.version.iloc[0] == 1
    registry = Registry(str(output / "registry"))
    assert registry.manifest("classify", 1).digests == Registry(str(parent / "registry")).manifest("classify", newest).digests
    assert registry.manifest("classify", 2).parent == 1
    again = run(tmp_path / "child", data.iloc[1000:], **params)  # the same command once more changes nothing
    assert read(again, "predictions").to_pandas().equals(given)


def test_a_parent_that_gives_something_else_is_refused(tmp_path: Path, world: jobs.World) -> None:
    data = keyed(100).drop(columns="customer")
    with pytest.raises(JobError, match=r"the parent .* gives .*score: float.*expected what the learner gives, too: prediction"):
        run(tmp_path, data, cold_start="parent", parent=world.line)
    with pytest.raises(TemplateError, match="wants a SavedModel"):
        run(tmp_path / "none", data, cold_start="parent")


def test_serving_waits_for_the_first_activation(tmp_path: Path, world: jobs.World) -> None:
    registry = tmp_path / "registry"
    version = jobs.publish(registry, world.line, activate=False)
    data = jobs.write_csv(tmp_path / "in.csv", jobs.records(50))

    def activate() -> None:
        ActivationLog(str(registry), "line").activate(version, 1_767_225_620_000_000, by="test", reason="at last")

    later = threading.Timer(1.0, activate)
    later.start()
    ran = jobs.run(
        "serve", input=data, registry=registry, model="line", time="time", output=tmp_path / "out", cold_start="hold"
    )
    later.join()
    given = read(ran.output, "predictions").to_pandas()
    assert given.prediction.notna().all() and set(given.version) == {version}
    assert (given.policy == "hold").tolist() == [True] * 20 + [False] * 30


def test_columns_of_text_are_learnt_from_and_names_of_records_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    data = pd.DataFrame({"city": rng.choice(["Bern", "Rome", "Oslo"], 700), "note": [f"n{n}" for n in range(700)]})
    data["y"] = np.where(data.city == "Rome", "yes", "no")
    output = run(tmp_path, data)
    assert right(output) > 0.9
    registry = Registry(str(output / "registry"))
    assert "city" in registry.manifest("classify", 1).signature.inputs
    assert "note" not in registry.manifest("classify", 1).signature.inputs


def test_values_of_earlier_records_of_the_key(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    data = pd.DataFrame({"who": rng.integers(0, 5, 900), "x": rng.normal(size=900)})
    before = data.groupby("who").x.shift(1)
    data["y"] = (before.fillna(-1) > 0).astype(int)
    plain = run(tmp_path / "plain", data, features="x")
    lagged = run(tmp_path / "lagged", data, lags="before=lag(x, 1);week=mean(x, 3)", lags_by="who", features="x,before,week")
    assert right(lagged) > 0.85 > 0.7 > right(plain)


@pytest.mark.parametrize(
    ("lags", "says"),
    [("before", "expected name=lag"), ("a=lag(x, 1);a=lag(x, 2)", "every name once"), ("a=median(x, 3)", "expected name=lag")],
)
def test_lags_that_are_none_are_said(tmp_path: Path, lags: str, says: str) -> None:
    with pytest.raises(TemplateError, match=says):
        run(tmp_path, keyed(20), lags=lags)
