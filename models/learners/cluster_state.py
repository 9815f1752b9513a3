"""What `models.learners.clusters` knows between two windows, and the arithmetic that its steps share.

A cluster is a normal distribution, held as decayed sufficient statistics: weight, mean and covariance, which two clusters or
two partitions of a stream can merge exactly (Zhang et al., "BIRCH", 1996; Chan, Golub and LeVeque, 1983). It has a velocity, so
that it is looked for where it will be, and an id that it keeps for life. Clusters live in a fixed number of slots; a slot whose
id is -1 is free. How it is kept: `models.learners.cluster_tables`.
"""

from __future__ import annotations

from math import log, sqrt
from typing import NamedTuple

import tensorflow as tf

from models.learners.cluster_shapes import (
    TINY,
    Wide,
    column_pairs,
    is_full,
    shrunk,
    squared_distances,
    terms_of,
    whitening,
    widen,
)

FREE = -1  # in place of an id
BORN, DIED, SPLIT, MERGED = range(4)
KINDS = ("born", "died", "split", "merged")
MAX_EVENTS = 256  # of one call of `learn`; a window has a handful
LEAST_SHARE = 1e-3  # of the rows that a cluster is given in the choice between overlapping ones
VARIANCE_FLOOR = 1e-6  # of a cluster, as a share of the column's variance
SHAPE_ROWS = 300.0  # so many rows a covariance is of at the most: older ones are forgotten


class Assigned(NamedTuple):
    """Rows given to clusters: `share` (rows, slots), and whether a row is `near` any (rows,)."""

    share: tf.Tensor
    near: tf.Tensor


class Precision(NamedTuple):
    """The inverses of the covariances."""

    terms: tf.Tensor  # (slots, terms), see `cluster_shapes`
    half_log: tf.Tensor  # (slots,) half the logarithm of a covariance's determinant


def precise(spread: tf.Tensor, whitening: tf.Tensor, width: int) -> Precision:
    """Inverts covariances (slots, terms) whose correlations are whitened by `whitening`, which variances alone do not need."""
    deviation = tf.sqrt(spread[:, :width])
    half_log = tf.reduce_sum(tf.math.log(deviation), axis=1)
    if not is_full(width):
        return Precision(1.0 / spread, half_log)
    one, other = column_pairs(width)
    between = tf.gather(deviation, one, axis=1) * tf.gather(deviation, other, axis=1)
    half_log = half_log - tf.reduce_sum(tf.math.log(tf.linalg.diag_part(whitening)), axis=1)
    return Precision(terms_of(tf.matmul(whitening, whitening, transpose_a=True)) / between, half_log)


class State(NamedTuple):
    """All that is known, by name; float64 where nothing else is said."""

    id: tf.Tensor  # (slots,) int64, FREE where there is no cluster
    weight: tf.Tensor  # (slots,) rows, decayed
    speed: tf.Tensor  # (slots,) in standard deviations a block, smoothed
    age: tf.Tensor  # (slots,) in blocks
    missed: tf.Tensor  # (slots,) rows that were expected since any came
    mean: tf.Tensor  # (slots, width)
    spread: tf.Tensor  # (slots, terms) covariances, see `cluster_shapes`
    velocity: tf.Tensor  # (slots, width) per block of rows
    # For splits: a direction, the rows on either side of the mean along it (count, sum, sum of squares), the shape that a
    # cluster had before it grew longer (inverse covariances), and where its mean was a while ago.
    axis: tf.Tensor  # (slots, width), by what rows are multiplied
    shape: tf.Tensor  # (slots, terms)
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
    whitening: tf.Tensor  # (slots, width, width) of the correlations (`cluster_shapes`), as of the last call of `correlated`
    far: tf.Tensor  # (far_rows, width) rows that no cluster explains: the latest, in order of arrival, `far_count` of them

    @property
    def alive(self) -> tf.Tensor:
        """(slots,) bool."""
        return self.id >= 0

    @property
    def variance(self) -> tf.Tensor:
        """(slots, width)."""
        return self.spread[:, : self.width]

    @property
    def precision(self) -> Precision:
        """The present variances, with the correlations as `whitening` has them."""
        return precise(self.spread, self.whitening, self.width)

    def distances(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Squared distances (rows, slots) of rows (rows, width), and `half_log`: without their products, of which are many."""
        if not is_full(self.width):
            return squared_distances(widen(rows), self.mean, self.precision.terms), self.precision.half_log
        turned = self.whitening / tf.sqrt(self.variance)[:, None]
        flat = tf.reshape(turned, [-1, self.width])
        away = tf.matmul(rows, flat, transpose_b=True) - tf.reshape(tf.linalg.matvec(turned, self.mean), [-1])
        squared = tf.reduce_sum(tf.reshape(away * away, [tf.shape(rows)[0], -1, self.width]), axis=2)
        return squared, -tf.reduce_sum(tf.math.log(tf.linalg.diag_part(turned)), axis=1)

    @property
    def correlations(self) -> tf.Tensor:
        """What `whitening` is the whitening of: (slots, width, width)."""
        return shrunk(self.spread, self.width, tf.minimum(self.weight, SHAPE_ROWS))

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


def correlated(state: State) -> State:
    """The state with the present correlations for its `whitening`. Not for XLA, whose own Cholesky factors take their time."""
    if not is_full(state.width):
        return state
    return state._replace(whitening=whitening(state.correlations))


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


def assign(state: State, wide: Wide, mean: tf.Tensor, precision: Precision, limit: float) -> Assigned:
    """Shares rows out among the clusters (the E step of EM; Dempster, Laird and Rubin, 1977).

    Args:
        state: says who is alive, and how frequent.
        wide: the rows.
        mean: (slots, width), where the clusters are now.
        precision: their shapes.
        limit: squared distance beyond which a row does not belong to a cluster.
    """
    squared = squared_distances(wide, mean, precision.terms)
    score, reach = scores(state.weight, state.alive, squared, precision.half_log, limit)
    near = tf.reduce_any(reach, axis=1)
    share = tf.nn.softmax(tf.where(near[:, None], score, tf.zeros_like(score)))
    return Assigned(share * tf.cast(reach, tf.float64), near)


def scores(
    weight: tf.Tensor, alive: tf.Tensor, squared: tf.Tensor, half_log: tf.Tensor, limit: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Log likelihoods (rows, slots), -inf beyond `limit`, and which rows are within it (rows, slots).

    Args:
        weight, alive: (slots,).
        squared: distances (rows, slots).
        half_log: (slots,), half the logarithm of the determinants of the covariances.
        limit: see `assign`.
    """
    reach = tf.logical_and(squared <= limit, alive)
    share = tf.maximum(weight / tf.maximum(tf.reduce_sum(weight), TINY), LEAST_SHARE)
    constant = tf.math.log(share) - half_log
    return tf.where(reach, constant - 0.5 * squared, tf.constant(float("-inf"), tf.float64)), reach


LOG_UNIFORM = log(sqrt(12.0))  # width of a uniform distribution, in its standard deviations
LOG_NORMAL = 0.5 * log(2.0 * 3.141592653589793 * 2.718281828459045)  # entropy of a normal one with variance 1
