"""The anomaly detector as a SavedModel: one pass over the rows of many series side by side, nothing looked at ahead.

A version holds the algorithm and its settings; what it knows of each series is a table of states, one row a key, which is
given to `step` and given back. So one version serves any number of keys, a swap to a version with the same settings' shapes
goes on with the same states, and scores stay comparable over it: they are probabilities, not distances.

`step` takes a block of keys and some rows of each. It is compiled (XLA), as its loop over rows does some hundred small
operations a row. Blocks have one of two shapes, for long series and for many keys with few rows each; both give the same bits
(a test sees to that), so a key's scores depend neither on which keys are beside it nor on how its rows were cut into calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from models.anomaly import mixtures, surprise, tails

KEYS, ROWS = 16, 1024  # of a block of long series
MANY_KEYS, FEW_ROWS = 256, 32  # of a block of short ones
SAME_STRENGTH = 1.1  # a surprise that is larger by less than this factor is no stronger
SCALE = 4.0  # of the score: 1 - 2 ** (-surprise / SCALE)
ODDS_UNIT = 2.0**-20  # so that the grid of the histogram reaches to a surprise of 13
LANES_POWER = 6.0  # of the mean over the lanes of a multivariate series


@dataclass(frozen=True)
class DetectorConfig:
    """Settings of a detector.

    Attributes:
        columns: numeric columns of the series, 1 or more.
        seed: of the projections.
        quiet_rows: a row counts in full above a bar, which sinks from the last such row's surprise to 0 over so many rows.
        repeated: of its surprise so much is left to a row below the bar.
    """

    columns: int = 1
    seed: int = 7
    quiet_rows: int = 200
    repeated: float = 0.1

    def __post_init__(self) -> None:
        if self.columns < 1:
            raise ValueError(f"columns: expected 1 or more, got {self.columns}")
        if self.quiet_rows < 0 or not 0.0 <= self.repeated <= 1.0:
            raise ValueError(
                f"expected quiet_rows of 0 or more and repeated from 0 to 1, got {self.quiet_rows} and {self.repeated}"
            )


class State(NamedTuple):
    """What is known of a block of keys."""

    rows: tf.Tensor  # (keys, 1) float64, rows scored so far
    weight: tf.Tensor  # (keys, 1) float64, in the lanes' histograms
    peak: tf.Tensor  # (keys, 1) float64, the surprise of the last row that counted in full
    age: tf.Tensor  # (keys, 1) float64, rows since then
    total: tf.Tensor  # (keys, 1, BINS + 1) float32, the histogram of the surprise as a whole, in odds
    inverse: tf.Tensor  # (keys, columns, columns) float64, inverse covariance; (keys, 0, 0) of a single column
    lanes: surprise.State


class Detector(tf.Module):
    """See the module's docstring."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__(name="anomaly_detector")
        self.config = config
        self._directions = mixtures.projections(config.columns, config.seed)

    def empty(self, keys: int = KEYS) -> State:
        """The states of keys that have seen nothing."""
        zeros = tf.zeros((keys, 1), tf.float64)
        several = self.config.columns if self.config.columns > 1 else 0
        return State(
            zeros,
            zeros,
            zeros,
            zeros,
            tails.empty((keys, 1)),
            mixtures.start(keys, several),
            surprise.empty(keys, mixtures.lanes(self.config.columns)),
        )

    def step(self, state: State, x: tf.Tensor, phase: tf.Tensor, kind: tf.Tensor, rows: tf.Tensor) -> tuple[State, Any]:
        """Scores and learns the next rows of each key of a block.

        Args:
            state: of the keys.
            x: (rows, keys, columns) float64, of one of the two shapes; a row with a value that is not finite is passed over.
            phase, kind: (rows, keys) int32.
            rows: () int32, rows that there are; what lies behind is passed over.

        Returns:
            The states after them; and (rows, keys, 3) float32: the score from 0 to 1, the p-value of the surprise among those
            before, and 1 if it counts in full beside those of the last rows, else 0: an alarm is a row with a small p-value
            that does. Rows that were passed over have NaN, NaN, 0.
        """
        most, keys = x.shape[:2]
        out = tf.TensorArray(tf.float64, size=most, element_shape=(keys, 3))
        flat = tf.nest.flatten(state)

        def body(
            place: tf.Tensor, held: list[tf.Tensor], out: tf.TensorArray
        ) -> tuple[tf.Tensor, list[tf.Tensor], tf.TensorArray]:
            before = tf.nest.pack_sequence_as(state, held)
            present = tf.reduce_all(tf.math.is_finite(x[place]), axis=-1, keepdims=True)
            after, given = self._row(before, tf.where(present, x[place], tf.zeros_like(x[place])), phase[place], kind[place])
            given = tf.where(present, given, tf.constant([float("nan"), float("nan"), 0.0], tf.float64))
            kept = [
                tf.where(tf.reshape(present, [keys] + [1] * (new.shape.rank - 1)), new, old)
                for new, old in zip(tf.nest.flatten(after), held, strict=True)
            ]
            return place + 1, kept, out.write(place, given)

        begin = (tf.constant(0), flat, out)
        _, flat, out = tf.while_loop(lambda place, *_: place < rows, body, begin, maximum_iterations=most)
        return tf.nest.pack_sequence_as(state, flat), tf.cast(out.stack(), tf.float32)

    def _row(self, state: State, x: tf.Tensor, phase: tf.Tensor, kind: tf.Tensor) -> tuple[State, tf.Tensor]:
        """One row of each key; returns the states after it and (keys, 3), see `step`."""
        inverse, lanes, columns = state.inverse, x, self.config.columns
        if columns > 1:
            known = state.rows > 0.0
            z = mixtures.standardised(x, state.lanes.level[:, :columns], state.lanes.spread[:, :columns])
            z = tf.where(known, z, tf.zeros_like(z))
            mixed, inverse = mixtures.mixed(z, inverse, self._directions)
            lanes = tf.concat([x, mixed], axis=-1)
        learnt, by_lane = surprise.step(state.lanes, state.rows, state.weight, lanes, phase, kind)
        found = by_lane
        if columns > 1:
            found = tf.reduce_mean(by_lane**LANES_POWER, axis=-1, keepdims=True) ** (1.0 / LANES_POWER)
        warm = state.rows >= surprise.WARM_UP_ROWS
        # A surprise is a logarithm; on the histogram's grid, and in its fitted tail, is what it is the logarithm of.
        odds = tf.math.expm1(found * math.log(10.0)) * ODDS_UNIT
        p = tails.p_value(state.total, state.weight, odds)
        age = state.age + 1.0
        bar = SAME_STRENGTH * state.peak * tf.maximum(1.0 - age / max(self.config.quiet_rows, 1), 0.0)
        fresh = found >= bar
        counted = tf.where(fresh, found, self.config.repeated * found)
        after = State(
            rows=state.rows + 1.0,
            weight=tf.where(warm, state.weight * surprise.kept() + 1.0, state.weight),
            peak=tf.where(fresh, found, state.peak),
            age=tf.where(fresh, tf.zeros_like(age), age),
            total=tf.where(warm[..., None], tails.observe(state.total, odds, surprise.kept()), state.total),
            inverse=inverse,
            lanes=learnt,
        )
        score = 1.0 - tf.pow(tf.constant(2.0, tf.float64), -counted / SCALE)
        return after, tf.concat([score, p, tf.cast(fresh, tf.float64)], axis=-1)
