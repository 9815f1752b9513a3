"""`python -m bench.classify`: accuracy and records/s of the template `classify`, beside River's classifiers.

Prequential accuracy: each record is predicted before its label is learnt, and labels come so many records late, for all alike.
Every record counts, those of the cold start as wrong. The same columns for all. The rate of the template is from the CSV file
to the last Parquet file in place, learning and publishing every version (imports and making the job ready are not counted);
that of the rivals is a bare loop over dicts that are there already.

`--context` hands the rivals, as columns, what the template's learner remembers of the last known label.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from river import dummy, ensemble, forest, linear_model, preprocessing, tree

from bench.classify_streams import CASES, stream

REPORT = Path(__file__).with_suffix(".json")
OURS, ARF = "midstream", "ARF(10)"
AIM_RATE = 20.0  # times the adaptive random forest's
SHORT_RECORDS = 10_000
RIVALS = {
    "no-change": dummy.NoChangeClassifier,
    "logistic": lambda: preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    "HAT": lambda: tree.HoeffdingAdaptiveTreeClassifier(seed=1),
    ARF: lambda: forest.ARFClassifier(n_models=10, seed=1),
    "LevBag(10)": lambda: ensemble.LeveragingBaggingClassifier(tree.HoeffdingTreeClassifier(), n_models=10, seed=1),
}


class Result(NamedTuple):
    """Accuracy, and records a second."""

    accuracy: float
    rate: float


def rival(name: str, data: pd.DataFrame, delay: int) -> Result:
    """Runs one of River's classifiers over the stream, with labels so many records late."""
    model: Any = RIVALS[name]()
    rows = data.drop(columns="y").to_dict("records")
    labels = data["y"].astype(bool).tolist()
    right, started = 0, time.perf_counter()
    for place, row in enumerate(rows):
        if place >= delay:
            model.learn_one(rows[place - delay], labels[place - delay])
        right += model.predict_one(row) == labels[place]
    return Result(right / len(rows), len(rows) / (time.perf_counter() - started))


def summary_of(template: str, data: pd.DataFrame, delay: int) -> dict[str, Any]:
    """Runs a template on the stream in a process of its own; gives the summary that it ends with."""
    with tempfile.TemporaryDirectory(prefix="midstream-bench-") as folder:
        data.to_csv(f"{folder}/in.csv", index=False)
        given = {"input": f"{folder}/in.csv", "label": "y", "label_delay": str(delay), "output": f"{folder}/out"}
        parameters = [text for name, value in given.items() for text in ("--param", f"{name}={value}")]
        command = [sys.executable, "-W", "ignore", "-m", "pipelines.cli", "run", template, *parameters]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(done.stderr[-3000:])
        summary: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return summary


def ours(data: pd.DataFrame, delay: int) -> Result:
    """Runs the template."""
    summary = summary_of("classify", data, delay)
    return Result(summary["accuracy"], summary["records_per_s"])


def with_context(data: pd.DataFrame, delay: int) -> pd.DataFrame:
    """The columns and what the template's learner is told of labels, as `transforms.label_context` does, for two classes."""
    known = np.arange(len(data)) - delay
    there, place = known >= 0, np.maximum(known, 0)
    columns = {"last": data["y"].to_numpy()[place] * there}
    for half_life in (4, 20):
        columns[f"rate_{half_life}"] = data["y"].ewm(halflife=half_life).mean().to_numpy()[place] * there
    features = data.drop(columns="y")
    steps = (features - features.to_numpy()[place]).mul(there, axis=0) / (features.std() + 1e-9)
    return data.assign(**columns, **{f"step_{name}": steps[name] for name in steps.columns})


@click.command()
@click.option("--short", is_flag=True, help=f"The first {SHORT_RECORDS:,} records of each stream: as `make bench` runs it.")
@click.option("--case", "only", multiple=True, help="Only these, as elec2:48.")
@click.option("--rival", "wanted", multiple=True, type=click.Choice([*RIVALS]), help="Only these; ARF(10) is always there.")
@click.option("--context", is_flag=True, help="Give the rivals what the learner remembers of labels as columns.")
def main(short: bool, only: tuple[str, ...], wanted: tuple[str, ...], context: bool) -> None:
    """Compare the template classify with River on streams with drift; write bench/classify.json."""
    console, lines = Console(width=150), []
    rivals = [name for name in RIVALS if not wanted or name in wanted or name == ARF]
    for name, delay in CASES:
        if only and f"{name}:{delay}" not in only:
            continue
        data = stream(name, SHORT_RECORDS if short else None)
        results = {OURS: ours(data, delay)}
        for each in rivals:
            results[each] = rival(each, with_context(data, delay) if context else data, delay)
        best = max(result.accuracy for each, result in results.items() if each != OURS)
        line = {
            "stream": name,
            "label_delay": delay,
            "records": len(data),
            "context": context,
            "beats_all": results[OURS].accuracy > best,
            "times_arf": round(results[OURS].rate / results[ARF].rate, 2),
            "results": {
                each: {"accuracy": round(r.accuracy, 4), "records_per_s": round(r.rate)} for each, r in results.items()
            },
            "load": round(os.getloadavg()[0], 1),
        }
        lines.append(line)
        print(json.dumps(line), flush=True)
    REPORT.write_text(json.dumps(lines, indent=2) + "\n")
    _show(console, lines, rivals)


def _show(console: Console, lines: list[dict[str, Any]], rivals: list[str]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("stream", "late", "records", OURS, *rivals, "beats all", f"times ARF (aim {AIM_RATE:g})"):
        table.add_column(heading, justify="left" if heading == "stream" else "right")
    for line in lines:
        cells = [f"{r['accuracy']:.4f} {r['records_per_s']:,}/s" for r in line["results"].values()]
        beats = "[green]yes" if line["beats_all"] else "[red]NO"
        shown = [line["stream"], str(line["label_delay"]), f"{line['records']:,}", *cells, beats, f"{line['times_arf']:g}"]
        table.add_row(*shown)
    console.print(table)


if __name__ == "__main__":
    main()
