"""What the report shows, measured from a job's output in windows of event time: sums per window, never rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.evaluated import Evaluations, read_evaluations
from pipelines.parts import Bools, Int64s, Parts
from pipelines.summary import VersionRuns, version_runs
from transforms.batches import EVENT_TIME, RESERVED, SEQUENCE

Floats = npt.NDArray[np.float64]

MAX_WINDOWS = 120  # as many points as a chart of a thousand pixels shows well
MIN_WINDOW_ROWS = 30  # below, the accuracy of a window would be mostly chance
BASELINE_SHARE = 0.05  # drift is measured against this first part of the stream
MAX_LABEL_ROWS = 6
SCORE_BINS = 40
OUTPUTS = ("prediction", "score")
FROZEN, BESIDE = "first_", "beside_"


@dataclass(frozen=True)
class Windows:
    """Windows of equal length. Times outside them belong to the first or the last."""

    start_us: int
    width_us: int
    count: int

    @property
    def edges_us(self) -> Int64s:
        """(count + 1,)"""
        return self.start_us + self.width_us * np.arange(self.count + 1)

    def of(self, times_us: Int64s) -> Int64s:
        """The window of each time."""
        return np.clip((times_us - self.start_us) // self.width_us, 0, self.count - 1)


@dataclass(frozen=True)
class Accuracy:
    """Evaluated records by window of their event time; all (windows,)."""

    evaluated: Int64s
    right: Int64s
    right_frozen: Int64s | None
    right_persistent: Int64s


@dataclass(frozen=True)
class Drift:
    """Means by window.

    Attributes:
        names: (rows,) what each row is.
        means: (rows, windows), NaN where there is none.
        shifts: (rows, windows), the means as standard deviations of the baseline away from its mean.
    """

    names: tuple[str, ...]
    means: Floats
    shifts: Floats


@dataclass(frozen=True)
class Scores:
    """How often the model's score fell into which bin: `edges` (bins + 1,), `rows` (windows, bins)."""

    edges: Floats
    rows: Int64s


@dataclass(frozen=True)
class Measured:
    """All that the charts and tables need.

    Attributes:
        rows: (windows,) predictions.
        cold: (windows,) those of the cold start.
        lowest: (windows,) lowest version that predicted in the window; meaningless where `rows` is 0.
        highest: (windows,) highest.
        runs: which version predicted when.
        version_rows: predictions by version.
        version_evaluated: evaluated records by version, and how many of them were right.
    """

    windows: Windows
    rows: Int64s
    cold: Int64s
    lowest: Int64s
    highest: Int64s
    runs: VersionRuns
    version_rows: dict[int, int]
    version_evaluated: dict[int, tuple[int, int]]
    accuracy: Accuracy | None
    drift: Drift
    scores: Scores | None


