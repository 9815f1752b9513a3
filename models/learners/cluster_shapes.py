"""The shapes of clusters: covariances, how they are kept, and the arithmetic with them.

A covariance is a vector of `terms`: the variances of the columns, then the covariance of each pair of them. So sums over rows
are one product of matrices, and so are distances. With more than `FULL_COLUMNS` columns there are the variances alone.

What is estimated from few rows looks more oblong than it is. Correlations are drawn towards none, by as much as chance may have
made of them, and a shape grows by what its estimate leaves out; where columns are independent it is as with variances alone.

References:
    Schaefer and Strimmer, "A shrinkage approach to large-scale covariance matrix estimation", Statistical Applications in
    Genetics and Molecular Biology 4, 2005: target D, with the variance of a correlation by its large-sample formula.
    Fisher, "The use of multiple measurements in taxonomic problems", 1936: the direction in which two clusters are farthest
    apart.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

FULL_COLUMNS = 12  # the work grows with the square of the columns; in many columns clusters hardly touch, however they lie
LEAST_SHRINKAGE = 1e-4  # so that no shape is flat: a hundred times as long as wide at the most
TINY = 1e-24  # so that columns that do not vary are divided by something


@lru_cache
def column_pairs(width: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The columns that each term is of: two vectors (terms,)."""
    one = np.arange(width, dtype=np.int32)
    if width > FULL_COLUMNS:
        return one, one
    apart = range(width)  # first all pairs of neighbours, then those with one column between them ...: each a slice of columns
    return np.concatenate([one[: width - by] for by in apart]), np.concatenate([one[by:] for by in apart])


def number_of_terms(width: int) -> int:
    """How many terms a covariance has."""
    return len(column_pairs(width)[0])


def is_full(width: int) -> bool:
    """Whether there are covariances, and not variances alone."""
    return width <= FULL_COLUMNS


def products(vectors: tf.Tensor) -> tf.Tensor:
    """(..., width) to (..., terms): the products of the columns."""
    width = vectors.shape[-1]
    lags = range(width if is_full(width) else 1)
    return tf.concat([vectors[..., : width - by] * vectors[..., by:] for by in lags], axis=-1)


def matrices(terms: tf.Tensor, width: int) -> tf.Tensor:
    """(n, terms) to (n, width, width)."""
    if not is_full(width):
        return tf.linalg.diag(terms)
    one, other = column_pairs(width)
    places = np.zeros((width, width), np.int32)
    places[one, other] = places[other, one] = np.arange(len(one))
    return tf.reshape(tf.gather(terms, places.reshape(-1), axis=1), [-1, width, width])


def terms_of(matrix: tf.Tensor) -> tf.Tensor:
    """(n, width, width) to (n, terms)."""
    width = matrix.shape[-1]
    one, other = column_pairs(width)
    return tf.gather(tf.reshape(matrix, [-1, width * width]), one * width + other, axis=1)


