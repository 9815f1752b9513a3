"""`python -m bench.anomalies_altered`: the benchmark's series, altered as others' might be, with the same settings.

Settings chosen on eleven series may fit just those. What is altered here is nothing that a detector should depend on much: the
clock, the units, a little noise, how often a value is taken. The last line takes the threshold for each series from the others.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from bench import nab
from bench.anomalies import SERIES, detect, write_series

Change = Callable[[nab.Series], nab.Series]


def later(**by: int) -> Change:
    """Every row so much later by the clock."""

    def change(series: nab.Series) -> nab.Series:
        moments = [datetime.fromisoformat(text) + timedelta(**by) for text in series.timestamps]
        return replace(series, timestamps=[moment.isoformat(" ") for moment in moments])

    return change


def values(of: Callable[[nab.Floats], nab.Floats]) -> Change:
    return lambda series: replace(series, values=of(series.values))


def every_second(first: int) -> Change:
    """Every second row, from the first or the one after it on."""

    def change(series: nab.Series) -> nab.Series:
        windows = [((begin - first + 1) // 2, (end - first) // 2) for begin, end in series.windows]
        return nab.Series(series.name, series.timestamps[first::2], series.values[first::2], windows)

    return change


def noisy(x: nab.Floats) -> nab.Floats:
    return x + 0.1 * x.std() * np.random.default_rng(1).normal(size=len(x))


CHANGES: dict[str, Change] = {
    "as they are": values(lambda x: x),
    "11 hours later": later(hours=11),
    "3 days later": later(days=3),
    "times 1,000": values(lambda x: 1000 * x),
    "negated": values(lambda x: -x),
    "log(1 + x)": values(lambda x: np.log1p(x - x.min())),
    "noise, a tenth of the deviation": values(noisy),
    "even rows": every_second(0),
    "odd rows": every_second(1),
}


def scores(corpus: list[nab.Series]) -> dict[str, nab.Floats]:
    """From CSV files to CSV files, through the template."""
    folder = Path(tempfile.mkdtemp(prefix="midstream-altered-"))
    try:
        for series in corpus:
            write_series(folder / "in" / series.name, series.timestamps, {"value": series.values})
        detect(folder / "in", folder / "out")
        found = {}
        for series in corpus:
            with (folder / "out" / series.name).open(newline="") as file:
                found[series.name] = np.array([float(row["anomaly_score"]) for row in csv.DictReader(file)])
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def threshold_of_the_others(corpus: list[nab.Series], given: dict[str, nab.Floats]) -> float:
    """The score where each series has the threshold that is best for the ten others."""
    alarms = {}
    for series in corpus:
        others = nab.score_corpus([other for other in corpus if other is not series], given)
        alarms[series.name] = (given[series.name] >= others.threshold).astype(np.float64)
    return nab.score_corpus(corpus, alarms).score


def main() -> None:
    """Prints a line for each change, and a line of JSON."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow is imported later
    logging.disable(logging.WARNING)
    corpus, found = nab.read_corpus(SERIES), {}
    for name, change in CHANGES.items():
        altered = [change(series) for series in corpus]
        given = scores(altered)
        result = nab.score_corpus(altered, given)
        found[name] = round(result.score, 1)
        print(f"{name:32} {result.score:5.1f}  threshold {result.threshold:.3f}", flush=True)
        if name == "as they are":
            found["threshold of the others"] = round(threshold_of_the_others(corpus, given), 1)
    print(f"{'threshold of the others':32} {found['threshold of the others']:5.1f}")
    print(json.dumps({"bench": "anomalies_altered", "standard": found}))


if __name__ == "__main__":
    main()
