"""Sees that a concept has changed from one label to the next, long before the next version would have been learnt.

The records bring what the online experts said of them (`transforms.label_context`). Where the expert that used to err least
suddenly errs far more often, what the versions have learnt is out of date, too.

References:
    Ross, Adams, Tasoulis and Hand, "Exponentially weighted moving average charts for detecting concept drift", Pattern
    Recognition Letters 33, 2012. Deviations: the mean error is decayed, the limit is fixed, several experts are watched at
    once, and the error of late may vary more than with independent labels: late ones bring errors in streaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from models.learners.experts.inputs import CONTEXT, KnownLabels
from models.learners.experts.standardiser import LARGEST_VALUE, SMALLEST_VARIANCE
from transforms.decayed import Doubles, decayed_sums
from transforms.grouping import class_codes

LATELY = 0.05  # weight of the newest label in the error of late
USUALLY_KEPT = 0.5 ** (1.0 / 1000.0)  # of the usual error from a label to the next
LEAST_LABELS = 200  # since the last alarm
DEVIATIONS = 4.5  # of the error of late above the usual one
LEAST_VARIANCE = 0.0625  # of a label's error; where errors are rare, a few in a row say little
LEAST_VARIANCE_OFF = 0.57  # of how far off a number is, as a share of its mean: that of a normal distribution
FARTHEST_OFF = 5.0  # times the usual: beyond it a single label would decide
FIRST_LABELS = 50  # whose error of late is not settled yet


class Jump(NamedTuple):
    """That errors jumped.

    Attributes:
        place: of the row at which that was seen.
        before: the share of errors as it was usual; of numbers how far off they were, on average.
        after: of late.
    """

    place: int
    before: float
    after: float


@dataclass(frozen=True)
class ErrorAlarm:
    """Looks through labelled rows, in order.

    Attributes:
        label: the label column.
        known: what the records' context holds.
        vocabulary: the labels by class; empty for integers from 0.
    """

    label: str
    known: KnownLabels
    vocabulary: tuple[str, ...] = ()

    def begin(self) -> Doubles:
        """The state before the first row: labels; and decayed sums, of late and as usual, of errors, ones and deviations; of
        numbers also of how far off they were."""
        return np.zeros(1 + (3 + self._numbers) * (self.known.online.experts + 1))

    @property
    def _numbers(self) -> bool:
        return not self.known.online.classes

    def first(self, rows: pa.Table, state: Doubles) -> tuple[Jump | None, Doubles]:
        """Looks for the first row at which it sounds.

        Args:
            rows: labelled rows with their context.
            state: behind the rows before.

        Returns:
            What it saw there, or None; and the state behind that row, or behind all.
        """
        sums, labels_before = state[1:], state[0]
        errors, unit, scales = self._errors(rows), None, np.zeros(0)
        if self._numbers:
            sums, scale = np.split(sums, [len(sums) * 3 // 4])
            errors, unit, scales = _in_usual_ones(errors, scale)
        usual, late, deviated = np.split(sums, 3)
        labels = labels_before + np.arange(1, len(errors) + 1)
        told = np.concatenate([errors, np.ones((len(errors), 1))], axis=1)
        usually, lately = decayed_sums(told, usual, USUALLY_KEPT), decayed_sums(told, late, 1.0 - LATELY)
        mean = usually[:, :-1] / usually[:, -1:]
        off = lately[:, :-1] / lately[:, -1:] - mean
        settled = (labels > FIRST_LABELS).astype(np.float64)[:, None]
        squares = decayed_sums(np.concatenate([off * off, np.ones_like(settled)], axis=1) * settled, deviated, USUALLY_KEPT)
        before = np.concatenate([deviated[None], squares[:-1]])
        least = LEAST_VARIANCE_OFF if self._numbers else np.maximum(mean * (1.0 - mean), LEAST_VARIANCE)
        variance = np.maximum(
            least * LATELY / (2.0 - LATELY),
            before[:, :-1] / np.maximum(before[:, -1:], 1.0),
        )
        best = np.argmin(mean if unit is None else unit, axis=1)[:, None]
        mean, off, variance = (np.take_along_axis(part, best, axis=1)[:, 0] for part in (mean, off, variance))
        found = np.flatnonzero((labels > LEAST_LABELS) & (off > DEVIATIONS * np.sqrt(variance)))
        if len(found):
            place = int(found[0])
            of_one = 1.0 if unit is None else float(unit[place, best[place, 0]])
            return Jump(place, float(mean[place]) * of_one, float(mean[place] + off[place]) * of_one), self.begin()
        return None, np.concatenate([labels[-1:], usually[-1], lately[-1], squares[-1], scales])

    def _errors(self, rows: pa.Table) -> Doubles:
        """(rows, experts): 1 where an expert was wrong, else 0; of numbers how far off it was."""
        known, online = self.known, self.known.online
        column: Any = rows.column(CONTEXT).combine_chunks()
        context = column.flatten().to_numpy().reshape(rows.num_rows, known.width)
        answers = context[:, known.labels : known.labels + known.answers].reshape(-1, online.experts, online.outputs)
        if self._numbers:
            truth = rows.column(self.label).cast(pa.float64()).to_numpy()
            # A label that learners take for none says nothing here, either.
            off = np.where(np.abs(truth) < LARGEST_VALUE, np.abs(answers[:, :, 0].T - truth), 0.0).T
            return np.nan_to_num(off, nan=0.0, posinf=LARGEST_VALUE)
        labels = class_codes(rows.column(self.label), self.vocabulary)
        said = answers[:, :, 0] > 0.0 if online.outputs == 1 else np.argmax(answers, axis=2)
        return (said != labels.to_numpy()[:, None]).astype(np.float64)


def _in_usual_ones(off: Doubles, before: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """How far off numbers were, (rows, experts), in units of how far they usually are; that unit at each row, from the rows
    before it; and the decayed sums behind the last row, for those before the first one."""
    sums = decayed_sums(np.concatenate([off, np.ones((len(off), 1))], axis=1), before, USUALLY_KEPT)
    earlier = np.concatenate([before[None], sums[:-1]])
    unit = earlier[:, :-1] / np.maximum(earlier[:, -1:], 1.0)
    return np.minimum(off / np.maximum(unit, SMALLEST_VARIANCE), FARTHEST_OFF), unit, sums[-1]
