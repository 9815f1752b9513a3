"""When a version that serves, or stands beside one that serves, is promoted or taken back: stated rules on paired evidence.

Both versions predicted the same rows. With labels the rule is a paired test (`models.gate.holdout`): worse by more than the
tolerance, and improbably by chance, is taken back; better, and improbably by chance, is promoted. Before labels come, a
version is
taken back for NaN that the other does not give, for scores that are distributed otherwise, and for being slow.

The evidence is looked at again and again as rows come, so a single test's significance would be reached by chance sooner or
later;
hence the small default. (Sequential tests would say how small; this is a rule, not a proof.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from models.gate.holdout import Paired, compare

Role: TypeAlias = Literal["live", "canary", "shadow"]
Action: TypeAlias = Literal["wait", "rollback", "promote"]


@dataclass(frozen=True)
class Rules:
    """What is tolerated, and what is asked of a challenger.

    Attributes:
        min_rows: so many pairs at least before anything is decided.
        window_rows: the latest pairs count, so many at the most.
        tolerance: see `GateConfig`.
        significance: of being worse, and of being better.
        promote: whether a challenger that is better is made live.
        max_nan_rate: how much more often than the other it may give NaN or infinity.
        max_score_shift: how far the two distributions of scores may be apart (Kolmogorov-Smirnov, 0 to 1).
        max_latency_ratio: how much slower than the other it may be.
        seed: of the bootstrap, for outputs that are numbers.
    """

    min_rows: int = 300
    window_rows: int = 2000
    tolerance: float = 0.0
    significance: float = 0.001
    promote: bool = True
    max_nan_rate: float = 0.0
    max_score_shift: float = 0.5
    max_latency_ratio: float = 10.0
    seed: int = 7


class Unlabelled(NamedTuple):
    """What can be told before labels: of the version in question and of the other, on the same rows."""

    rows: int
    nan_rate: float
    other_nan_rate: float
    score_shift: float | None  # None without a number among the outputs
    latency_ratio: float | None  # None where it was not measured


class Decision(NamedTuple):
    """What to do about the version in question, why, and on which evidence."""

    action: Action
    reason: str
    evidence: dict[str, Any]


def unlabelled(scores: np.ndarray | None, other: np.ndarray | None, rows: int, latency_ratio: float | None) -> Unlabelled:
    """Compares two versions' scores for the same rows.

    Args:
        scores: float, shape (rows,), of the version in question; None where it gives none.
        other: float, shape (rows,).
        rows: how many.
        latency_ratio: time a row, against the other's.
    """
    if scores is None or other is None or not rows:
        return Unlabelled(rows, 0.0, 0.0, None, latency_ratio)
    finite, other_finite = np.isfinite(scores), np.isfinite(other)
    shift = kolmogorov_smirnov(scores[finite], other[other_finite]) if finite.any() and other_finite.any() else None
    return Unlabelled(rows, 1 - float(finite.mean()), 1 - float(other_finite.mean()), shift, latency_ratio)


def kolmogorov_smirnov(left: np.ndarray, right: np.ndarray) -> float:
    """The largest distance between two empirical distribution functions, from 0 to 1."""
    both = np.concatenate([left, right])
    counts = (np.searchsorted(np.sort(side), both, side="right") / len(side) for side in (left, right))
    return float(np.max(np.abs(next(counts) - next(counts))))


def decide(role: Role, labelled: Paired | None, before: Unlabelled | None, rules: Rules) -> Decision:
    """Applies the rules to the version in question.

    Args:
        role: what it is: the live version beside the one before it, a canary or a shadow beside the live one.
        labelled: with labels; `candidate` is the version in question.
        before: without.
        rules: to apply.
    """
    evidence = {
        "role": role,
        **(labelled._asdict() if labelled else {}),
        **({f"unlabelled_{k}": v for k, v in before._asdict().items()} if before else {}),
    }
    if before is not None and before.rows >= rules.min_rows:
        if before.nan_rate > before.other_nan_rate + rules.max_nan_rate:
            why = f"{before.nan_rate:.2%} of {before.rows:,} scores NaN or infinite, {before.other_nan_rate:.2%} of the other's"
            return Decision("rollback", why, evidence)
        if before.score_shift is not None and before.score_shift > rules.max_score_shift:
            why = f"scores shifted by {before.score_shift:.3f} on {before.rows:,} rows, tolerated {rules.max_score_shift:g}"
            return Decision("rollback", why, evidence)
        if before.latency_ratio is not None and before.latency_ratio > rules.max_latency_ratio:
            why = f"{before.latency_ratio:.1f} times as slow as the other, tolerated {rules.max_latency_ratio:g}"
            return Decision("rollback", why, evidence)
    if labelled is None or labelled.rows < rules.min_rows:
        return Decision("wait", "too few rows yet", evidence)
    figures = (
        f"{labelled.metric.replace('_', ' ')} {labelled.candidate:.4f} against {labelled.live:.4f} on {labelled.rows:,} rows"
    )
    if labelled.worse_by > rules.tolerance and labelled.p_worse < rules.significance:
        return Decision("rollback", f"{figures}, worse with p = {labelled.p_worse:.2g}", evidence)
    if role != "live" and rules.promote and labelled.worse_by < 0 and labelled.p_better < rules.significance:
        return Decision("promote", f"{figures}, better with p = {labelled.p_better:.2g}", evidence)
    return Decision("wait", figures, evidence)


def paired(label: np.ndarray, ours: np.ndarray, other: np.ndarray, rules: Rules) -> Paired | None:
    """The labelled evidence; None without a row."""
    return compare(label, ours, other, rules.seed) if len(label) else None
