"""How unusual a number is among those before it: a tail probability from a decayed histogram, one for each of many streams.

The histogram is over the logarithm of the number, in half octaves, so that one grid serves numbers of any size and each bin
is as wide as the number is large. What is kept is not the bins but their sums from above, the weight of all that was at least
as large: then adding, forgetting and asking are elementwise. Within what was seen, the probability is the conformal p-value
(the share of earlier numbers at least as large); above the largest 3 % it leans on a Pareto tail fitted to them by Hill's
estimator, so that a number ten times the record counts as more than a record.

Everything is over leading axes of any shape, written `...`.

References:
    Laxhammar and Falkman, "Conformal prediction for distribution-independent anomaly detection in streaming vessel data", 2010.
    Siffer, Fouque, Termier and Largouet, "Anomaly detection in streams with extreme value theory", KDD 2017 (a tail fitted to
        the excesses over a high quantile). Deviation: Hill's estimator on binned logarithms, not a maximum likelihood fit.
    Hill, "A simple general approach to inference about the tail of a distribution", Annals of Statistics 3, 1975.
"""

from __future__ import annotations

import math

import tensorflow as tf

BINS = 96
BINS_PER_OCTAVE = 2
MIDDLE = BINS // 2  # the bin of 1: from 2**-24 to 2**24
TAIL_SHARE = 0.03  # of the largest numbers carries the fitted tail
TAIL_ROWS = 5.0  # at least
SMALLEST_EXCESS = 0.2  # bins; a tail steeper than the grid resolves is not believed
TRUSTED_ROWS = 3.0  # with so many numbers above, half of the answer comes from counting them and half from the fitted tail
SMALLEST_P = 1e-12


def empty(shape: tuple[int, ...]) -> tf.Tensor:
    """Histograms that have seen nothing: (..., BINS + 1) float32; the last bin is always 0."""
    return tf.zeros((*shape, BINS + 1), tf.float32)


def position(number: tf.Tensor) -> tf.Tensor:
    """Where numbers lie on the grid, in bins: (...) float64 in [0, BINS); what is 0 or less has no place and gives 0."""
    logarithm = tf.math.log(tf.maximum(number, tf.constant(1e-300, tf.float64))) / math.log(2.0)
    return tf.clip_by_value(logarithm * BINS_PER_OCTAVE + MIDDLE, 0.0, BINS - 1e-6)


def p_value(above: tf.Tensor, weight: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """The probability of a number at least this large.

    Args:
        above: (..., BINS + 1), the histogram.
        weight: (...) float64, of all numbers so far, also of those that are not above 0.
        number: (...) float64.

    Returns:
        (...) float64 in [SMALLEST_P, 1]; 1 for a number that is not above 0.
    """
    bins = tf.range(BINS + 1, dtype=tf.float64)
    sums = tf.cast(above, tf.float64)
    place = position(number)
    whole = tf.floor(place)
    here = _at(sums, bins, whole)
    next_ = _at(sums, bins, whole + 1.0)
    larger = next_ + (here - next_) * (1.0 - (place - whole))
    counted = (larger + 0.5) / (weight + 1.0)
    # The tail begins at the highest bin with at least the wanted weight above.
    wanted = tf.maximum(TAIL_SHARE * weight, TAIL_ROWS)
    inside = tf.cast(sums >= wanted[..., None], tf.float64)
    start = tf.maximum(tf.reduce_sum(inside, axis=-1) - 1.0, 0.0)
    tail = _at(sums, bins, start)
    beyond = tf.reduce_sum(tf.where(bins > start[..., None], sums, tf.zeros_like(sums)), axis=-1)
    mean_excess = tf.maximum(0.5 + beyond / tf.maximum(tail, 1e-30), SMALLEST_EXCESS)
    fitted = tail / (weight + 1.0) * tf.exp(-(place - start) / mean_excess)
    trust = larger / (larger + TRUSTED_ROWS)
    in_tail = trust * larger / (weight + 1.0) + (1.0 - trust) * fitted
    p = tf.where(tf.logical_and(whole >= start, tail > 0.0), in_tail, counted)
    p = tf.clip_by_value(p, SMALLEST_P, 1.0)
    return tf.where(number > 0.0, p, tf.ones_like(p))


def observe(above: tf.Tensor, number: tf.Tensor, kept: float) -> tf.Tensor:
    """The histogram after one more number.

    Args:
        above: (..., BINS + 1).
        number: (...) float64.
        kept: the share of their weight that the numbers before keep.
    """
    whole = tf.floor(position(number))
    covered = tf.logical_and(tf.range(BINS + 1, dtype=tf.float64) <= whole[..., None], (number > 0.0)[..., None])
    return above * tf.constant(kept, tf.float32) + tf.cast(covered, tf.float32)


def _at(sums: tf.Tensor, bins: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """The entry at a place of the last axis, without a gather: inside a compiled loop a masked sum is faster."""
    return tf.reduce_sum(tf.where(bins == place[..., None], sums, tf.zeros_like(sums)), axis=-1)