def measure(output: str, label: str | None) -> Measured | None:
    """Measures a job's output; None without predictions.

    Args:
        output: the job's output folder.
        label: name of the label column; None for a job without labels.

    Raises:
        ValueError: a file of the output lacks a column.
    """
    parts = Parts(output, "predictions")
    if not parts.rows:
        return None
    times_us, sequence, versions = parts.int64s(EVENT_TIME, SEQUENCE, "version")
    runs = version_runs(times_us, sequence, versions)
    del sequence
    counted = (Parts(output, "evaluations").rows if label is not None else 0) or parts.rows
    windows = _windows(times_us, int(np.clip(counted // MIN_WINDOW_ROWS, 1, MAX_WINDOWS)))
    baseline_rows = min(len(times_us), max(int(BASELINE_SHARE * len(times_us)), MIN_WINDOW_ROWS))
    baseline_until_us = int(np.partition(times_us, baseline_rows - 1)[baseline_rows - 1])
    place = windows.of(times_us)
    lowest, highest = np.full(windows.count, np.iinfo(np.int64).max), np.zeros(windows.count, np.int64)
    np.minimum.at(lowest, place, versions)
    np.maximum.at(highest, place, versions)
    rows = np.bincount(place, minlength=windows.count)
    cold = np.bincount(place[versions == 0], minlength=windows.count)
    del times_us, versions, place
    accuracy, version_evaluated = None, {}
    drift = _feature_drift(parts, _features(parts, label), windows, baseline_until_us)
    evaluations = read_evaluations(output, label)
    if evaluations is not None and len(evaluations.times_us):
        accuracy, version_evaluated = _accuracy(evaluations, windows), _right_by_version(evaluations)
        of_labels = _label_drift(evaluations, str(label), windows, baseline_until_us)
        drift = Drift(
            of_labels.names + drift.names,
            np.vstack([of_labels.means, drift.means]),
            np.vstack([of_labels.shifts, drift.shifts]),
        )
    served, inverse = np.unique(runs.versions, return_inverse=True)
    by_version = np.bincount(inverse, weights=runs.rows).astype(np.int64)
    version_rows = dict(zip(served.tolist(), by_version.tolist(), strict=True))
    scores = _scores(parts, windows) if accuracy is None else None
    return Measured(windows, rows, cold, lowest, highest, runs, version_rows, version_evaluated, accuracy, drift, scores)


def _windows(times_us: Int64s, count: int) -> Windows:
    """Windows over the stream. A few records with a time far off, as 1970, must not squeeze all others into one window."""
    ends = [0, len(times_us) // 1000, len(times_us) - 1 - len(times_us) // 1000, len(times_us) - 1]
    first, low, high, last = np.partition(times_us, ends)[ends].tolist()
    if last - first > 10 * (high - low) > 0:
        first, last = low, high
    return Windows(first, max((last - first) // count + 1, 1), count)


def _accuracy(evaluations: Evaluations, windows: Windows) -> Accuracy:
    place = windows.of(evaluations.times_us)

    def count(chosen: Bools) -> Int64s:
        return np.bincount(place[chosen], minlength=windows.count)

    frozen = None if evaluations.right_frozen is None else count(evaluations.right_frozen)
    evaluated = np.bincount(place, minlength=windows.count)
    return Accuracy(evaluated, count(evaluations.right), frozen, count(evaluations.right_persistent))


def _right_by_version(evaluations: Evaluations) -> dict[int, tuple[int, int]]:
    served, inverse = np.unique(evaluations.versions, return_inverse=True)
    evaluated, right = np.bincount(inverse), np.bincount(inverse[evaluations.right], minlength=len(served))
    return dict(zip(served.tolist(), zip(evaluated.tolist(), right.tolist(), strict=True), strict=True))


def _features(parts: Parts, label: str | None) -> list[str]:
    """The kept numeric columns: neither reserved nor what a model gave; lineage has no such numbers."""
    given = {*OUTPUTS}
    given |= {name.removeprefix(FROZEN) for name in parts.types if name.startswith(FROZEN)}
    given |= {name.removeprefix(BESIDE) for name in parts.types if name.startswith(BESIDE)}
    given |= {prefix + name for name in given for prefix in (FROZEN, BESIDE)}
    apart = {*RESERVED, *given, label}
    return [name for name, kind in parts.types.items() if name not in apart and pa.types.is_floating(kind)]


def _feature_drift(parts: Parts, names: list[str], windows: Windows, baseline_until_us: int) -> Drift:
    sums, counts = np.zeros((len(names), windows.count)), np.zeros((len(names), windows.count))
    # Rows, sum and sum of squares, of the baseline and of the whole stream. Values are taken relative to the first one that
    # came, as sums of squares of large numbers cancel.
    moments = np.zeros((len(names), 2, 3))
    origins = np.full(len(names), np.nan)
    for batch in parts.batches([EVENT_TIME, *names]) if names else ():
        times_us = batch.column(EVENT_TIME).cast(pa.int64()).to_numpy()
        place, early = windows.of(times_us), times_us <= baseline_until_us
        for number, column in enumerate(batch.columns[1:]):
            values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
            there = np.isfinite(values)
            if not there.any():
                continue
            if np.isnan(origins[number]):
                origins[number] = values[there][0]
            values = values[there] - origins[number]
            sums[number] += np.bincount(place[there], values, windows.count)
            counts[number] += np.bincount(place[there], minlength=windows.count)
            for held, some in zip(moments[number], (values[early[there]], values), strict=True):
                with np.errstate(over="ignore"):  # becomes infinite, and the row's shifts nothing
                    held += len(some), some.sum(), some @ some
    with np.errstate(all="ignore"):
        means = sums / counts
        middle = moments[:, :, 1] / moments[:, :, 0]
        spread = np.sqrt(np.maximum(moments[:, :, 2] / moments[:, :, 0] - middle**2, 0))
        return Drift(tuple(names), means + origins[:, None], _shifts(means, middle, spread))


def _label_drift(evaluations: Evaluations, label: str, windows: Windows, baseline_until_us: int) -> Drift:
    """The share of each class; of two classes one says it all: the greater, as 1 or true."""
    classes = list(range(len(evaluations.classes)))[:MAX_LABEL_ROWS]
    if len(evaluations.classes) == 2:
        classes = [max(classes, key=lambda code: evaluations.classes[code])]
    place, early = windows.of(evaluations.times_us), evaluations.times_us <= baseline_until_us
    counts = np.bincount(place, minlength=windows.count)
    with np.errstate(all="ignore"):
        means = np.array([np.bincount(place[evaluations.codes == code], minlength=windows.count) / counts for code in classes])
        middle = np.array(
            [[np.mean(codes == code) for codes in (evaluations.codes[early], evaluations.codes)] for code in classes]
        )
        spread = np.sqrt(middle * (1 - middle))
        names = tuple(f"{label} = {evaluations.classes[code]}" for code in classes)
        return Drift(names, means, _shifts(means, middle, spread))


def _shifts(means: Floats, middle: Floats, spread: Floats) -> Floats:
    """Standardised means. What did not vary at first is measured against its spread over the whole stream.

    Args:
        means: (rows, windows).
        middle: (rows, 2), mean of the baseline and of the whole stream.
        spread: (rows, 2), standard deviations of the same.
    """
    known = np.isfinite(middle[:, 0])
    start = np.where(known, middle[:, 0], middle[:, 1])
    # A thousandth: the spread of rounding errors must not pass for that of a feature.
    scale = np.where(known & (spread[:, 0] > 1e-3 * spread[:, 1]), spread[:, 0], spread[:, 1])
    moved = means - start[:, None]
    return np.where(scale[:, None] > 0, moved / scale[:, None], np.where(np.isnan(moved), np.nan, 0.0))


def _scores(parts: Parts, windows: Windows) -> Scores | None:
    name = "score"
    if name not in parts.types or not (pa.types.is_floating(parts.types[name]) or pa.types.is_integer(parts.types[name])):
        return None
    held = []
    for batch in parts.batches([EVENT_TIME, name]):
        values = batch.column(name).cast(pa.float32()).to_numpy(zero_copy_only=False)
        there = np.isfinite(values)
        place = windows.of(batch.column(EVENT_TIME).cast(pa.int64()).to_numpy()[there]).astype(np.int16)
        held.append((place, values[there]))
    low, high = (f([f(values, initial=start) for _, values in held]) for f, start in ((np.min, np.inf), (np.max, -np.inf)))
    if not np.isfinite(low):
        return None
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0  # a probability
    edges = np.linspace(low, high if high > low else low + 1.0, SCORE_BINS + 1)
    rows = np.zeros(windows.count * SCORE_BINS, np.int64)
    for places, values in held:
        bins = np.clip(np.searchsorted(edges, values, "right") - 1, 0, SCORE_BINS - 1)
        rows += np.bincount(places.astype(np.int64) * SCORE_BINS + bins, minlength=len(rows))
    return Scores(edges, rows.reshape(windows.count, SCORE_BINS))
