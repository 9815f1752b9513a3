"""What a linear expert wants in order to see what is bent or comes together: lines that bend, and products of two columns.

What is multiplied, or holds only where another column is high, is no sum of functions of single columns. A product of two
columns in standard deviations is the smallest thing that sees it, and least squares learn its weight from few rows, where
trees want many.

References:
    Gabor, Wilby and Woodcock, "A universal non-linear filter, predictor and simulator", 1961 (polynomials of second degree,
    learnt as they go). Friedman, "Multivariate adaptive regression splines", 1991 (lines that bend).
"""

from __future__ import annotations

import tensorflow as tf

from models.learners.experts.standardiser import clipped

KNOTS = (-1.0, 0.0, 1.0)  # in standard deviations: where lines may bend
MOST_COLUMNS = 12  # of a table whose columns are multiplied: of more there would be too many products


def products_width(width: int) -> int:
    """How many columns `with_products` gives for so many; 0 for too many."""
    return width * (1 + len(KNOTS)) + width * (width - 1) // 2 if 0 < width <= MOST_COLUMNS else 0


def with_products(z: tf.Tensor) -> tf.Tensor:
    """(rows, products_width(width)) for (rows, width) in standard deviations without far outliers."""
    width = int(z.shape[1])
    first = [place for place in range(width) for _ in range(place + 1, width)]
    second = [other for place in range(width) for other in range(place + 1, width)]
    bent = [tf.nn.relu(z - knot) for knot in KNOTS]
    products = tf.gather(z, tf.constant(first, tf.int32), axis=1) * tf.gather(z, tf.constant(second, tf.int32), axis=1)
    return tf.concat([z, *bent, clipped(products)], axis=1)
