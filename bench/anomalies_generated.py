"""`python -m bench.anomalies_generated`: the benchmark's rule on generated series of all its kinds, see `bench.anomaly_family`.

The benchmark's own eleven series say little of kinds that are not among them. Beside the template stands a z-score over the
last 6,400 rows, which on the benchmark's 58 series is published at 39.6: so one sees how hard the generated ones are.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from bench import nab
from bench.anomalies import OURS, squashed
from bench.anomalies_altered import scores
from bench.anomaly_family import family

WINDOW_ROWS = 6400
Z_SCORE = f"z-score, {WINDOW_ROWS:,} rows"


def z_scores(series: nab.Series) -> nab.Floats:
    """How many deviations a value is off the mean of the values before it, from 0 to 1 in the same order."""
    x = series.values - series.values[0]
    row = np.arange(len(x))
    first, seen = np.maximum(row - WINDOW_ROWS, 0), np.clip(row, 1, WINDOW_ROWS)
    sums, squares = (np.concatenate([[0.0], np.cumsum(values)]) for values in (x, x * x))
    mean = (sums[row] - sums[first]) / seen
    variance = np.maximum((squares[row] - squares[first]) / seen - mean * mean, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return squashed(np.abs(x - mean) / np.sqrt(variance))


def by_group(corpus: list[nab.Series], given: Mapping[str, nab.Floats]) -> dict[str, float]:
    """The score of all, and what the series of each group with windows add to it at the same threshold."""
    result = nab.score_corpus(corpus, given)
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
    for name, raw in result.by_series.items():
        sums[name.partition("/")[0]] += raw
    parts = {
        name: 100 * (raw - silent) / (perfect - silent) for name, (raw, silent, perfect) in sums.items() if perfect > silent
    }
    return {"all": result.score} | parts


@click.command()
@click.option("--seeds", default="1,2,3", show_default=True, help="Of the families of 58 series.")
def main(seeds: str) -> None:
    """Prints a table: means over the seeds; and a line of JSON."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow is imported later
    logging.disable(logging.WARNING)
    found: dict[str, list[dict[str, float]]] = {OURS: [], Z_SCORE: []}
    for seed in map(int, seeds.split(",")):
        corpus = family(seed)
        found[OURS].append(by_group(corpus, scores(corpus)))
        found[Z_SCORE].append(by_group(corpus, {series.name: z_scores(series) for series in corpus}))
    means = {
        name: {group: round(float(np.mean([line[group] for line in lines])), 1) for group in lines[0]}
        for name, lines in found.items()
    }
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("58 generated series")
    for group in means[OURS]:
        table.add_column(group, justify="right")
    for name, line in means.items():
        table.add_row(name, *(f"{value:.1f}" for value in line.values()))
    Console(width=150).print(table)
    each = {name: [round(line["all"], 1) for line in lines] for name, lines in found.items()}
    print(json.dumps({"bench": "anomalies_generated", "seeds": seeds, "standard": means, "each": each}))


if __name__ == "__main__":
    main()
