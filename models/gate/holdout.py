"""A candidate beside the live version on the same labelled rows.

Whole numbers and text are right or wrong: McNemar's exact test on the rows where exactly one of the two is right (Q. McNemar,
"Note on the sampling error of the difference between correlated proportions", Psychometrika 12, 1947), one-sided. Other numbers
have squared errors: a paired bootstrap of their mean difference, seeded.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from models.gate.config import GateConfig
from models.gate.result import CheckResult, passed, refused

NAME = "holdout"
BOOTSTRAPS = 2000  # enough for a p of 0.05 to be told from 0.04


class Paired(NamedTuple):
    """Two versions on the same rows."""

    rows: int
    candidate: float  # accuracy, or mean squared error
    live: float
    worse_by: float  # how much worse the candidate is: in accuracy, or relative in squared error; negative if it is better
    p_worse: float  # how probable a difference like this is by chance, were the candidate no worse
    p_better: float
    metric: str  # accuracy or squared_error


def compare(label: np.ndarray, candidate: np.ndarray, live: np.ndarray, seed: int) -> Paired:
    """Compares two versions' outputs with the labels.

    Args:
        label: shape (rows,).
        candidate: shape (rows,), its output.
        live: shape (rows,), the live version's.
        seed: of the bootstrap.
    """
    rows = len(label)
    if not np.issubdtype(candidate.dtype, np.floating):
        right, live_right = candidate == label, live == label
        only, live_only = int(np.sum(right & ~live_right)), int(np.sum(~right & live_right))
        ours, theirs = float(np.mean(right)), float(np.mean(live_right))
        return Paired(rows, ours, theirs, theirs - ours, mcnemar(live_only, only), mcnemar(only, live_only), "accuracy")
    target = label.astype(np.float64)
    errors, live_errors = (candidate - target) ** 2, (live - target) ** 2
    difference = errors - live_errors
    draw = np.random.default_rng(seed)
    means = np.array([difference[draw.integers(0, rows, rows)].mean() for _ in range(BOOTSTRAPS)])
    ours, theirs = float(errors.mean()), float(live_errors.mean())
    worse_by = (ours - theirs) / theirs if theirs else (0.0 if ours == theirs else math.inf)
    p_worse, p_better = float(np.mean(means <= 0)), float(np.mean(means >= 0))
    return Paired(rows, ours, theirs, worse_by, p_worse, p_better, "squared_error")


def mcnemar(against: int, in_favour: int) -> float:
    """One-sided exact p: so many or more of the rows that differ go against, were both sides equally probable."""
    discordant = against + in_favour
    if not discordant:
        return 1.0
    half = discordant * math.log(2)
    terms = [
        math.lgamma(discordant + 1) - math.lgamma(k + 1) - math.lgamma(discordant - k + 1) - half
        for k in range(against, discordant + 1)
    ]
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def check_holdout(paired: Paired, config: GateConfig) -> CheckResult:
    """Refuses a candidate that is worse than the live version by more than the tolerance, and not by chance."""
    figures = (
        f"{paired.metric.replace('_', ' ')} {paired.candidate:.4f} on {paired.rows:,} rows, the live version {paired.live:.4f}"
    )
    if paired.worse_by > config.tolerance and paired.p_worse < config.significance:
        return refused(
            NAME,
            f"{figures}: worse by {paired.worse_by:.4f}, tolerated are {config.tolerance:g} (p = {paired.p_worse:.2g}, refused "
            f"below {config.significance:g}). Train it further, or raise tolerance in gate.json if the loss is meant.",
            **paired._asdict(),
        )
    return passed(NAME, figures, **paired._asdict())
