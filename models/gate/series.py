"""How a detector of anomalies behaves, whose signature takes and gives the states of series (`models.anomaly.saved`)."""

from __future__ import annotations

import numpy as np

from models.anomaly.detector import KEYS, ROWS
from models.anomaly.saved import Step
from models.gate.result import CheckResult, passed, refused

SCORES = "scores"
_JUMP, _AT = 40.0, 900  # deviations, and the row at which a made-up series leaves its band


def check_scores(path: str, columns: int, seed: int = 7) -> CheckResult:
    """Scores made-up series, one of which jumps.

    Scores and p-values are from 0 to 1, a row without a value has none, the states that come out can go in again, the same
    rows give the same bits in one piece or in two, and the jump is told from the rest.

    Args:
        path: the detector's folder.
        columns: of the series.
        seed: of the series.

    Raises:
        ValueError, tf.errors.OpError: the graph does not take such series.
    """
    step = Step(path)
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(ROWS, KEYS, columns))
    x[_AT, 0] += _JUMP
    x[100, 1] = np.nan
    phase = np.repeat(np.arange(ROWS, dtype=np.int32)[:, None] % 288, KEYS, axis=1)
    kind = np.zeros((ROWS, KEYS), np.int32)
    begin = [np.repeat(leaf, KEYS, axis=0) for leaf in step.empty]
    states, scores = step(begin, x, phase, kind, ROWS)
    forms = [[(leaf.shape, leaf.dtype) for leaf in leaves] for leaves in (begin, states)]
    if forms[0] != forms[1]:
        return refused(SCORES, "the states that come out have another form than those that go in, so no row could follow")
    given = np.delete(scores[:, :, :2].reshape(-1, 2), 100 * KEYS + 1, axis=0)
    if outside := int((~((given >= 0.0) & (given <= 1.0))).any(axis=1).sum()):
        return refused(
            SCORES,
            f"{outside:,} of {len(given):,} rows have a score or a p-value that is not from 0 to 1. Look for a division or a "
            "logarithm without a guard.",
            outside=outside,
        )
    if not np.isnan(scores[100, 1, 0]):
        return refused(SCORES, "a row without a value was given a score; expected NaN, and a state that stays as it was")
    half = ROWS // 2
    ahead, first = step(begin, x, phase, kind, half)
    later = (np.roll(part, -half, axis=0) for part in (x, phase, kind))
    ends, second = step(ahead, next(later), next(later), next(later), ROWS - half)
    pieces = np.concatenate([first[:half], second[: ROWS - half]])
    if pieces.tobytes() != scores.tobytes() or any(a.tobytes() != b.tobytes() for a, b in zip(ends, states, strict=True)):
        return refused(SCORES, "rows that come in two pieces get other scores than in one. Let the states be all that is kept.")
    jump, others = float(scores[_AT, 0, 0]), scores[half:, 2:, 0]
    if not jump > np.quantile(others, 0.99):
        return refused(
            SCORES,
            f"a row {_JUMP:g} deviations away has the score {jump:.3f}, and one in a hundred ordinary rows has "
            f"{np.quantile(others, 0.99):.3f} or more: it tells nothing apart",
            jump=jump,
        )
    return passed(SCORES, f"from 0 to 1, the same in pieces; {jump:.2f} for a jump", jump=jump)
