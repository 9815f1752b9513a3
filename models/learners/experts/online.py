"""Linear experts that learn from every few labels, beside the versions: what they say of a record is part of its context.

A version is learnt from a window of labels and lags behind by up to one. These experts are cheap enough to take a step for
each block of some thirty labels: decayed Newton steps of a (multinomial) logistic regression, or decayed least squares where
the label is a number, for several half-lives: on the columns alone, with what is known of labels, and with lines that bend, so
that what is added up need not be linear. Versions find their answers in the record's context and weigh them like those of any
other expert.

NumPy and not TensorFlow: a block is a dozen operations on small matrices. Blocks begin at fixed places of the stream of labels
and have fixed sizes, and a record is answered by operations that do not mix rows: so the answers have the same bits however the
stream is cut.

References:
    Spiegelhalter and Lauritzen, "Sequential updating of conditional probabilities on directed graphical structures", 1990
    (recursive Laplace approximation). Plackett, "Some theorems in least squares", Biometrika 37, 1950.
    Bootkrajang and Kabán, "Label-noise robust logistic regression and its applications", ECML 2012 (labels that are blind).
    Deviations: one step a block; of more than two classes all share the largest of their curvatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from models.learners.experts.standardiser import LARGEST_DEVIATION, LARGEST_VALUE, SMALLEST_DEVIATION, SMALLEST_VARIANCE

Doubles: TypeAlias = npt.NDArray[np.float64]
State: TypeAlias = Mapping[str, Doubles]

HALF_LIVES_LABELS = (60.0, 1000.0, 5000.0)  # of each kind of expert
FIRST_BLOCK, BLOCK = 2, 32  # labels of a block: the first ones are smaller
STATISTICS_HALF_LIFE_LABELS = 10_000.0  # of the columns' means and deviations
MOST_STEPS = 64  # columns up to which the step from the last known record is looked at, too
KNOTS = (-1.0, 0.0, 1.0)  # in standard deviations: where the lines of the bent experts may bend
MOST_BENT = 24  # columns up to which lines are bent
MOST_OUTPUTS = 40  # answers a record; with more classes there are fewer experts
BLIND = 0.1  # probability that a label says nothing
DAMPING = 0.5  # labels' worth of curvature
SMALLEST_CURVATURE = 1e-3
FARTHEST_LOGIT = 30.0
FAR = 3.0  # residuals, in standard deviations of the label, beyond which a label counts less
PIECE_BLOCKS = 128  # whose weights are in memory at once


class Rows(NamedTuple):
    """Records as the experts want them, double.

    Attributes:
        x: (rows, width) the columns, NaN for a missing value.
        labels: (rows, k) what is known of labels.
        then: (rows, width) the columns of the last record whose label is known.
    """

    x: Doubles
    labels: Doubles
    then: Doubles

    def part(self, start: int, stop: int | None = None) -> Rows:
        return Rows(*(column[start:stop] for column in self))


@dataclass(frozen=True)
class OnlineExperts:
    """See the module's docstring.

    Attributes:
        width: columns of a record.
        labels: columns of what is known of labels.
        classes: number of classes; 0 for labels that are numbers.
    """

    width: int
    labels: int
    classes: int

    @property
    def outputs(self) -> int:
        """What an expert answers: log-odds of class 1, of more than two classes those of each; or an estimate."""
        return self.classes if self.classes > 2 else 1

    @property
    def _sets(self) -> tuple[int, tuple[float, ...]]:
        """How many kinds of expert there are, and the half-lives of each: fewer where their answers would be too many."""
        kinds = 3 if self.width <= MOST_BENT else 2
        if kinds * len(HALF_LIVES_LABELS) * self.outputs <= MOST_OUTPUTS:
            return kinds, HALF_LIVES_LABELS
        return 2, HALF_LIVES_LABELS[:2] if 4 * self.outputs <= MOST_OUTPUTS else HALF_LIVES_LABELS[1:2]

    @property
    def experts(self) -> int:
        kinds, half_lives = self._sets
        return kinds * len(half_lives)

    @property
    def _bent(self) -> int:
        """Columns of the lines that bend."""
        return self.width * len(KNOTS) if self._sets[0] == 3 else 0

    @property
    def _columns(self) -> int:
        return self.width + self.labels + (self.width if self.width <= MOST_STEPS else 0) + 1 + self._bent

    @property
    def block(self) -> int:
        """Labels of a block; a solution costs the cube of the columns, so it is sought more seldom where there are many."""
        return max(BLOCK, self._columns)

    def begin(self) -> dict[str, Doubles]:
        """The state before the first label; arrays of float64."""
        columns = self._columns
        return {
            "seen": np.zeros(1),  # labels that were learnt
            "sums": np.zeros((3, self.width + 1)),  # decayed count, sum and sum of squares: of the columns, and of the label
            "weights": np.zeros((self.experts, columns, self.outputs)),
            "curvature": np.zeros((self.experts, columns, columns)),
            "rows": np.zeros((0, 2 * self.width + self.labels)),  # of the block that is not complete
            "targets": np.zeros(0),
        }

    def advance(
        self, state: State, learnt: Rows, targets: Doubles, asked: Rows, known: npt.NDArray[np.int64]
    ) -> tuple[dict[str, Doubles], Doubles]:
        """Learns labels, and answers records by the labels that were known to each.

        Args:
            state: what the last call gave.
            learnt: the records of the new labels, in the order in which these became known.
            targets: (labels,) their classes, a negative one for none of them; or numbers.
            asked: records to answer.
            known: (records,) how many of the new labels each knows; never falls.

        Returns:
            The new state; and (records, experts * outputs) float64.
        """
        new = dict(state)
        rest = len(new["targets"])
        learnt, asked = _usable(learnt), _usable(asked)
        rows = np.concatenate([new["rows"], np.concatenate(learnt, axis=1)])
        targets = np.concatenate([new["targets"], targets])
        answers = np.zeros((len(known), self.experts * self.outputs))
        known, answered, start = known + rest, 0, 0
        while True:
            stages, ends = [self._stage(new)], [start]
            while len(stages) <= PIECE_BLOCKS and start + (size := self._size(int(new["seen"][0]))) <= len(rows):
                block = rows[start : start + size]
                self._learn(new, Rows(*np.split(block, self._cuts, axis=1)), targets[start : start + size])
                start += size
                stages.append(self._stage(new))
                ends.append(start)
            complete = len(stages) <= PIECE_BLOCKS
            stop = len(known) if complete else int(np.searchsorted(known, start))
            stage = np.searchsorted(ends, known[answered:stop], side="right") - 1
            answers[answered:stop] = self._answers(stages, stage, asked.part(answered, stop))
            answered = stop
            if complete:
                break
        # Copies: a view would keep all rows of this call in memory.
        new["rows"], new["targets"] = rows[start:].copy(), targets[start:].copy()
        return new, answers

    @property
    def _cuts(self) -> list[int]:
        return [self.width, self.width + self.labels]

    def _size(self, seen: int) -> int:
        """Labels of the block that begins after so many: as many as before it, from `FIRST_BLOCK` up to `block`."""
        return min(max(FIRST_BLOCK, seen), self.block)

    def _scales(self, sums: Doubles) -> tuple[Doubles, Doubles]:
        """Mean and reciprocal deviation of each column and of the label; 0 for what is constant."""
        count = np.maximum(sums[0], SMALLEST_VARIANCE)
        mean = sums[1] / count
        variance = sums[2] / count - mean * mean
        smallest = np.maximum((SMALLEST_DEVIATION * mean) ** 2, SMALLEST_VARIANCE)
        return mean, np.where(variance > smallest, 1.0 / np.sqrt(np.maximum(variance, smallest)), 0.0)

    def _stage(self, state: State) -> tuple[Doubles, ...]:
        return (*self._scales(state["sums"]), state["weights"])

    def _encoded(self, rows: Rows, mean: Doubles, scale: Doubles) -> Doubles:
        """(rows, columns) in standard deviations, with an intercept; mean and scale are the same for all, or each row's own."""
        z = np.nan_to_num(_clipped((rows.x - mean[..., :-1]) * scale[..., :-1]))
        parts = [z, rows.labels if self.classes else _clipped((rows.labels - mean[..., -1:]) * scale[..., -1:])]
        if self.width <= MOST_STEPS:
            parts.append(np.nan_to_num(_clipped(z - _clipped((rows.then - mean[..., :-1]) * scale[..., :-1]))))
        bent = [np.maximum(z - knot, 0.0) for knot in KNOTS] if self._bent else []
        return np.concatenate([*parts, np.ones((len(z), 1)), *bent], axis=1)

    def _masks(self) -> Doubles:
        """(experts, 1, columns): the first kind sees the columns, the second what is known of labels, too, the third all."""
        kinds, half_lives = self._sets
        intercept = self._columns - self._bent - 1
        masks = np.ones((kinds, len(half_lives), 1, self._columns))
        masks[0, :, :, self.width : intercept] = 0.0
        masks[:2, :, :, intercept + 1 :] = 0.0
        return masks.reshape(-1, 1, self._columns)

    def _learn(self, state: dict[str, Doubles], rows: Rows, targets: Doubles) -> None:
        size = len(targets)
        known = np.concatenate([rows.x, targets[:, None]], axis=1)
        usable = np.abs(known) < LARGEST_VALUE
        values = np.where(usable, known, 0.0)
        kept = 0.5 ** (size / STATISTICS_HALF_LIFE_LABELS)
        new = np.stack([usable.sum(axis=0), values.sum(axis=0), (values * values).sum(axis=0)])
        state["sums"] = state["sums"] * kept + new
        mean, scale = self._scales(state["sums"])
        masks, weight, faded, damping = _constants(self, size)
        x = self._encoded(rows, mean, scale)[None] * masks
        if self.classes:
            slope, bend = self._of_classes(x @ state["weights"], targets)
        else:
            off = x @ state["weights"] - np.where(usable[:, -1], (targets - mean[-1]) * scale[-1], 0.0)[:, None]
            bend = FAR / np.maximum(np.abs(off[..., 0]), FAR) * usable[:, -1]
            slope = off * bend[..., None]
        curvature = state["curvature"] * faded
        state["curvature"] = curvature + np.swapaxes(x * (bend * weight)[..., None], 1, 2) @ x
        uphill = np.swapaxes(x, 1, 2) @ (slope * weight[..., None])
        state["weights"] = state["weights"] - np.linalg.solve(state["curvature"] + damping, uphill)
        state["seen"] = state["seen"] + size

    def _of_classes(self, odds: Doubles, targets: Doubles) -> tuple[Doubles, Doubles]:
        """Gradient (experts, rows, outputs) and curvature (experts, rows) of the loss at these log-odds."""
        if self.outputs == 1:
            p = 1.0 / (1.0 + np.exp(-np.clip(odds, -FARTHEST_LOGIT, FARTHEST_LOGIT)))
            hot, rate = (targets == 1)[:, None], 1.0
            of_label = np.where(hot, p, 1.0 - p)[..., 0]
        else:
            p = np.exp(odds - odds.max(axis=2, keepdims=True))
            p = p / p.sum(axis=2, keepdims=True)
            hot, rate = targets[:, None] == np.arange(self.classes), (self.classes - 1.0) / self.classes
            of_label = (p * hot).sum(axis=2)
        # A label that contradicts the model strongly counts little: it may be blind. One that is no class not at all.
        seeing = (1.0 - BLIND) * of_label
        seeing = seeing / (seeing + BLIND / self.classes) * (targets >= 0)
        bend = np.maximum((p * (1.0 - p)).max(axis=2), SMALLEST_CURVATURE) * seeing
        return (p - hot) * seeing[..., None] * rate, bend

    def _answers(self, stages: list[tuple[Doubles, ...]], stage: npt.NDArray[np.int64], asked: Rows) -> Doubles:
        """(records, experts * outputs); column by column, so that no row's bits depend on the rows beside it."""
        mean, scale, weights = (np.stack(column) for column in zip(*stages, strict=True))
        x = self._encoded(asked, mean[stage], scale[stage])
        by_column = np.ascontiguousarray(np.moveaxis(weights, 2, 0))  # (columns, stages, experts, outputs)
        answers = np.zeros((len(stage), self.experts, self.outputs))
        for column, own in enumerate(by_column):
            answers += x[:, column, None, None] * own[stage]
        if not self.classes:
            deviation = np.divide(1.0, scale[stage, -1], out=np.zeros(len(stage)), where=scale[stage, -1] > 0)
            answers = mean[stage, -1, None, None] + deviation[:, None, None] * answers
        elif self.outputs > 1:
            answers -= answers.mean(axis=2, keepdims=True)
        return answers.reshape(len(stage), -1)


@lru_cache(maxsize=256)
def _constants(experts: OnlineExperts, size: int) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    """Of a block of so many labels: the masks, each label's weight, what is left of the curvature, and the damping."""
    kinds, half_lives = experts._sets
    each = np.tile(half_lives, kinds)[:, None]
    weight = 0.5 ** (np.arange(size - 1, -1, -1) / each)
    return experts._masks(), weight, 0.5 ** (size / each)[:, :, None], DAMPING * np.eye(experts._columns)


def _clipped(z: Doubles) -> Doubles:
    return np.clip(z, -LARGEST_DEVIATION, LARGEST_DEVIATION)


def _usable(rows: Rows) -> Rows:
    """NaN for values that are none or too large."""
    return Rows(*(np.where(np.abs(column) < LARGEST_VALUE, column, np.nan) for column in rows))
