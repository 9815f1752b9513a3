"""How good clusters are that were found in a stream, against those that were there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Quality:
    """How a stream was clustered.

    Attributes:
        ari: mean over the windows of the adjusted Rand index. Rows that are noise in truth are left out; those that were given
            no cluster count as one of their own.
        count_within_one: share of the windows in which as many clusters were found as there are, give or take one.
        stable: share of all records whose cluster has the one id that was given to it, each id to one cluster at the most.
    """

    ari: float
    count_within_one: float
    stable: float


def measure(truth: Labels, found: Labels, window_rows: int = 500) -> Quality:
    """Compares, in windows of rows.

    Args:
        truth: (rows,) labels, below 0 for noise.
        found: (rows,) ids, below 0 for none.
        window_rows: length of a window.
    """
    real = truth >= 0
    windows = range(0, len(truth), window_rows)
    pairs = [(truth[w : w + window_rows], found[w : w + window_rows], real[w : w + window_rows]) for w in windows]
    ari = [adjusted_rand_index(t[r], f[r]) for t, f, r in pairs if r.any()]
    differences = [len(np.unique(f[f >= 0])) - len(np.unique(t[r])) for t, f, r in pairs if r.any()]
    table = contingency(truth[real], found[real])
    ids = np.unique(found[real]) >= 0
    table = table[:, ids]
    rows, columns = linear_sum_assignment(table, maximize=True)
    stable = float(table[rows, columns].sum() / real.sum())
    return Quality(float(np.mean(ari)), float(np.mean(np.abs(differences) <= 1)), stable)


def contingency(first: Labels, second: Labels) -> npt.NDArray[np.int64]:
    """How many rows have which pair of labels, both in ascending order."""
    ours, one = np.unique(first, return_inverse=True)
    theirs, other = np.unique(second, return_inverse=True)
    return np.bincount(one * len(theirs) + other, minlength=len(ours) * len(theirs)).reshape(len(ours), len(theirs))


def adjusted_rand_index(first: Labels, second: Labels) -> float:
    """1 for the same partition, about 0 for one by chance (Hubert and Arabie, "Comparing partitions", 1985)."""
    table = contingency(first, second).astype(np.float64)
    both, one, other = (float(np.sum(n * (n - 1)) / 2) for n in (table, table.sum(axis=1), table.sum(axis=0)))
    total = float(table.sum() * (table.sum() - 1) / 2)
    if total == 0.0:
        return 1.0
    chance = one * other / total
    highest = (one + other) / 2
    return 1.0 if highest == chance else (both - chance) / (highest - chance)
