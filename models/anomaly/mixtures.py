"""Lanes of a multivariate series: its columns, and views that see several columns at once.

A row is unusual if one of its columns is, or if columns that each are as ever do not go together. For the second there are
sparse random projections of the standardised columns, and the Mahalanobis distance under a decayed covariance. Each is a
number a row, so each is a lane like any other, and is scored against its own past.

References:
    Pevny, "Loda: Lightweight on-line detector of anomalies", Machine Learning 102, 2016 (sparse random projections, each with
    a
        histogram of its own). Deviation: a lane's histograms are of its surprises, not of the projection's values.
    Sherman and Morrison, "Adjustment of an inverse matrix ...", 1950 (the inverse covariance, one row at a time).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import tensorflow as tf

COVARIANCE_RATE = 1.0 / 500.0  # a row's weight in the covariance
RIDGE = 0.1  # of the covariance at the start, in spreads squared; it fades with the rows
FARTHEST = 30.0  # spreads; a column farther out counts as this far in the mixtures (it is seen in its own lane)


def lanes(columns: int) -> int:
    """How many lanes a series with so many columns has."""
    return 1 if columns == 1 else 2 * columns + 1


def projections(columns: int, seed: int) -> npt.NDArray[np.float64]:
    """The directions: (columns, columns), a direction a row, sparse, of length 1."""
    random = np.random.default_rng(seed)
    kept = max(2, round(columns**0.5)) if columns > 1 else 1
    directions = np.zeros((columns, columns))
    for direction in directions:
        direction[random.choice(columns, kept, replace=False)] = random.standard_normal(kept)
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def standardised(x: tf.Tensor, level: tf.Tensor, spread: tf.Tensor) -> tf.Tensor:
    """The columns in spreads from their level; a column that never varied counts as 0."""
    scaled = (x - level) / tf.maximum(spread, 1e-300)
    return tf.where(spread > 0.0, tf.clip_by_value(scaled, -FARTHEST, FARTHEST), tf.zeros_like(x))


def start(keys: int, columns: int) -> tf.Tensor:
    """The inverse covariance before anything is known: (keys, columns, columns) float64."""
    return tf.tile(tf.eye(columns, dtype=tf.float64)[None] / RIDGE, [keys, 1, 1])


def mixed(z: tf.Tensor, inverse: tf.Tensor, directions: npt.NDArray[np.float64]) -> tuple[tf.Tensor, tf.Tensor]:
    """The lanes beside the columns' own, and the inverse covariance after the row.

    Args:
        z: (keys, columns), standardised.
        inverse: (keys, columns, columns).
        directions: as `projections` gives them.

    Returns:
        (keys, columns + 1), the projections and the distance; (keys, columns, columns).
    """
    projected = tf.reduce_sum(z[:, None, :] * directions[None], axis=-1)
    leaning = tf.reduce_sum(inverse * z[:, None, :], axis=-1)  # inverse times z
    squared = tf.maximum(tf.reduce_sum(leaning * z, axis=-1, keepdims=True), 0.0)
    grown = inverse / (1.0 - COVARIANCE_RATE)
    share = COVARIANCE_RATE / (1.0 - COVARIANCE_RATE) ** 2 / (1.0 + COVARIANCE_RATE / (1.0 - COVARIANCE_RATE) * squared)
    after = grown - share[..., None] * leaning[:, :, None] * leaning[:, None, :]
    return tf.concat([projected, tf.sqrt(squared)], axis=-1), after
