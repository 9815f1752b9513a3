"""Linear regression by decayed least squares, for several half-lives at once.

References:
    Plackett, "Some theorems in least squares", Biometrika 37, 1950 (recursive least squares).
    Huber, "Robust estimation of a location parameter", 1964: rows far off count less.
"""

from __future__ import annotations

import tensorflow as tf

RIDGE = 0.5  # rows' worth
FAR = 3.0  # residuals, in standard deviations of the target, beyond which a row counts less


class LinearExperts(tf.Module):
    """One regression for each half-life; the target is in standard deviations."""

    def __init__(self, width: int, half_lives_rows: tuple[float, ...], name: str) -> None:
        super().__init__(name=name)
        self.experts = len(half_lives_rows)
        self._kept = tf.constant([0.5 ** (1.0 / rows) for rows in half_lives_rows], tf.float32)
        # A weight for each column, and the last one the intercept.
        self.weights = tf.Variable(tf.zeros((self.experts, width + 1)), name="weights")
        self.curvature = tf.Variable(tf.zeros((self.experts, width + 1, width + 1)), name="curvature")

    def estimates(self, x: tf.Tensor) -> tf.Tensor:
        """(experts, rows) for (rows, width)."""
        return tf.matmul(self.weights[:, :-1], x, transpose_b=True) + self.weights[:, -1:]

    def learn(self, x: tf.Tensor, target: tf.Tensor, left: tf.Tensor) -> None:
        """Learns from (rows, width) with their (rows,) targets, in order.

        Args:
            x: (rows, width).
            target: (rows,).
            left: (), from 0 to 1: the share that still counts of what the first expert learnt before; the others keep all.
        """
        rows = tf.cast(tf.shape(x)[0], tf.float32)
        off = target - self.estimates(x)
        x = tf.concat([x, tf.ones_like(x[:, :1])], axis=1)
        weight = self._kept[:, None] ** tf.range(rows - 1.0, -1.0, -1.0)[None]
        weight = weight * FAR / tf.maximum(tf.abs(off), FAR)
        weighed = tf.reshape(tf.transpose(x) * weight[:, None, :], (-1, tf.shape(x)[0]))
        left = tf.concat([tf.reshape(left, [1]), tf.ones(self.experts - 1)], axis=0)
        before = self.curvature * (left * self._kept**rows)[:, None, None]
        curvature = before + tf.reshape(tf.matmul(weighed, x), tf.shape(before))
        pull = tf.matmul(weight * off, x)[..., None]
        ridge = RIDGE * tf.eye(int(self.weights.shape[1]))
        self.weights.assign_add(tf.linalg.cholesky_solve(tf.linalg.cholesky(curvature + ridge), pull)[..., 0])
        self.curvature.assign(curvature)
