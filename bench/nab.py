"""The scoring rule of the Numenta Anomaly Benchmark, written from its description.

A detector gives every row of a labelled series a score from 0 to 1. Rows at or above a threshold are alarms. The first alarm
in a labelled window earns up to 1, more the earlier it comes; every alarm outside costs, less when it follows a window
closely; a window without an alarm costs. One threshold holds for the whole corpus, and is the one that is best for it. 100 is
a detector that alarms on the first row of every window and nowhere else, 0 one that never does.

Reference:
    Lavin and Ahmad, "Evaluating Real-time Anomaly Detection Algorithms: the Numenta Anomaly Benchmark", ICMLA 2015; the
    weights and the corner cases (the end of the probationary period, what lies past a window) as in version 1.1 of its
    scorer.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PROBATION_SHARE = 0.15  # of a series is for learning, and not scored,
PROBATION_ROWS = 750  # but never more than this: 0.15 of 5,000
FAR_PAST_WINDOW = 3.0  # so many window lengths past a window an alarm costs in full


class Profile(NamedTuple):
    """What a detection in a window earns, what an alarm outside costs, and what a window without one costs."""

    hit: float
    false_alarm: float
    miss: float


PROFILES = {
    "standard": Profile(1.0, 0.11, 1.0),
    "low FP": Profile(1.0, 0.22, 1.0),
    "low FN": Profile(1.0, 0.11, 2.0),
}


@dataclass(frozen=True)
class Series:
    """A labelled series.

    Attributes:
        name: `group/file.csv`.
        timestamps: as the file writes them.
        values: (rows,).
        windows: first and last row of each labelled window, in order.
    """

    name: str
    timestamps: list[str]
    values: Floats
    windows: list[tuple[int, int]]


class Result(NamedTuple):
    """How a detector did on a corpus under one profile.

    Attributes:
        score: normalised; 100 is perfect, 0 is silence.
        threshold: that gave it.
        by_series: what each series added to the raw score, and the raw score of silence and of perfection there.
        hits: windows with an alarm.
        false_alarms: alarms outside windows.
    """

    score: float
    threshold: float
    by_series: dict[str, tuple[float, float, float]]
    hits: int
    false_alarms: int


class _Rows(NamedTuple):
    """The rows of one series that count: the scaled sigmoid of each, and the number of its window or -1."""

    gain: Floats
    window: npt.NDArray[np.int64]
    counts: npt.NDArray[np.bool_]


def read_corpus(folder: Path) -> list[Series]:
    """Reads `group__file.csv.gz` files and the `windows.json` beside them."""
    labels = json.loads((folder / "windows.json").read_text())
    corpus = []
    for name, limits in sorted(labels.items()):
        rows = read_rows((folder / (name.replace("/", "__") + ".gz")).read_bytes())
        corpus.append(labelled(name, [row[0] for row in rows], [float(row[1]) for row in rows], limits))
    return corpus


def read_rows(compressed: bytes) -> list[list[str]]:
    """The rows of a gzipped CSV without its header."""
    return list(csv.reader(io.StringIO(gzip.decompress(compressed).decode())))[1:]


def labelled(name: str, timestamps: list[str], values: Sequence[float], limits: Sequence[Sequence[str]]) -> Series:
    """A series whose windows are given by the timestamps of their first and last row."""
    times = [datetime.fromisoformat(text) for text in timestamps]
    windows = [
        (times.index(datetime.fromisoformat(first)), times.index(datetime.fromisoformat(last))) for first, last in limits
    ]
    return Series(name, timestamps, np.asarray(values, np.float64), windows)


def probation_rows(rows: int) -> int:
    """How many rows at the start of a series are not scored."""
    return min(int(PROBATION_SHARE * rows), PROBATION_ROWS)


def scaled_sigmoid(position: Floats) -> Floats:
    """From nearly 1 at -1 (the start of a window) over 0 at 0 (just past its end) to -1 far behind it."""
    return np.where(position >= FAR_PAST_WINDOW, -1.0, 2.0 / (1.0 + np.exp(5.0 * np.minimum(position, FAR_PAST_WINDOW))) - 1.0)


def _rows(series: Series) -> _Rows:
    rows = len(series.values)
    index = np.arange(rows)
    window = np.full(rows, -1)
    position = np.full(rows, FAR_PAST_WINDOW)  # an alarm before the first window costs in full
    for number, (first, last) in enumerate(series.windows):
        length = last - first + 1
        behind = index > last
        # A window of one row has no length to measure the distance by.
        position[behind] = (index[behind] - last) / (length - 1) if length > 1 else FAR_PAST_WINDOW
        inside = (index >= first) & (index <= last)
        window[inside] = number
        position[inside] = (index[inside] - last - 1) / length
    gain = scaled_sigmoid(position)
    gain[window >= 0] /= scaled_sigmoid(np.array(-1.0))
    return _Rows(gain, window, index >= probation_rows(rows))


def score_corpus(corpus: Sequence[Series], scores: Mapping[str, Floats], profile: Profile = PROFILES["standard"]) -> Result:
    """Scores a detector at the threshold that is best for the corpus.

    Args:
        corpus: the series.
        scores: by name of the series, a score from 0 to 1 for each row.
        profile: the weights.

    Raises:
        ValueError: a series has no scores, too few of them, or some that are not between 0 and 1.
    """
    parts = [_rows(series) for series in corpus]
    for series in corpus:
        given = scores.get(series.name)
        if given is None or len(given) != len(series.values) or not np.all((given >= 0) & (given <= 1)):
            raise ValueError(f"{series.name}: expected {len(series.values)} scores from 0 to 1, got {given}")
    windows, gain, window, score = 0, [], [], []
    for series, part in zip(corpus, parts, strict=True):
        counts = part.counts
        gain.append(part.gain[counts])
        window.append(np.where(part.window < 0, -1, part.window + windows)[counts])
        score.append(np.asarray(scores[series.name], np.float64)[counts])
        # A window that lies in the probationary period as a whole is not scored.
        windows += len(series.windows)
    threshold, _ = _best(np.concatenate(score), np.concatenate(gain), np.concatenate(window), profile)
    by_series, hits, false_alarms = {}, 0, 0
    for series, part in zip(corpus, parts, strict=True):
        alarms = (np.asarray(scores[series.name]) >= threshold) & part.counts
        outside = alarms & (part.window < 0)
        scored = np.unique(part.window[(part.window >= 0) & part.counts])
        raw = profile.false_alarm * float(part.gain[outside].sum())
        for number in scored:
            found = part.gain[alarms & (part.window == number)]
            raw += profile.hit * float(found.max()) if len(found) else -profile.miss
            hits += len(found) > 0
        by_series[series.name] = (raw, -profile.miss * len(scored), profile.hit * len(scored))
        false_alarms += int(outside.sum())
    raw, silent, perfect = (sum(column) for column in zip(*by_series.values(), strict=True))
    return Result(100.0 * (raw - silent) / (perfect - silent), threshold, by_series, hits, false_alarms)


def _best(score: Floats, gain: Floats, window: npt.NDArray[np.int64], profile: Profile) -> tuple[float, float]:
    """The threshold with the highest raw score, and how much that is above silence."""
    order = np.argsort(-score, kind="stable")
    score, gain, window = score[order], gain[order], window[order]
    change = np.where(window < 0, profile.false_alarm * gain, 0.0)
    for number in np.unique(window[window >= 0]):
        rows = np.flatnonzero(window == number)
        best = np.maximum.accumulate(np.maximum(profile.hit * gain[rows], -profile.miss))
        change[rows] = np.diff(best, prepend=-profile.miss)
    total = np.cumsum(change)
    last = np.append(score[1:] != score[:-1], True)  # rows with the same score are alarms together
    best = int(np.argmax(np.where(last, total, -np.inf)))
    return (float(score[best]), float(total[best])) if total[best] > 0 else (1.1, 0.0)
