"""What `models.learners.clusters` knows between two windows, and the arithmetic that its steps share.

A cluster is a normal distribution with a variance for each column, held as decayed sufficient statistics: weight, mean and
variance, which two clusters or two partitions of a stream can merge exactly (Zhang et al., "BIRCH", 1996; Chan, Golub and
LeVeque, 1983). It has a velocity, so that it is looked for where it will be, and an id that it keeps for life. Clusters live in
a fixed number of slots; a slot whose id is -1 is free. Everything is a `tf.Variable`, and in double precision; what a block of
rows moves on is taken out as `Moving`, by `moving`, and put back by `put_back`.
"""

from __future__ import annotations

from math import log, sqrt
from typing import NamedTuple, TypeAlias

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


class Moving(NamedTuple):
    """What a block of rows moves on: tensors of the same names and shapes as the variables of `ClusterState`, in some slots."""

    id: tf.Tensor
    weight: tf.Tensor
    mean: tf.Tensor
    variance: tf.Tensor
    velocity: tf.Tensor
    speed: tf.Tensor
    age: tf.Tensor
    missed: tf.Tensor
    close: tf.Tensor
    axis: tf.Tensor
    sides: tf.Tensor
    shape: tf.Tensor
    anchor: tf.Tensor
    far: tf.Tensor
    far_count: tf.Tensor
    far_fresh: tf.Tensor
    column_weight: tf.Tensor
    column_mean: tf.Tensor
    column_variance: tf.Tensor

    @property
    def alive(self) -> tf.Tensor:
        """(slots,) bool."""
        return self.id >= 0

    @property
    def column_floor(self) -> tf.Tensor:
        """(width,) the columns' variances, never 0."""
        return self.column_variance + TINY


OF_ALL = ("far", "far_count", "far_fresh", "column_weight", "column_mean", "column_variance")
OF_SLOTS = tuple(name for name in Moving._fields if name not in OF_ALL)


def gate(width: int, deviations: float) -> float:
    """The squared distance within which a row belongs to a cluster: a chi-square quantile (Wilson and Hilferty, 1931).

    Args:
        width: number of columns.
        deviations: the quantile as that of a normal distribution: 4 leaves out one row in 30,000.
    """
    spread = 2.0 / (9.0 * width)
    return width * (1.0 - spread + deviations * sqrt(spread)) ** 3


class ClusterState(tf.Module):
    """The variables. Shapes: `slots` clusters, `width` columns; rows are in a frame that the first window fixed."""

    def __init__(self, slots: int, width: int, far_rows: int) -> None:
        super().__init__(name="clusters")
        self.slots, self.width = slots, width

        def zeros(name: str, *shape: int, dtype: tf.DType = tf.float64) -> tf.Variable:
            return tf.Variable(tf.zeros(shape, dtype), name=name)

        self.id = tf.Variable(tf.fill([slots], tf.constant(FREE, tf.int64)), name="id")
        self.weight = zeros("weight", slots)  # rows, decayed
        self.mean = zeros("mean", slots, width)
        self.variance = tf.Variable(tf.ones([slots, width], tf.float64), name="variance")
        self.velocity = zeros("velocity", slots, width)  # per block of rows
        self.speed = zeros("speed", slots)  # in standard deviations a block, smoothed
        self.age = zeros("age", slots)  # in blocks
        self.missed = zeros("missed", slots)  # rows that were expected since any came
        self.close = zeros("close", slots, slots)  # for how many blocks two clusters could have been one
        # For splits: a direction, the rows on either side of the mean along it (count, sum, sum of squares), the shape that a
        # cluster had before it grew longer, and where its mean was a while ago.
        self.axis = zeros("axis", slots, width)
        self.sides = zeros("sides", slots, 2, 3)
        self.shape = tf.Variable(tf.ones([slots, width], tf.float64), name="shape")
        self.anchor = zeros("anchor", slots, width)
        # Rows that no cluster explains: the latest, in order of arrival, `far_count` of them.
        self.far = zeros("far", far_rows, width)
        self.far_count = zeros("far_count", dtype=tf.int64)
        self.far_fresh = zeros("far_fresh", dtype=tf.int64)  # since births were looked for
        # The frame: (x - shift) / scale; and the columns' decayed moments in it.
        self.shift = zeros("shift", width)
        self.scale = tf.Variable(tf.ones([width], tf.float64), name="scale")
        self.column_weight = zeros("column_weight")
        self.column_mean = zeros("column_mean", width)
        self.column_variance = tf.Variable(tf.ones([width], tf.float64), name="column_variance")
        self.next_id = zeros("next_id", dtype=tf.int64)
        self.ahead = tf.Variable(
            tf.ones([], tf.float64), name="ahead"
        )  # blocks from the last one to the middle of the next window
        self.events = zeros("events", MAX_EVENTS, 3, dtype=tf.int64)  # kind, id, other id
        self.event_count = zeros("event_count", dtype=tf.int64)

    @property
    def alive(self) -> tf.Tensor:
        """(slots,) bool."""
        return self.id >= 0

    @property
    def column_floor(self) -> tf.Tensor:
        """(width,) the columns' variances, never 0."""
        return self.column_variance + TINY

    def moving(self, slots: int) -> Moving:
        """The values of the first `slots` slots, of the rows kept and of the columns."""
        cut = {name: getattr(self, name)[:slots] for name in OF_SLOTS if name != "close"}
        return Moving(close=self.close[:slots, :slots], **cut, **{name: getattr(self, name).read_value() for name in OF_ALL})

    def put_back(self, moved: Moving, slots: int) -> None:
        """Writes what `moving` gave, moved on, into the variables."""
        for name in OF_ALL:
            getattr(self, name).assign(getattr(moved, name))
        for name in OF_SLOTS:
            variable, value = getattr(self, name), getattr(moved, name)
            if slots == self.slots:
                variable.assign(value)
            elif name == "close":
                self.close[:slots, :slots].assign(value)
            elif name != "id":  # no block changes it
                variable[:slots].assign(value)

    def note(self, kind: int | tf.Tensor, cluster: tf.Tensor, other: tf.Tensor) -> None:
        """Adds an event to those of this call."""
        row = tf.stack([tf.cast(kind, tf.int64), cluster, other])
        place = tf.minimum(self.event_count, MAX_EVENTS - 1)
        self.events.scatter_nd_update(place[None, None], row[None])
        self.event_count.assign(tf.minimum(self.event_count + 1, MAX_EVENTS))

    def forget_sides(self, chosen: tf.Tensor) -> None:
        """Begins anew to look for splits and merges of the chosen slots (slots,) bool."""
        kept = tf.cast(tf.logical_not(chosen), tf.float64)
        self.axis.assign(self.axis * kept[:, None])
        self.sides.assign(self.sides * kept[:, None, None])
        self.close.assign(self.close * kept[:, None] * kept)

    def clear(self, chosen: tf.Tensor) -> None:
        """Frees the chosen slots (slots,) bool."""
        kept = tf.cast(tf.logical_not(chosen), tf.float64)
        self.id.assign(tf.where(chosen, tf.constant(FREE, tf.int64), self.id))
        for values in (self.weight, self.missed, self.speed):
            values.assign(values * kept)
        self.velocity.assign(self.velocity * kept[:, None])
        self.forget_sides(chosen)


Slots: TypeAlias = ClusterState | Moving


def assign(state: Slots, wide: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, limit: float) -> Assigned:
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
