"""Weighs experts by how they did lately: a decayed logistic regression on their log-odds, and the best one by itself.

Log-odds add up where experts know different things, and a weight below zero may extrapolate a drift that a fast learner sees
sooner than a slow one. Weights start equal. Where a single expert was right clearly more often lately than the weighted sum,
it decides alone.

References:
    Wolpert, "Stacked generalization", 1992. Genest and Zidek, "Combining probability distributions", 1986 (logarithmic pool).
    Herbster and Warmuth, "Tracking the best expert", 1998 (the best expert changes).
"""

from __future__ import annotations

import tensorflow as tf

BLIND = 0.1  # share of every probability that is spread evenly: nobody is so sure that he cannot be outvoted
HALF_LIVES_ROWS = (300.0, 2000.0)  # of the weights of each sum
RIGHT_HALF_LIFE_ROWS = 2000.0  # of the counts of who was right
MARGIN_ROWS = 15.0  # that an expert must have been right more often than the better of the weighted sums
PRIOR_ROWS = 20.0  # pull of the equal weights
NEWTON_STEPS = 2


def log_odds(probabilities: tf.Tensor) -> tf.Tensor:
    """(experts, rows, classes) log-probabilities, their mean over the classes taken off."""
    classes = int(probabilities.shape[2])
    logs = tf.math.log(probabilities * (1.0 - BLIND) + BLIND / classes)
    return logs - tf.reduce_mean(logs, axis=2, keepdims=True)


class Stacking(tf.Module):
    """Weights of the experts, and who was right how often."""

    def __init__(self, experts: int) -> None:
        super().__init__(name="stacking")
        self._experts, self._sums = experts, len(HALF_LIVES_ROWS)
        self.weights = tf.Variable(tf.fill([self._sums, experts], 1.0 / experts), name="weights")
        self.curvature = tf.Variable(tf.zeros((self._sums, experts, experts)), name="curvature")
        self.right = tf.Variable(tf.zeros(experts + self._sums), name="right")  # decayed counts; the last ones are the sums'

    def probabilities(self, odds: tf.Tensor) -> tf.Tensor:
        """(rows, classes) of the sum or of the expert that was right most often, for (experts, rows, classes)."""
        ahead = self.right + tf.constant([0.0] * self._experts + [MARGIN_ROWS] * self._sums)
        best = tf.argmax(ahead)
        weights = tf.gather(tf.concat([tf.eye(self._experts), self.weights], axis=0), best)
        return tf.nn.softmax(_weighted(weights, odds))

    def learn(self, odds: tf.Tensor, targets: tf.Tensor) -> None:
        """Learns from what the experts said of (rows, classes) labels before they knew them."""
        rows = tf.cast(tf.shape(targets)[0], tf.float32)
        self._count(odds, targets, 0.5 ** (rows / RIGHT_HALF_LIFE_ROWS))
        learnt = [self._learnt(place, half_life, odds, targets, rows) for place, half_life in enumerate(HALF_LIVES_ROWS)]
        weights, curvatures = zip(*learnt, strict=True)
        self.weights.assign(tf.stack(weights))
        self.curvature.assign(tf.stack(curvatures))

    def _learnt(
        self, place: int, half_life_rows: float, odds: tf.Tensor, targets: tf.Tensor, rows: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        kept = 0.5 ** (1.0 / half_life_rows)
        weight = kept ** tf.range(rows - 1.0, -1.0, -1.0)
        before, start, equal = self.curvature[place] * kept**rows, self.weights[place], 1.0 / self._experts
        now, curvature = start, before
        ridge = PRIOR_ROWS * tf.eye(self._experts)
        for _ in range(NEWTON_STEPS):
            p = tf.nn.softmax(_weighted(now, odds))
            slope = tf.reduce_sum(odds * ((p - targets) * weight[:, None]), axis=(1, 2))
            spread = tf.reshape(odds * tf.sqrt(p * weight[:, None]), (self._experts, -1))
            mean = tf.reduce_sum(odds * p, axis=2) * tf.sqrt(weight)
            curvature = before + tf.matmul(spread, spread, transpose_b=True) - tf.matmul(mean, mean, transpose_b=True)
            uphill = slope + tf.linalg.matvec(before, now - start) + PRIOR_ROWS * (now - equal)
            now = now - tf.linalg.cholesky_solve(tf.linalg.cholesky(curvature + ridge), uphill[:, None])[:, 0]
        return now, curvature

    def _count(self, odds: tf.Tensor, targets: tf.Tensor, kept: tf.Tensor) -> None:
        sums = [_weighted(self.weights[place], odds)[None] for place in range(self._sums)]
        said = tf.concat([odds, *sums], axis=0)
        labels = tf.argmax(targets, axis=1)
        right = tf.reduce_sum(tf.cast(tf.argmax(said, axis=2) == labels, tf.float32), axis=1)
        self.right.assign(kept * self.right + right)


def _weighted(weights: tf.Tensor, odds: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(weights[:, None, None] * odds, axis=0)
