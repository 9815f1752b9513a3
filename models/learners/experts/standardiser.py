"""Numeric columns as a learner wants them: standardised by decayed statistics, and cut into bins by decayed quantiles.

The bins encode a value as the share of each bin that lies below it ("piecewise linear encoding"): a network, for which every
direction is as good as any other, then sees single columns and thresholds in them as well as a tree does.

References:
    Gorishniy, Rubachev and Babenko, "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022, section 3.2.
    Deviation: the edges are not fixed but decayed means of each window's quantiles.
"""

from __future__ import annotations

import tensorflow as tf

# A column counts as constant that varies less than these: float32's epsilon, as a share of the mean; next to nothing.
SMALLEST_DEVIATION = 1.2e-7
SMALLEST_VARIANCE = 1e-60
LARGEST_DEVIATION = 4.0  # in standard deviations; a value farther out would decide alone
LARGEST_VALUE = 1e18  # beyond it squares leave float32: such values count as missing
MAX_BIN_COLUMNS = 160  # bounds the width of the encoding for tables with many columns
SLOWEST_EDGE_RATE = 0.05  # the newest window counts at least this much in the edges


class Standardiser(tf.Module):
    """Statistics of `width` columns. A missing value counts as the mean, and so does all of a constant column."""

    def __init__(self, width: int, half_life_rows: float, max_bins: int = 8) -> None:
        super().__init__(name="standardiser")
        self._width, self._half_life_rows = width, half_life_rows
        self.bins = max(1, min(max_bins, MAX_BIN_COLUMNS // width))
        # Decayed moments of each column: weight of the rows so far, mean of x, mean of x^2. Double, as squares cancel.
        self.weight_sum = tf.Variable(tf.zeros(width, tf.float64), name="weight_sum")
        self.mean = tf.Variable(tf.zeros(width, tf.float64), name="mean")
        self.square = tf.Variable(tf.zeros(width, tf.float64), name="square")
        self.edges = tf.Variable(tf.zeros((self.bins + 1, width)), name="edges")  # in standard deviations
        self.rows_seen = tf.Variable(0.0, name="rows_seen")

    @property
    def bin_columns(self) -> int:
        """Width of what `binned` gives."""
        return self.bins * self._width

    def standardised(self, x: tf.Tensor) -> tf.Tensor:
        """(rows, width) float32 for x of the same shape, in standard deviations from the mean."""
        smallest = tf.maximum((SMALLEST_DEVIATION * self.mean) ** 2, SMALLEST_VARIANCE)
        variance = self.square - self.mean**2
        scale = tf.cast(tf.math.rsqrt(tf.maximum(variance, smallest)), tf.float32)
        usable = tf.logical_and(_known(x), variance > smallest)
        scaled = (x - tf.cast(self.mean, tf.float32)) * scale
        return tf.where(usable, scaled, tf.zeros_like(x))

    def filled(self, x: tf.Tensor) -> tf.Tensor:
        """The values as they came, with the mean where one is missing."""
        return tf.where(_known(x), x, tf.cast(self.mean, tf.float32))

    def binned(self, z: tf.Tensor) -> tf.Tensor:
        """(rows, bin_columns) float32 in [-0.5, 0.5], for z as `standardised` gives it."""
        low, high = self.edges[:-1], self.edges[1:]
        size, value = high - low, z[:, None, :]
        # Where two edges are one, as in a column of few values, the bin is a step.
        share = tf.where(
            size > 0,
            tf.clip_by_value((value - low) / tf.maximum(size, SMALLEST_DEVIATION), 0.0, 1.0),
            tf.cast(value >= high, tf.float32),
        )
        return tf.reshape(share, (-1, self.bin_columns)) - 0.5

    def observe(self, x: tf.Tensor) -> None:
        """Takes the rows of a window into the statistics; x is (rows, width) float32, at least one row."""
        known = _known(x)
        values = tf.where(known, tf.cast(x, tf.float64), tf.zeros_like(x, tf.float64))
        rows = tf.reduce_sum(tf.cast(known, tf.float64), axis=0)
        kept = tf.pow(tf.constant(0.5, tf.float64), rows / self._half_life_rows)
        total = self.weight_sum * kept + rows
        # The weights of the new rows and of those before add up to 1; a column without a value so far stays as it is.
        before = tf.math.divide_no_nan(self.weight_sum * kept, total)
        self.mean.assign(before * self.mean + tf.math.divide_no_nan(tf.reduce_sum(values, axis=0), total))
        self.square.assign(before * self.square + tf.math.divide_no_nan(tf.reduce_sum(values**2, axis=0), total))
        self.weight_sum.assign(total)
        self._move_edges(tf.sort(self.standardised(x), axis=0))

    def _move_edges(self, in_order: tf.Tensor) -> None:
        rows = tf.cast(tf.shape(in_order)[0], tf.float32)
        places = tf.cast(tf.round(tf.linspace(0.0, 1.0, self.bins + 1) * (rows - 1.0)), tf.int32)
        rate = tf.maximum(rows / (self.rows_seen + rows), SLOWEST_EDGE_RATE)
        self.edges.assign_add(rate * (tf.gather(in_order, places) - self.edges))
        self.rows_seen.assign_add(rows)


def clipped(z: tf.Tensor) -> tf.Tensor:
    """Standardised values without their far outliers."""
    return tf.clip_by_value(z, -LARGEST_DEVIATION, LARGEST_DEVIATION)


def _known(x: tf.Tensor) -> tf.Tensor:
    return tf.logical_and(tf.math.is_finite(x), tf.abs(x) < LARGEST_VALUE)
