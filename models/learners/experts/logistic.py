"""Logistic regression by decayed Newton steps, with labels that may be wrong.

Several half-lives learn side by side, so that whoever weighs them can choose how fast to forget. Each keeps the curvature of
the rows so far, decayed, and a window moves it from where it stands: a recursive Laplace approximation.

A label is taken to be drawn blindly with probability `BLIND`. Rows that contradict the model strongly then count little
(their gradient is scaled by the probability that their label is *not* blind), and the boundary stays sharp where labels are
noisy.

References:
    Spiegelhalter and Lauritzen, "Sequential updating of conditional probabilities on directed graphical structures", 1990
    (recursive Laplace approximation).
    Bootkrajang and Kabán, "Label-noise robust logistic regression and its applications", ECML 2012 (the likelihood).
    Deviations: the curvature is block-diagonal over classes, and a step is (classes - 1) / classes of Newton's for that; the
    noise rate is fixed.
"""

from __future__ import annotations

import tensorflow as tf

BLIND = 0.1
NEWTON_STEPS = 2  # a window; the first starts from where the last window ended
SMALLEST_CURVATURE = 1e-3  # of a row that the model is sure of, so that it still anchors the weights
DAMPING = 0.5  # rows' worth of curvature; also what the weights start with


class LogisticExperts(tf.Module):
    """One multinomial logistic regression for each half-life."""

    def __init__(self, width: int, classes: int, half_lives_rows: tuple[float, ...], name: str) -> None:
        super().__init__(name=name)
        self.experts, self._classes = len(half_lives_rows), classes
        self._kept = tf.constant([0.5 ** (1.0 / rows) for rows in half_lives_rows], tf.float32)
        # A weight for each column, and the last one the intercept.
        self.weights = tf.Variable(tf.zeros((self.experts, width + 1, classes)), name="weights")
        # Of two classes the curvatures are the same.
        self._curvatures = 1 if classes == 2 else classes
        shape = (self.experts, self._curvatures, width + 1, width + 1)
        self.curvature = tf.Variable(tf.zeros(shape), name="curvature")

    def log_odds(self, x: tf.Tensor) -> tf.Tensor:
        """(experts, rows, classes) for (rows, width)."""
        return self._times(x, self.weights[:, :-1]) + self.weights[:, -1:]

    def learn(self, x: tf.Tensor, targets: tf.Tensor) -> None:
        """Learns from (rows, width) with their (rows, classes) one-hot labels, in order."""
        rows = tf.cast(tf.shape(x)[0], tf.float32)
        x = tf.concat([x, tf.ones_like(x[:, :1])], axis=1)
        weight = self._kept[:, None] ** tf.range(rows - 1.0, -1.0, -1.0)[None]
        before = self.curvature * (self._kept**rows)[:, None, None, None]
        start = tf.identity(self.weights)
        now, curvature = start, before
        ridge = DAMPING * tf.eye(int(self.weights.shape[1]))
        for _ in range(NEWTON_STEPS):
            p = tf.nn.softmax(self._times(x, now))
            of_label = (1.0 - BLIND) * tf.reduce_sum(p * targets, axis=2)
            seeing = (weight * of_label / (of_label + BLIND / self._classes))[:, :, None]
            slope = self._times(tf.transpose(x), (p - targets) * seeing)
            bend = tf.transpose(self._bend(p) * seeing, (0, 2, 1))
            weighed = tf.reshape(tf.transpose(x) * bend[:, :, None, :], (-1, tf.shape(x)[0]))
            curvature = before + tf.reshape(tf.matmul(weighed, x), tf.shape(before))
            # As columns, (experts, curvatures, width + 1, classes that share a curvature): solves without broadcasting.
            uphill = self._in_columns(slope) + tf.matmul(before, self._in_columns(now - start))
            step = tf.linalg.cholesky_solve(tf.linalg.cholesky(curvature + ridge), uphill)
            step = step[:, 0] if self._curvatures == 1 else tf.transpose(step[..., 0], (0, 2, 1))
            now = now - step * ((self._classes - 1.0) / self._classes)
        self.curvature.assign(curvature)
        self.weights.assign(now)

    def _times(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """left (n, m) times each of right (experts, m, classes), as one plain product.

        Batched products with broadcasting corrupt memory in TensorFlow 2.21 with oneDNN, where a batch dimension is 1.
        """
        side_by_side = tf.reshape(tf.transpose(right, (1, 0, 2)), (-1, self.experts * self._classes))
        product = tf.reshape(tf.matmul(left, side_by_side), (-1, self.experts, self._classes))
        return tf.transpose(product, (1, 0, 2))

    def _bend(self, p: tf.Tensor) -> tf.Tensor:
        """The curvature of each row, (experts, rows, curvatures)."""
        p = p[:, :, : self._curvatures]
        return tf.maximum(p * (1.0 - p), SMALLEST_CURVATURE)

    def _in_columns(self, weights: tf.Tensor) -> tf.Tensor:
        """(experts, width + 1, classes) with the classes that share a curvature side by side."""
        return weights[:, None] if self._curvatures == 1 else tf.transpose(weights, (0, 2, 1))[..., None]
