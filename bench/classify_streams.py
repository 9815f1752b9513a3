"""The streams of `bench.classify`: Elec2, and River's generators with drift, seeds stated.

SEA, hyperplane, RBF and Agrawal have 100,000 records; a drift is every 25,000 records, or all the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from river.datasets import synth

from pipelines.template import FOLDER

RECORDS = 100_000
PART = RECORDS // 4
ELEC2 = FOLDER.parent / "data" / "elec2.csv.gz"
# Name of the stream and how many records late its labels are.
CASES = (("elec2", 1), ("elec2", 48), ("elec2", 336), ("sea", 1), ("hyperplane", 1), ("rbf", 1), ("agrawal", 1))


def stream(name: str, records: int | None = None) -> pd.DataFrame:
    """The columns `f0` ... and the label `y` of the stream, or of its beginning."""
    if name == "elec2":
        data = pd.read_csv(ELEC2).drop(columns="time").head(records or RECORDS)
        columns = [name for name in data.columns if name != "class"]
        return data.rename(columns={old: f"f{place}" for place, old in enumerate(columns)} | {"class": "y"})
    return _frame(_generator(name), records or RECORDS)


def _generator(name: str) -> Iterable[Any]:
    if name == "sea":
        return _drifting([synth.SEA(variant=v, noise=0.1, seed=v + 1) for v in (0, 1, 2, 3)], width=200)
    if name == "agrawal":
        return _drifting([synth.Agrawal(classification_function=f, seed=i + 1) for i, f in enumerate((0, 3, 6, 8))], width=1000)
    if name == "hyperplane":
        return synth.Hyperplane(seed=1, n_features=10, n_drift_features=2, mag_change=0.001, noise_percentage=0.05, sigma=0.1)
    assert name == "rbf", name
    return synth.RandomRBFDrift(
        seed_model=1, seed_sample=1, n_classes=2, n_features=10, n_centroids=50, change_speed=0.0001, n_drift_centroids=50
    )


def _drifting(parts: list[Any], width: int) -> Any:
    """One stream after the other, with a transition of this width."""

    def after(later: Any, numbered: tuple[int, Any]) -> Any:
        seed, earlier = numbered
        return synth.ConceptDriftStream(stream=earlier, drift_stream=later, position=PART, width=width, seed=seed)

    *first, last = parts
    return reduce(after, zip((5, 6, 7), reversed(first), strict=True), last)


def _frame(generator: Iterable[Any], records: int) -> pd.DataFrame:
    rows, labels = [], []
    for features, label in islice(iter(generator), records):
        rows.append(list(features.values()))
        labels.append(int(label))
    data = pd.DataFrame(np.array(rows, np.float64), columns=[f"f{place}" for place in range(len(rows[0]))])
    return data.assign(y=labels)
