"""Predicts what near rows in the memory were: a kernel average, for several widths of the kernel at once.

References:
    Nadaraya, "On Estimating Regression", 1964; Watson, "Smooth Regression Analysis", 1964.
"""

from __future__ import annotations

import tensorflow as tf

# Squared widths of the Gaussians, in squared standard deviations a column: wide, and then each a quarter of it.
WIDEST = 0.04
WIDTHS = 2
PRIOR_WEIGHT = 1e-4  # of the mean target, where no row is near


def kernel_means(z: tf.Tensor, remembered: tf.Tensor, targets: tf.Tensor, weights: list[tf.Tensor]) -> tf.Tensor:
    """The kernel-weighted means of the targets.

    Args:
        z: (rows, width) float32, standardised.
        remembered: (size, width), the memory's rows, standardised alike.
        targets: (size, k).
        weights: how much each row of the memory counts, (size,) each, 0 for one that is none: an answer for each.

    Returns:
        (`WIDTHS` * weights, rows, k).
    """
    # -s |z - r|^2 as one product, (z, |z|^2, 1) . (2 s r, -s, -s |r|^2): each pass over rows times size values counts.
    scale = 0.5 / (WIDEST * int(z.shape[1]))
    left = tf.concat([z, tf.reduce_sum(z * z, axis=1, keepdims=True), tf.ones_like(z[:, :1])], axis=1)
    squares = tf.reduce_sum(remembered * remembered, axis=1, keepdims=True)
    right = tf.concat([2.0 * scale * remembered, tf.fill(tf.shape(squares), -scale), -scale * squares], axis=1)
    near = tf.exp(tf.matmul(left, right, transpose_b=True))
    # By weighting: the weights of the targets, and in a last column of their own the sum of the weights.
    columns = tf.concat([part for weight in weights for part in (targets * weight[:, None], weight[:, None])], axis=1)
    each = int(targets.shape[1]) + 1
    means = []
    for _ in range(WIDTHS):
        sums = tf.matmul(near, columns)
        for place, weight in enumerate(weights):
            own = sums[:, place * each : (place + 1) * each]
            mean = tf.math.divide_no_nan(tf.reduce_sum(targets * weight[:, None], axis=0), tf.reduce_sum(weight))
            means.append((own[:, :-1] + PRIOR_WEIGHT * mean) / (own[:, -1:] + PRIOR_WEIGHT))
        near = tf.square(tf.square(near))  # a Gaussian of half the width, cheaper than another exponential
    return tf.stack(means)
