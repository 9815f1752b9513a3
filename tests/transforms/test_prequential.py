"""Figures of predictions against plain formulas and River's metrics, however the stream is cut."""

import numpy as np
import pyarrow as pa
import pytest
from river import metrics

from transforms.batches import EVENT_TIME, MAX_WATERMARK_US, SEQUENCE, TIME_TYPE
from transforms.label_join import LABEL_TIME
from transforms.prequential import Prequential, auc

SECOND = 1_000_000


def evaluations(rows=240, seed=1, **columns):
    rng = np.random.default_rng([2, seed])
    label = rng.integers(0, 2, rows)
    score = np.clip(0.5 + (label - 0.5) * 0.4 + rng.normal(0, 0.3, rows), 0, 1)
    times = pa.array(np.arange(rows) * SECOND).cast(TIME_TYPE)
    return pa.table(
        {
            EVENT_TIME: times,
            LABEL_TIME: times,
            SEQUENCE: np.arange(rows),
            "y": label,
            "prediction": (score > 0.5).astype(np.int64),
            "score": score,
            "version": np.arange(rows) // 60 + 1,
            "city": np.where(np.arange(rows) % 3 == 0, "Bern", "Rome"),
        }
        | columns
    )


def advance(operator, table, cuts=()):
    state, given = {}, []
    for start, stop in zip([0, *cuts], [*cuts, table.num_rows], strict=True):
        state, out = operator.advance(state, {"in": table.slice(start, stop - start)}, MAX_WATERMARK_US)
        given.append(out["metrics"])
    return pa.concat_tables(given)


def test_the_figures_are_those_of_river():
    table = evaluations()
    rows = [row for row in advance(Prequential("y", 120), table).to_pylist() if row["version"] is None]
    assert [row["rows"] for row in rows] == [120, 120]
    for number, row in enumerate(rows):
        part = table.slice(number * 120, 120)
        expected = {"accuracy": metrics.Accuracy(), "kappa": metrics.CohenKappa(), "log_loss": metrics.LogLoss()}
        for y, said, score in zip(*(part.column(name).to_pylist() for name in ("y", "prediction", "score")), strict=True):
            expected["accuracy"].update(y, said)
            expected["kappa"].update(y, said)
            expected["log_loss"].update(bool(y), float(np.clip(score, 1e-7, 1 - 1e-7)))
        for name, metric in expected.items():
            assert row[name] == pytest.approx(metric.get(), rel=1e-6), name


def test_auc_counts_pairs():
    rng = np.random.default_rng(4)
    label, score = rng.integers(0, 2, 50).astype(float), rng.integers(0, 9, 50).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in score[label == 1] for b in score[label == 0]]
    assert auc(label, score) == pytest.approx(np.mean(pairs))
    assert auc(np.ones(5), np.arange(5.0)) is None


def test_kappa_temporal_goes_on_over_windows():
    table = evaluations(20, y=np.array([1] * 10 + [0] * 10), prediction=np.array([1] * 10 + [1] + [0] * 9))
    second = advance(Prequential("y", 10), table).filter(pa.compute.field("version").is_null()).to_pylist()[1]
    # The persistent classifier errs once as well, at the same record, for it remembers the last label of the window before.
    assert second["accuracy"] == pytest.approx(0.9) and second["kappa_temporal"] == pytest.approx(0.0)


def test_versions_and_segments_have_figures_of_their_own():
    table = evaluations()
    given = advance(Prequential("y", 80, by="city"), table).to_pylist()
    assert {row["segment"] for row in given} == {"Bern", "Rome", None}
    assert [row for row in given if row["segment"] is None] == advance(Prequential("y", 80), table).to_pylist()
    for row in given:
        if row["version"] is not None and row["segment"] == "Bern":
            here = table.filter((pa.compute.field("city") == "Bern") & (pa.compute.field("version") == row["version"]))
            same = pa.compute.equal(here.column("y"), here.column("prediction")).to_numpy()
            assert row["accuracy"] == pytest.approx(same.mean())


@pytest.mark.parametrize("seed", range(4))
def test_it_does_not_depend_on_how_the_stream_is_cut(seed):
    table = evaluations(seed=seed)
    cuts = sorted(np.random.default_rng(seed).choice(np.arange(1, 240), 9, replace=False).tolist())
    operator = Prequential("y", 30, by="city")
    order = [("segment", "ascending"), (SEQUENCE, "ascending"), ("version", "ascending")]
    assert advance(operator, table, cuts).sort_by(order).equals(advance(operator, table).sort_by(order)), f"cut at {cuts}"


def test_numbers_have_an_rmse_and_a_faded_square():
    table = evaluations(100, y=np.zeros(100), prediction=np.full(100, 2.0))
    row = advance(Prequential("y", 100), table).to_pylist()[0]
    assert row["rmse"] == pytest.approx(2.0) and row["faded"] == pytest.approx(4.0) and row["accuracy"] is None


def test_what_is_faded_follows_the_newest():
    right = np.array([1] * 1000 + [0] * 1000)
    table = evaluations(2000, y=np.ones(2000, np.int64), prediction=right)
    rows = advance(Prequential("y", 1000, half_life_rows=200), table).to_pylist()
    assert rows[0]["faded"] == pytest.approx(1.0) and rows[-1]["faded"] < 0.05
