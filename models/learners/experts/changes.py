"""Tells a learner that what it knew does not hold any more, by how far off it was at the end of a window.

Where the errors of the last few rows are far above the usual ones, what was learnt before should count little: so experts that
are quick to learn anew forget, beside others that do not, and whoever weighs them decides.

References:
    Gama et al., "A survey on concept drift adaptation", ACM Computing Surveys 46, 2014, section 3.2 (abrupt forgetting).
    Roberts, "Control chart tests based on geometric moving averages", Technometrics 1, 1959 (the error of late).
"""

from __future__ import annotations

import tensorflow as tf

LATELY_KEPT = 0.9  # of the error of late from a row to the next
USUAL_ROWS = 500.0  # that the usual error is of
CHANGED = 2.0  # times the usual error
LEFT = 0.02  # share of what was learnt before that still counts then
FAR = 3.0  # errors, in standard deviations of the target, that count as this


class Changes(tf.Module):
    """Follows the errors of a regression."""

    def __init__(self) -> None:
        super().__init__(name="changes")
        self.usual = tf.Variable(1.0, name="usual")  # decayed mean of how far off it was, in standard deviations of the target

    def left(self, off: tf.Tensor) -> tf.Tensor:
        """How much of what was learnt before a window still counts, a scalar: 1 or `LEFT`.

        Args:
            off: (rows,) how far off each row was before it was learnt.
        """
        rows = tf.cast(tf.size(off), tf.float32)
        size = tf.minimum(tf.abs(off), FAR)
        weight = LATELY_KEPT ** tf.range(rows - 1.0, -1.0, -1.0)
        changed = tf.reduce_sum(weight * size) > CHANGED * self.usual * tf.reduce_sum(weight)
        share = rows / (rows + USUAL_ROWS)
        # What is new now is not what is usual.
        self.usual.assign(tf.where(changed, self.usual, (1.0 - share) * self.usual + share * tf.reduce_mean(size)))
        return tf.where(changed, LEFT, 1.0)
