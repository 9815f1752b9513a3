"""`python -m bench.select_features`: 10 of 500 features matter, and half-way others do. Midstream beside River's SelectKBest.

Features are standard normal; the label is the sign of a weighted sum of those that matter, with noise. Weights are between 0.5
and 1.5, of either sign. Everyone predicts a record before it is learnt; Midstream learns it with the window that it is in.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

REPORT = Path(__file__).parent / "select_features.json"
FEATURES, MATTER = 500, 10
WINDOW_ROWS = 250
WITHIN_ROWS = 2_000  # of the change, precision and recall are to be reached
LEAST = 0.9
SEEDS = (1, 2, 3)


class Data(NamedTuple):
    """x (rows, FEATURES), y (rows,), and which features matter: `before` and `after` the row `change`."""

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.int64]
    before: set[int]
    after: set[int]
    change: int


def make(seed: int, rows: int) -> Data:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, FEATURES))
    order = draw.permutation(FEATURES)
    sets = order[:MATTER], order[MATTER : 2 * MATTER]
    weights = [draw.uniform(0.5, 1.5, MATTER) * draw.choice([-1.0, 1.0], MATTER) for _ in sets]
    noise = draw.normal(size=rows)
    change = rows // 2
    first, second = (x[:, chosen] @ weight for chosen, weight in zip(sets, weights, strict=True))
    y = (np.where(np.arange(rows) < change, first, second) + noise > 0).astype(np.int64)
    return Data(x, y, set(sets[0].tolist()), set(sets[1].tolist()), change)


def found(selected: set[int], real: set[int]) -> tuple[float, float]:
    """Precision and recall."""
    right = len(selected & real)
    return right / max(len(selected), 1), right / len(real)


def midstream(data: Data, *, masked: bool) -> dict[str, Any]:
    """The learner as a SavedModel; without the mask, the same network with the same options."""
    import pyarrow as pa

    from models.learners.feature_selector import FeatureSelector, FeatureSelectorConfig
    from models.learners.mlp_classifier import MlpClassifier, MlpClassifierConfig
    from models.learning import LearningModel, save_learner
    from models.serving import SERVING_SIGNATURE, to_numpy

    names = tuple(f"f{place}" for place in range(FEATURES))
    options = FeatureSelectorConfig(names, half_life_rows=2_000)
    plain = MlpClassifierConfig(names, half_life_rows=2_000, memory_rows=options.memory_rows, steps=options.steps)
    with tempfile.TemporaryDirectory() as folder:
        save_learner(FeatureSelector(options) if masked else MlpClassifier(plain), folder)
        learner = LearningModel(folder)
        predict = learner.signature(SERVING_SIGNATURE)
        selected = set(range(FEATURES))
        right, masks, started = [], [], time.perf_counter()
        for at in range(0, len(data.y), WINDOW_ROWS):
            columns = [pa.array(column) for column in data.x[at : at + WINDOW_ROWS].T]
            batch = pa.RecordBatch.from_arrays([*columns, pa.array(data.y[at : at + WINDOW_ROWS])], names=[*names, "label"])
            given = predict(**{name: to_numpy(batch, name, "float32", ()) for name in names})
            right.append(given["prediction"].numpy() == data.y[at : at + WINDOW_ROWS])
            events = learner.step(learner.tensors(batch)).events
            for event in [] if events is None else events.to_pylist():
                place = int(event["feature"][1:])
                selected = selected | {place} if event["kind"] == "selected" else selected - {place}
            masks.append(selected)
        seconds = time.perf_counter() - started
    at_end, behind = masks[data.change // WINDOW_ROWS - 1], masks[(data.change + WITHIN_ROWS) // WINDOW_ROWS - 1]
    return _result(data, np.concatenate(right), at_end if masked else None, behind if masked else None, seconds)


def river(data: Data, *, masked: bool) -> dict[str, Any]:
    """Logistic regression on standard units, behind SelectKBest by Pearson's correlation, which is told how many to select."""
    from river import compose, feature_selection, linear_model, preprocessing, stats

    select = feature_selection.SelectKBest(similarity=stats.PearsonCorr(), k=MATTER)
    steps = [preprocessing.StandardScaler(), *([select] if masked else []), linear_model.LogisticRegression()]
    model = compose.Pipeline(*steps)
    right, seconds = np.zeros(len(data.y), bool), 0.0
    chosen: list[set[int]] = []
    for place, (row, label) in enumerate(zip(data.x.tolist(), data.y.tolist(), strict=True)):
        record = dict(enumerate(row))
        started = time.perf_counter()
        right[place] = int(model.predict_one(record) or 0) == label
        model.learn_one(record, label)
        seconds += time.perf_counter() - started
        if masked and place + 1 in (data.change, data.change + WITHIN_ROWS):
            chosen.append({feature for feature, _ in select.leaderboard.most_common(MATTER)})
    return _result(data, right, *(chosen if masked else (None, None)), seconds)


def _result(
    data: Data, right: npt.NDArray[np.bool_], at_end: set[int] | None, behind: set[int] | None, seconds: float
) -> dict[str, Any]:
    figures = {"accuracy": float(right.mean()), "records_s": len(right) / seconds}
    figures["accuracy_late"] = float(right[data.change + WITHIN_ROWS :].mean())
    if at_end is not None and behind is not None:
        figures["precision_before"], figures["recall_before"] = found(at_end, data.before)
        figures["precision"], figures["recall"] = found(behind, data.after)
    return figures


CONTENDERS = {
    "Midstream": lambda data: midstream(data, masked=True),
    "Midstream, no mask": lambda data: midstream(data, masked=False),
    "River SelectKBest": lambda data: river(data, masked=True),
    "River, no mask": lambda data: river(data, masked=False),
}


@click.command()
@click.option("--short", is_flag=True, help="One seed instead of three; what `make bench` runs.")
@click.option("--rows", default=10_000, show_default=True, help="The change is half-way.")
@click.option("--only", multiple=True, help="Only these contenders.")
def main(short: bool, rows: int, only: tuple[str, ...]) -> None:
    """Measure, print a table, write bench/select_features.json and one line of JSON."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in SEEDS[:1] if short else SEEDS:
        data = make(seed, rows)
        for name, run in CONTENDERS.items():
            if not only or name in only:
                results.setdefault(name, []).append(run(data))
    means = {name: {key: float(np.mean([run[key] for run in runs])) for key in runs[0]} for name, runs in results.items()}
    table = Table(box=None, header_style="bold", pad_edge=False)
    headings = ("precision before", "recall before", "precision", "recall", "accuracy", "accuracy late", "records/s", "aim")
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, figures in means.items():
        cells = [figures.get(heading.replace(" ", "_").replace("records/s", "records_s")) for heading in headings[:-1]]
        shown = ["" if cell is None else f"{cell:,.0f}" if cell > 2 else f"{cell:.3f}" for cell in cells]
        table.add_row(name, *shown, _aim(means) if name == "Midstream" else "")
    Console(width=None if Console().is_terminal else 140).print(table)
    print(f"precision and recall {WITHIN_ROWS:,} records after the change; accuracy late: behind that")
    REPORT.write_text(json.dumps({"means": means, "runs": results}, indent=2) + "\n")
    print(json.dumps({"bench": "select_features", "means": means}))


def _aim(means: dict[str, dict[str, float]]) -> str:
    ours, plain = means["Midstream"], means.get("Midstream, no mask")
    good = ours["precision"] >= LEAST and ours["recall"] >= LEAST and (plain is None or ours["accuracy"] >= plain["accuracy"])
    return "reached" if good else "MISSED"


if __name__ == "__main__":
    main()
