"""`python -m bench.regress`: root mean square error and records/s of the template `regress`, beside River's regressions.

Prequential: each record is estimated before its label is learnt, and labels come so many records late, for all alike. The first
records, before `regress` has a version, count for nobody. Rates as in `bench.classify`.
"""

from __future__ import annotations

import json
import os
import time
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from river import forest, linear_model, preprocessing, tree
from river.datasets import synth

from bench.classify import summary_of
from transforms.learning_windows import FIRST_ROWS

REPORT = Path(__file__).with_suffix(".json")
OURS = "midstream"
RECORDS, SHORT_RECORDS = 20_000, 2_000
SEED = 1
RIVALS = {
    "linear": lambda: preprocessing.StandardScaler() | linear_model.LinearRegression(),
    "HAT": lambda: tree.HoeffdingAdaptiveTreeRegressor(seed=1),
    "ARF(10)": lambda: forest.ARFRegressor(n_models=10, seed=1),
}
# Name of the stream and how many records late its labels are.
CASES = (
    ("friedman", 1),
    ("friedman, global abrupt drift", 1),
    ("friedman, global abrupt drift", 100),
    ("friedman, slow gradual drift", 1),
    ("planes", 1),
    ("planes, abrupt drift", 1),
    ("lines, abrupt drift", 1),
    ("no drift, errors that depend on each other", 1),
    ("no drift, errors that depend on each other", 100),
)


class Result(NamedTuple):
    """Root mean square error, and records a second."""

    rmse: float
    rate: float


def stream(name: str, records: int) -> pd.DataFrame:
    """The columns `f0` ... and the label `y`; abrupt drifts are at a quarter, a half and three quarters, Friedman's at a third
    and two thirds."""
    rng = np.random.default_rng(SEED)
    quarters = np.split(np.arange(records), [records // 4, records // 2, records * 3 // 4])
    kind, _, drift = name.partition(", ")
    if kind == "friedman":
        thirds = (records // 3, records * 2 // 3)
        generators = {
            "": lambda: synth.Friedman(seed=SEED),
            "global abrupt drift": lambda: synth.FriedmanDrift("gra", thirds, seed=SEED),
            "slow gradual drift": lambda: synth.FriedmanDrift("gsg", thirds, transition_window=records // 10, seed=SEED),
        }
        return _frame(*_taken(generators[drift](), records))
    if kind == "planes":
        x, y = _taken(synth.Planes2D(seed=SEED), records)
        for quarter in quarters[1:] if drift else []:
            x[quarter] = x[quarter][:, rng.permutation(x.shape[1])]
        return _frame(x, y)
    x = rng.normal(size=(records, 6))
    if kind == "lines":
        y = 0.5 * rng.normal(size=records)
        for quarter in quarters:
            y[quarter] += x[quarter] @ rng.normal(size=6) * 2.0 + 3.0 * rng.normal()
        return _frame(x, y)
    assert kind == "no drift", name
    errors = pd.Series(rng.normal(size=records)).ewm(alpha=0.02, adjust=False).mean() * 10.0
    return _frame(x, x @ rng.normal(size=6) + errors.to_numpy())


def rival(name: str, data: pd.DataFrame, delay: int) -> Result:
    """Runs one of River's regressions over the stream, with labels so many records late."""
    model: Any = RIVALS[name]()
    rows = data.drop(columns="y").to_dict("records")
    labels = data["y"].tolist()
    squares, started = 0.0, time.perf_counter()
    first = delay + FIRST_ROWS
    for place, row in enumerate(rows):
        if place >= delay:
            model.learn_one(rows[place - delay], labels[place - delay])
        said = model.predict_one(row)
        squares += (said - labels[place]) ** 2 if place >= first else 0.0
    rate = len(rows) / (time.perf_counter() - started)
    return Result(float(np.sqrt(squares / max(len(rows) - first, 1))), rate)


def _taken(generator: Any, records: int) -> tuple[np.ndarray, np.ndarray]:
    rows = list(islice(iter(generator), records))
    return np.array([list(x.values()) for x, _ in rows], np.float64), np.array([y for _, y in rows])


def _frame(x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(x, columns=[f"f{place}" for place in range(x.shape[1])]).assign(y=y)


@click.command()
@click.option("--short", is_flag=True, help=f"{SHORT_RECORDS:,} records of each stream: as `make bench` runs it.")
@click.option("--case", "only", multiple=True, help="Only these, as planes:1.")
@click.option("--rival", "wanted", multiple=True, type=click.Choice([*RIVALS]), help="Only these; all if left out.")
def main(short: bool, only: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """Compare the template regress with River on streams with and without drift; write bench/regress.json."""
    lines = []
    rivals = [name for name in RIVALS if not wanted or name in wanted]
    for name, delay in CASES:
        if only and f"{name}:{delay}" not in only:
            continue
        data = stream(name, SHORT_RECORDS if short else RECORDS)
        summary = summary_of("regress", data, delay)
        results = {OURS: Result(summary["rmse"], summary["records_per_s"])}
        results |= {each: rival(each, data, delay) for each in rivals}
        line = {
            "stream": name,
            "label_delay": delay,
            "records": len(data),
            "beats_all": results[OURS].rmse < min(result.rmse for each, result in results.items() if each != OURS),
            "results": {each: {"rmse": round(r.rmse, 4), "records_per_s": round(r.rate)} for each, r in results.items()},
            "load": round(os.getloadavg()[0], 1),
        }
        lines.append(line)
        print(json.dumps(line), flush=True)
    REPORT.write_text(json.dumps(lines, indent=2) + "\n")
    _show(lines, rivals)


def _show(lines: list[dict[str, Any]], rivals: list[str]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("stream", "late", "records", OURS, *rivals, "beats all"):
        table.add_column(heading, justify="left" if heading == "stream" else "right")
    for line in lines:
        cells = [f"{r['rmse']:.3f} {r['records_per_s']:,}/s" for r in line["results"].values()]
        beats = "[green]yes" if line["beats_all"] else "[red]NO"
        table.add_row(line["stream"], str(line["label_delay"]), f"{line['records']:,}", *cells, beats)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