def turn(terms: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
    """Each matrix times its vector: (n, terms), (n, width) to (n, width)."""
    width = vectors.shape[-1]
    if not is_full(width):
        return terms * vectors
    return tf.reduce_sum(matrices(terms, width) * vectors[:, None], axis=2)


def widened(terms: tf.Tensor, width: int, by: tf.Tensor) -> tf.Tensor:
    """Covariances (n, terms) with something (n, width) or (width,) added to the variances."""
    rest = terms[:, width:]
    return tf.concat([terms[:, :width] + by, rest], axis=1)


class Wide(NamedTuple):
    """Rows, with all that distances and moments are linear in."""

    products: tf.Tensor  # (rows, terms)
    values: tf.Tensor  # (rows, width + 1), the last a one


def widen(rows: tf.Tensor) -> Wide:
    """Of rows (rows, width)."""
    return Wide(products(rows), tf.concat([rows, tf.ones_like(rows[:, :1])], axis=1))


def squared_distances(wide: Wide, mean: tf.Tensor, precision: tf.Tensor) -> tf.Tensor:
    """Mahalanobis' distances, squared, from each row to each mean: (rows, slots).

    Args:
        wide: the rows.
        mean: (slots, width).
        precision: (slots, terms), the inverses of the covariances.
    """
    width = mean.shape[-1]
    turned = turn(precision, mean)
    twice = tf.constant([1.0] * width + [2.0] * (number_of_terms(width) - width), tf.float64)
    # The steps of EM have this product in common, as only the means move.
    squares = tf.matmul(wide.products, precision * twice, transpose_b=True)
    factors = tf.concat([-2.0 * turned, tf.reduce_sum(mean * turned, axis=1, keepdims=True)], axis=1)
    return tf.maximum(squares + tf.matmul(wide.values, factors, transpose_b=True), 0.0)


def moments(share: tf.Tensor, wide: Wide) -> tuple[tf.Tensor, tf.Tensor]:
    """How many rows a cluster has (slots,), and their mean (slots, width), from the shares (rows, slots)."""
    sums = tf.matmul(share, wide.values, transpose_a=True)
    count = sums[:, -1]
    return count, sums[:, :-1] / tf.maximum(count, TINY)[:, None]


def covariances(share: tf.Tensor, wide: Wide, count: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
    """The covariances (slots, terms) that go with `moments`; no variance is below 0."""
    width = mean.shape[-1]
    spread = tf.matmul(share, wide.products, transpose_a=True) / tf.maximum(count, TINY)[:, None] - products(mean)
    return tf.concat([tf.maximum(spread[:, :width], 0.0), spread[:, width:]], axis=1)


def join(
    weight: tf.Tensor, mean: tf.Tensor, spread: tf.Tensor, one: tf.Tensor, other: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Weight, mean and covariance of two clusters together, exactly: (), (width,), (terms,)."""
    total = weight[one] + weight[other]
    part, rest = weight[one] / total, weight[other] / total
    between = mean[one] - mean[other]
    return (
        total,
        part * mean[one] + rest * mean[other],
        part * spread[one] + rest * spread[other] + part * rest * products(between),
    )


def shrunk(spread: tf.Tensor, width: int, rows: tf.Tensor) -> tf.Tensor:
    """Correlations as `whitening` wants them, from covariances (n, terms) of so many rows (n,): (n, width, width)."""
    deviation = tf.sqrt(spread[:, :width])
    one, other = column_pairs(width)
    between = spread[:, width:] / (tf.gather(deviation, one[width:], axis=1) * tf.gather(deviation, other[width:], axis=1))
    squares = tf.minimum(between * between, 1.0)
    by_chance = tf.reduce_sum((1.0 - squares) ** 2, axis=1) / tf.maximum(rows, 1.0)
    drawn = tf.clip_by_value(by_chance / tf.maximum(tf.reduce_sum(squares, axis=1), TINY), LEAST_SHRINKAGE, 1.0)
    grown = 1.0 + (1.0 - drawn) * (width + 1.0) / tf.maximum(rows, 1.0)
    terms = tf.concat([tf.ones_like(deviation), between * (1.0 - drawn)[:, None]], axis=1)
    return matrices(terms * grown[:, None], width)


def whitening(correlation: tf.Tensor) -> tf.Tensor:
    """W with W R W' = 1 for each matrix R of (n, width, width): a lower triangle."""
    width = correlation.shape[-1]
    factor = tf.linalg.cholesky(correlation)
    eye = tf.eye(width, batch_shape=[tf.shape(correlation)[0]], dtype=tf.float64)
    return tf.ensure_shape(tf.linalg.triangular_solve(factor, eye), correlation.shape)


def separations(mean: tf.Tensor, spread: tf.Tensor, precision: tf.Tensor, usable: tf.Tensor) -> tf.Tensor:
    """How far apart clusters are, in standard deviations (the mean of both clusters') along a line.

    The line is the one on which they are farthest apart if both have the shape of the one, or of the other.

    Args:
        mean: (slots, width).
        spread, precision: (slots, terms), covariances and their inverses.
        usable: (slots,) bool.

    Returns:
        (slots, slots), inf where a cluster is not usable, and from itself.
    """
    width = mean.shape[-1]
    between = mean[:, None] - mean
    if is_full(width):
        line = tf.matmul(between, matrices(precision, width))  # of each row's cluster
        along = tf.matmul(tf.transpose(line, [1, 0, 2]), matrices(spread, width))
        others = tf.reduce_sum(along * tf.transpose(line, [1, 0, 2]), axis=2)
        others = tf.transpose(others)
    else:
        line = between * precision[:, None]
        others = tf.reduce_sum(line * line * spread, axis=2)
    squared = tf.maximum(tf.reduce_sum(line * between, axis=2), 0.0)
    apart = squared / tf.maximum(0.5 * (tf.sqrt(squared) + tf.sqrt(tf.maximum(others, 0.0))), TINY)
    both = usable[:, None] & usable & ~tf.eye(tf.shape(mean)[0], dtype=tf.bool)
    return tf.where(both, tf.maximum(apart, tf.transpose(apart)), tf.constant(float("inf"), tf.float64))
