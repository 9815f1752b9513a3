"""What `models.learners.clusters` knows between two windows, and the arithmetic that its steps share.

A cluster is a normal distribution with a variance for each column, held as decayed sufficient statistics: weight, mean and
variance, which two clusters or two partitions of a stream can merge exactly (Zhang et al., "BIRCH", 1996; Chan, Golub and
LeVeque, 1983). It has a velocity, so that it is looked for where it will be, and an id that it keeps for life. Clusters live in
a fixed number of slots; a slot whose id is -1 is free. How it is kept: `models.learners.cluster_tables`.
"""

from __future__ import annotations

from math import log, sqrt
from typing import NamedTuple

import tensorflow as tf

FREE = -1  # in place of an id
BORN, DIED, SPLIT, MERGED = range(4)
KINDS = ("born", "died", "split", "merged")
MAX_EVENTS = 256  # of one call of `learn`; a window has a handful
LEAST_SHARE = 1e-3  # of the rows that a cluster is given in the choice between overlapping ones
VARIANCE_FLOOR = 1e-6  # of a cluster, as a share of the column's variance
TINY = 1e-24  # so that columns that do not vary are divided by something


class Assigned(NamedTuple):
    """Rows given to clusters: `share` (rows, slots), and whether a row is `near` any (rows,)."""

    share: tf.Tensor
    near: tf.Tensor


class State(NamedTuple):
    """All that is known, by name; float64 where nothing else is said."""

    id: tf.Tensor  # (slots,) int64, FREE where there is no cluster
    weight: tf.Tensor  # (slots,) rows, decayed
    speed: tf.Tensor  # (slots,) in standard deviations a block, smoothed
    age: tf.Tensor  # (slots,) in blocks
    missed: tf.Tensor  # (slots,) rows that were expected since any came
    mean: tf.Tensor  # (slots, width)
    variance: tf.Tensor  # (slots, width)
    velocity: tf.Tensor  # (slots, width) per block of rows
    # For splits: a direction, the rows on either side of the mean along it (count, sum, sum of squares), the shape that a
    # cluster had before it grew longer, and where its mean was a while ago.
    axis: tf.Tensor  # (slots, width)
    shape: tf.Tensor  # (slots, width)
    anchor: tf.Tensor  # (slots, width)
    sides: tf.Tensor  # (slots, 2, 3)
    close: tf.Tensor  # (slots, slots) for how many blocks two clusters could have been one
    column_weight: tf.Tensor  # () rows, decayed
    far_count: tf.Tensor  # () int64
    far_fresh: tf.Tensor  # () int64, rows since births were looked for
    next_id: tf.Tensor  # () int64
    ahead: tf.Tensor  # () blocks from the last one to the middle of the next window
    # The frame: (x - shift) / scale; and the columns' decayed moments in it.
    shift: tf.Tensor  # (width,)
    scale: tf.Tensor  # (width,)
    column_mean: tf.Tensor  # (width,)
    column_variance: tf.Tensor  # (width,)
    far: tf.Tensor  # (far_rows, width) rows that no cluster explains: the latest, in order of arrival, `far_count` of them

    @property
    def alive(self) -> tf.Tensor:
        """(slots,) bool."""
        return self.id >= 0

    @property
    def column_floor(self) -> tf.Tensor:
        """(width,) the columns' variances, never 0."""
        return self.column_variance + TINY

    @property
    def slots(self) -> int:
        return int(self.id.shape[0])

    @property
    def width(self) -> int:
        return int(self.shift.shape[0])

    def forget_sides(self, chosen: tf.Tensor) -> State:
        """Begins anew to look for splits and merges of the chosen slots (slots,) bool."""
        kept = tf.cast(~chosen, tf.float64)
        return self._replace(
            axis=self.axis * kept[:, None],
            sides=self.sides * kept[:, None, None],
            close=self.close * kept[:, None] * kept,
        )

    def clear(self, chosen: tf.Tensor) -> State:
        """Frees the chosen slots (slots,) bool."""
        kept = tf.cast(~chosen, tf.float64)
        return self._replace(
            id=tf.where(chosen, tf.constant(FREE, tf.int64), self.id),
            weight=self.weight * kept,
            missed=self.missed * kept,
            speed=self.speed * kept,
            velocity=self.velocity * kept[:, None],
        ).forget_sides(chosen)


class Told(NamedTuple):
    """The events of a call of `learn`: the first `count` of `rows` (MAX_EVENTS, 3): kind, id, other id; both int64."""

    rows: tf.Tensor
    count: tf.Tensor

    def note(self, kind: int | tf.Tensor, cluster: tf.Tensor, other: tf.Tensor) -> Told:
        """Adds events: scalars, or vectors of one length."""
        cluster, other = tf.reshape(cluster, [-1]), tf.reshape(other, [-1])
        kinds = tf.fill(tf.shape(cluster), tf.cast(kind, tf.int64))
        count = tf.minimum(self.count + tf.size(cluster, tf.int64), MAX_EVENTS)
        places = tf.range(self.count, count)
        rows = tf.stack([kinds, cluster, other], axis=1)[: tf.size(places)]
        return Told(tf.tensor_scatter_nd_update(self.rows, places[:, None], rows), count)


