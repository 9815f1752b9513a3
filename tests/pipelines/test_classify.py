"""The templates `classify` and `regress` on files as users have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from models.registry import Registry
from pipelines import template as templates
from pipelines.cli import main
from pipelines.commands.run import clear
from pipelines.execute import Execution
from pipelines.resolve import JobError

SMALL = {"memory_rows": 256, "trees": 4, "depth": 3, "grown": 1, "hidden": 8, "steps": 1}  # quick


def job(template, tmp_path, data, small=True, **params):
    file = tmp_path / "in.csv"
    data.to_csv(file, index=False)
    loaded, here = templates.load(template)
    given = {"input": str(file), "label": "y", "output": str(tmp_path / "out"), "learn_every_rows": "100"} | params
    spec = loaded.fill(given, here)
    if not small:
        return spec
    learner = spec.learner.model_copy(update={"options": spec.learner.options | SMALL})
    return spec.model_copy(update={"learner": learner})


def run(spec):
    outcome = Execution(spec).run()
    assert outcome.problems == []
    tables = [pq.read_table(part) for part in sorted(Path(spec.output, "predictions").glob("*.parquet"))]
    return outcome.summary, pd.concat([table.to_pandas() for table in tables]).sort_values("row")


def records(rows=900, seed=5):
    """Three columns, of which two say what the label is."""
    rng = np.random.default_rng(seed)
    data = pd.DataFrame(rng.normal(size=(rows, 3)), columns=["a", "b", "const"])
    data["const"] = 4.0
    return data


def test_text_labels_of_three_classes(tmp_path):
    data = records()
    data["y"] = np.select([data.a > 0.6, data.b > 0.3], ["high", "middle one"], "low")
    spec = job("classify", tmp_path, data, label_delay="5")
    summary, given = run(spec)
    assert given["row"].tolist() == list(range(900))
    assert set(given["prediction"].dropna()) <= {"high", "middle one", "low"}
    assert summary.accuracy > 0.75 and summary.kappa_temporal > 0.5 and summary.versions > 9
    assert summary.records_per_s > 0
    assert given["version"].is_monotonic_increasing
    clear(spec)
    assert not any(Path(spec.output).iterdir()), "what --fresh leaves, the next job would go by"


def test_figures_of_windows_and_segments(tmp_path):
    data = records(500)
    data["y"] = (data.a > 0).astype(int)
    data["city"] = np.where(np.arange(500) % 2 == 0, "Bern", "Rome")
    spec = job("classify", tmp_path, data, metrics_rows="100", metrics_by="city", keep="city")
    run(spec)
    figures = pd.concat([pq.read_table(part).to_pandas() for part in sorted(Path(spec.output, "metrics").glob("*.parquet"))])
    whole = figures[figures.version.isna() & figures.segment.notna()]
    assert (figures.version.isna() & figures.segment.isna()).sum() == 5, "and a row for each window of all"
    assert sorted(whole.segment) == ["Bern"] * 2 + ["Rome"] * 2 and (whole.rows == 100).all()
    assert whole.accuracy.iloc[-1] > 0.8 and whole.auc.iloc[-1] > 0.8 and whole.log_loss.notna().all()


def test_a_concept_that_turns_is_seen_and_learnt_before_the_window_is_full(tmp_path):
    data, turn, delay = records(1210), 1000, 10
    data["y"] = ((data.a > 0) ^ (np.arange(len(data)) >= turn)).astype(int)
    spec = job("classify", tmp_path, data, label_delay=str(delay), learn_every_rows="400")
    _, answers = run(spec)
    (event,) = pd.concat(
        [pq.read_table(part).to_pandas() for part in Path(spec.output, "events").glob("*.parquet")]
    ).itertuples()
    assert event.kind == "drift" and event.before < 0.2 < event.after
    assert turn < event.sequence < turn + 30
    assert (answers.prediction == data.y)[turn + delay + 100 :].mean() > 0.85, "the window of 400 labels would be open"


def test_missing_values_true_and_false_and_text_columns(tmp_path):
    data = records()
    rng = np.random.default_rng(1)
    data["city"] = rng.choice(["Bern", "Rome", "Oslo"], len(data))
    data["y"] = np.where(data.city == "Rome", data.a > 0, data.a <= 0)
    data.loc[rng.random(len(data)) < 0.05, "b"] = np.nan
    summary, _ = run(job("classify", tmp_path, data, text_features="city"))
    assert summary.dead_letters == 0 and summary.predictions == 900
    assert summary.accuracy > 0.65, "the city says which way round the label goes"


def test_labels_are_not_known_before_their_time(tmp_path):
    """The same records with other labels from some record on: predictions are the same until the first of them is known."""
    data = records(500)
    data["y"] = (data.a > 0).astype(int)
    delay, changed = 30, 300
    other = data.copy()
    other.loc[changed:, "y"] = 1 - other.loc[changed:, "y"]
    answers = []
    for number, version in enumerate((data, other)):
        folder = tmp_path / str(number)
        folder.mkdir()
        answers.append(run(job("classify", folder, version, label_delay=str(delay)))[1])
    first, second = (answer[["prediction", "score", "version"]].to_numpy() for answer in answers)
    same = (first == second) | (pd.isna(first) & pd.isna(second))
    differs = np.flatnonzero(~same.all(axis=1))
    assert changed + delay <= differs[0] <= changed + delay + 100


def test_a_number_is_estimated(tmp_path):
    data = records()
    data["y"] = 100 * data.a - 40 * data.b + 1000
    summary, given = run(job("regress", tmp_path, data, label_delay="3"))
    late = slice(500, None)
    error = (given["prediction"] - data["y"].to_numpy()).to_numpy()[late]
    assert np.sqrt(np.mean(error**2)) < 0.3 * data["y"].std()
    assert summary.accuracy is None and summary.rmse == pytest.approx(
        np.sqrt(np.nanmean((given["prediction"].to_numpy() - data["y"].to_numpy()) ** 2)), rel=1e-4
    )


@pytest.mark.parametrize("template", ["classify", "regress"])
def test_micro_batches_and_one_batch_agree(tmp_path, template):
    """Also where the errors jump, so that the next versions come soon."""
    data = records(600)
    turned = np.where(np.arange(600) < 400, data.a + data.b, -3.0 * data.a)
    data["y"] = (turned > 0).astype(int) if template == "classify" else 10.0 * turned
    answers, digests, heard = [], [], []
    for number, params in enumerate(({"mode": "batch"}, {"micro_batch_records": "70"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        spec = job(template, folder, data, label_delay="11", **params)
        answers.append(run(spec)[1][["row", "prediction", "score", "version"]])
        registry = Registry(spec.model.registry)
        digests.append([registry.manifest(template, v).digests.version for v in registry.versions(template)])
        heard.append(
            [event for part in sorted(Path(spec.output, "events").glob("*")) for event in pq.read_table(part).to_pylist()]
        )
    pd.testing.assert_frame_equal(*[answer.reset_index(drop=True) for answer in answers], check_exact=True)
    assert digests[0] == digests[1]
    assert heard[0] == heard[1] and [event["kind"] for event in heard[0]] == ["drift"]
    assert 400 <= heard[0][0]["sequence"] < 450 and heard[0][0]["before"] < heard[0][0]["after"]


@pytest.mark.parametrize(
    ("label", "params", "says"),
    [
        (np.linspace(0, 1, 300), {}, "is a decimal number.*run the template regress"),
        (np.where(np.arange(300) % 3, np.arange(300) % 2, np.nan), {}, "written as decimals, like 1.0.*y:string[?]"),
        (np.full(300, np.nan), {}, "no value in any of the files.*classes=a,b"),
        (np.arange(300), {}, "more than 200 different values"),
        (np.arange(300) % 2, {"label": "z"}, "no label column 'z'; they have a, b, const, y"),
        (np.arange(300) % 2, {"classes": "yes,no"}, "expected such numbers"),
        (np.arange(300) % 2, {"features": "q"}, "no column q"),
    ],
    ids=["decimal", "whole decimals", "never", "key", "no such label", "other classes", "no such feature"],
)
def test_what_cannot_be_learnt_is_said(tmp_path, label, params, says):
    data = records(300)
    data["y"] = label
    with pytest.raises(JobError, match=says):
        run(job("classify", tmp_path, data, **params))


def test_on_the_command_line(tmp_path):
    data = records(300)
    data["y"] = (data.a > 0).astype(int)
    data.to_csv(tmp_path / "in.csv", index=False)
    given = ["run", "classify", "--param", f"input={tmp_path / 'in.csv'}", "--param", "label=y", "--param", "label_delay=1"]
    result = CliRunner().invoke(main, [*given, "--param", f"output={tmp_path / 'out'}", "--param", "learn_every_rows=100"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.output.strip().splitlines()[-1])
    assert {"accuracy", "kappa_temporal", "records_per_s", "versions"} <= summary.keys() and summary["accuracy"] > 0.8


def test_what_is_missing_in_text_is_a_value_of_its_own_and_a_missing_label_is_none(tmp_path):
    """In JSON Lines a text may be null, in CSV a field is empty."""
    data = records(600)
    kind = np.random.default_rng(3).choice(["red", "green", ""], 600)
    data["kind"] = pd.Series(kind, dtype=object).where(kind != "", None)
    data["y"] = np.where(kind == "", "rest", np.where(data.a > 0, "up", "down"))
    data.loc[300::5, "y"] = None
    data.to_json(tmp_path / "in.jsonl", orient="records", lines=True)
    answers = []
    for number, file in enumerate(("in.csv", "in.jsonl")):
        spec = job("classify", tmp_path, data, input=str(tmp_path / file), output=str(tmp_path / str(number)), label_delay="5")
        summary, given = run(spec)
        assert summary.dead_letters == 0 and summary.evaluated == 540 and summary.accuracy > 0.8
        assert set(given["prediction"]) == {"rest", "up", "down"}
        answers.append(given)
    late = kind[400:] == ""
    assert (answers[0]["prediction"].to_numpy()[400:] == "rest")[late].mean() > 0.95
    pd.testing.assert_series_equal(*[answer["prediction"].reset_index(drop=True) for answer in answers])


def test_a_class_that_comes_with_a_later_file_takes_no_other_label_with_it(tmp_path):
    data = records(700)
    data["y"] = np.where(data.a > 0, "up", "down")
    data.loc[400::10, "y"] = "sideways"
    data["when"] = pd.date_range("2026-01-01", periods=700, freq="min").strftime("%Y-%m-%dT%H:%M:%SZ")
    (tmp_path / "days").mkdir()
    spec = job("classify", tmp_path, data, input=str(tmp_path / "days"), time="when", label_delay="3m", drain=False)
    data[:400].to_csv(tmp_path / "days" / "1.csv", index=False)
    versions = run(spec)[0].versions
    data[400:].to_csv(tmp_path / "days" / "2.csv", index=False)
    summary, _ = run(spec)
    assert summary.versions > versions + 1 and summary.predictions == 700 and summary.lost == 0
    letters = pd.concat([pq.read_table(part).to_pandas() for part in Path(spec.output, "dead_letters").glob("*.parquet")])
    assert letters["reason"].tolist() == ["unknown_class"] * 30 and "(down, up)" in letters["detail"].iloc[0]
    assert "sideways" in letters["record"].iloc[0] and summary.accuracy < 0.96  # no class of the learner: the answer is wrong


def test_files_without_a_time_column_are_told_apart_before_anything_is_late(tmp_path):
    data = records(300)
    data["y"] = (data.a > 0).astype(int)
    spec = job("classify", tmp_path, data, input=str(tmp_path / "*.csv"))
    data.to_csv(tmp_path / "later.csv", index=False)
    with pytest.raises(JobError, match=r"no time column and lie in 2 files .in.csv, later.csv.*--param time=COLUMN"):
        run(spec)


def test_a_label_too_large_to_learn_takes_no_other_with_it(tmp_path):
    data = records(400)
    data["y"] = 3.0 * data.a
    data.loc[50::60, "y"] = 1e30
    summary, given = run(job("regress", tmp_path, data, label_delay="3"))
    assert summary.dead_letters == 0 and summary.versions > 5
    fine = (data["y"] < 1e30).to_numpy() & (np.arange(400) >= 250)
    assert np.sqrt(np.mean((given["prediction"] - data["y"]).to_numpy()[fine] ** 2)) < 1.0
