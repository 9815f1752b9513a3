"""Weighs experts' estimates: decayed least squares over short and long times, and the best one by itself.

Weights start equal and are drawn to that. A sum over a long time is right where nothing changes, one over a short time soon
after a change; where a single expert was off clearly less than either lately, it speaks alone.

References:
    Breiman, "Stacked regressions", 1996. Herbster and Warmuth, "Tracking the best expert", 1998 (the best expert changes).
    Huber, "Robust estimation of a location parameter", 1964: rows far off count less.
"""

from __future__ import annotations

import tensorflow as tf

HALF_LIVES_ROWS = (300.0, 4000.0)  # of the weights of each sum
OFF_HALF_LIFE_ROWS = 300.0  # of how far off each one was
PRIOR_ROWS = 20.0  # pull of the equal weights
MARGIN = 1.2  # how many times an expert's mean square must be below that of the sums for it to speak alone
FAR = 3.0  # residuals, in standard deviations of the target, beyond which a row counts less


class Pool(tf.Module):
    """Of so many experts; targets and estimates are in standard deviations of the target."""

    def __init__(self, experts: int) -> None:
        super().__init__(name="pool")
        self._experts, self._sums = experts, len(HALF_LIVES_ROWS)
        self.weights = tf.Variable(tf.fill([self._sums, experts], 1.0 / experts), name="weights")
        self.moments = tf.Variable(tf.zeros((self._sums, experts, experts)), name="moments")  # of the experts, decayed
        self.products = tf.Variable(tf.zeros((self._sums, experts)), name="products")  # with the target, decayed
        # Decayed mean square of each sum, and of each expert.
        self.square = tf.Variable(tf.ones(self._sums + experts), name="square")

    def estimates(self, said: tf.Tensor) -> tf.Tensor:
        """(rows,) for what the experts said, (experts, rows)."""
        handicap = tf.constant([1.0] * self._sums + [MARGIN] * self._experts)
        best = tf.argmin(self.square * handicap)
        weights = tf.gather(tf.concat([self.weights, tf.eye(self._experts)], axis=0), best)
        return tf.linalg.matvec(said, weights, transpose_a=True)

    def learn(self, said: tf.Tensor, target: tf.Tensor, left: tf.Tensor) -> None:
        """Learns from what the experts said of (rows,) targets before they knew them.

        Args:
            said: (experts, rows).
            target: (rows,).
            left: (), the share of what was learnt before that still counts over short times, from 0 to 1.
        """
        rows = tf.cast(tf.shape(target)[0], tf.float32)
        newest_last = tf.range(rows - 1.0, -1.0, -1.0)
        each = tf.concat([tf.matmul(self.weights, said), said], axis=0)
        off = tf.minimum(tf.abs(each - target[None]), FAR)
        kept = 0.5 ** (1.0 / OFF_HALF_LIFE_ROWS)
        weight = kept**newest_last
        self.square.assign(left * kept**rows * self.square + (1.0 - kept) * tf.linalg.matvec(off**2, weight))
        shares = [left, *[tf.ones_like(left)] * (self._sums - 1)]
        learnt = [
            self._learnt(place, half_life, said, target, newest_last, share)
            for place, (half_life, share) in enumerate(zip(HALF_LIVES_ROWS, shares, strict=True))
        ]
        for variable, values in zip((self.weights, self.moments, self.products), zip(*learnt, strict=True), strict=True):
            variable.assign(tf.stack(values))

    def _learnt(
        self, place: int, half_life_rows: float, said: tf.Tensor, target: tf.Tensor, newest_last: tf.Tensor, left: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        kept = 0.5 ** (1.0 / half_life_rows)
        off = target - tf.linalg.matvec(said, self.weights[place], transpose_a=True)
        weight = kept**newest_last * FAR / tf.maximum(tf.abs(off), FAR)
        faded = left * kept ** tf.cast(tf.shape(target)[0], tf.float32)
        moments = faded * self.moments[place] + tf.matmul(said * weight, said, transpose_b=True)
        products = faded * self.products[place] + tf.linalg.matvec(said, weight * target)
        system = moments + PRIOR_ROWS * tf.eye(self._experts)
        wanted = products + PRIOR_ROWS / self._experts
        return tf.linalg.cholesky_solve(tf.linalg.cholesky(system), wanted[:, None])[:, 0], moments, products