def nothing_told() -> Told:
    """No event yet."""
    return Told(tf.zeros([MAX_EVENTS, 3], tf.int64), tf.constant(0, tf.int64))


def gate(width: int, deviations: float) -> float:
    """The squared distance within which a row belongs to a cluster: a chi-square quantile (Wilson and Hilferty, 1931).

    Args:
        width: number of columns.
        deviations: the quantile as that of a normal distribution: 4 leaves out one row in 30,000.
    """
    spread = 2.0 / (9.0 * width)
    return width * (1.0 - spread + deviations * sqrt(spread)) ** 3


def assign(state: State, wide: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, limit: float) -> Assigned:
    """Shares rows out among the clusters (the E step of EM; Dempster, Laird and Rubin, 1977).

    Args:
        state: says who is alive, and how frequent.
        wide: (rows, 2 width + 1), as `widen` gives it.
        mean: (slots, width), where the clusters are now.
        variance: (slots, width).
        limit: squared distance beyond which a row does not belong to a cluster.
    """
    score, reach = scores(state.weight, state.alive, squared_distances(wide, mean, variance), variance, limit)
    near = tf.reduce_any(reach, axis=1)
    share = tf.nn.softmax(tf.where(near[:, None], score, tf.zeros_like(score)))
    return Assigned(share * tf.cast(reach, tf.float64), near)


def scores(
    weight: tf.Tensor, alive: tf.Tensor, squared: tf.Tensor, variance: tf.Tensor, limit: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Log likelihoods (rows, slots), -inf beyond `limit`, and which rows are within it (rows, slots).

    Args:
        weight, alive: (slots,).
        squared: distances (rows, slots).
        variance: (slots, width).
        limit: see `assign`.
    """
    reach = tf.logical_and(squared <= limit, alive)
    share = tf.maximum(weight / tf.maximum(tf.reduce_sum(weight), TINY), LEAST_SHARE)
    constant = tf.math.log(share) - 0.5 * tf.reduce_sum(tf.math.log(variance), axis=1)
    return tf.where(reach, constant - 0.5 * squared, tf.constant(float("-inf"), tf.float64)), reach


def widen(rows: tf.Tensor) -> tf.Tensor:
    """(rows, width) to (rows, 2 width + 1): squares, values, ones. One product with it gives distances or moments."""
    return tf.concat([rows * rows, rows, tf.ones_like(rows[:, :1])], axis=1)


def squared_distances(wide: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    """Mahalanobis' distances, squared, from each row to each mean: (rows, slots)."""
    precision = 1.0 / variance
    turned = mean * precision
    factors = tf.concat([precision, -2.0 * turned, tf.reduce_sum(mean * turned, axis=1, keepdims=True)], axis=1)
    return tf.maximum(tf.matmul(wide, factors, transpose_b=True), 0.0)


def moments(share: tf.Tensor, wide: tf.Tensor, width: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Sufficient statistics of rows by cluster: count (slots,), mean and mean square (slots, width); they add up over parts."""
    sums = tf.matmul(share, wide, transpose_a=True)
    count = sums[:, 2 * width]
    each = sums / tf.maximum(count, TINY)[:, None]
    return count, each[:, width : 2 * width], each[:, :width]


def pairs(weights: tf.Tensor, points: tf.Tensor) -> tf.Tensor:
    """Sum over the columns j of w_aj (p_aj - p_bj)^2 for each pair (a, b): (slots, slots)."""
    weighted = weights * points
    own = tf.reduce_sum(weighted * points, axis=1, keepdims=True)
    cross = tf.matmul(weighted, points, transpose_b=True)
    return tf.maximum(own - 2.0 * cross + tf.matmul(weights, points * points, transpose_b=True), 0.0)


def separations(mean: tf.Tensor, variance: tf.Tensor, usable: tf.Tensor) -> tf.Tensor:
    """Distances between means, in standard deviations along the line that joins them: (slots, slots), inf where not usable."""
    squared = pairs(tf.ones_like(mean), mean)
    # Along the line: sum of u_j^2 v_j over the columns j, with u the unit vector.
    along = tf.sqrt(pairs(variance, mean) / tf.maximum(squared, TINY))
    mine = 0.5 * (along + tf.transpose(along))
    both = usable[:, None] & usable & ~tf.eye(tf.shape(mean)[0], dtype=tf.bool)
    return tf.where(both, tf.sqrt(squared) / tf.maximum(mine, TINY), tf.constant(float("inf"), tf.float64))


def join(
    weight: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, one: tf.Tensor, other: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Weight, mean and variance of two clusters together, exactly: (), (width,), (width,)."""
    total = weight[one] + weight[other]
    part, rest = weight[one] / total, weight[other] / total
    middle = part * mean[one] + rest * mean[other]
    spread = part * (variance[one] + (mean[one] - middle) ** 2) + rest * (variance[other] + (mean[other] - middle) ** 2)
    return total, middle, spread


LOG_UNIFORM = log(sqrt(12.0))  # width of a uniform distribution, in its standard deviations
LOG_NORMAL = 0.5 * log(2.0 * 3.141592653589793 * 2.718281828459045)  # entropy of a normal one with variance 1
