"""What is usual at this time of the season: a running mean for each phase, and for each phase and kind of day.

Two profiles are kept. The finer one tells kinds of day apart (workday or weekend) and is used where it has seen that phase
twice; the coarser one, over all days, fills in; where it has seen nothing either, the long-run level does.

Arrays are over keys and lanes, `(keys, lanes, ...)`; the lanes of a key share its clock.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from models.anomaly.clock import PHASES

KINDS = 2  # of days
SLOWEST = 1.0 / 40.0  # a phase follows at least this fast: it remembers some 40 seasons
FAMILIAR = 1.0  # the finer profile is used once it has seen a phase more often than this


class Profile(NamedTuple):
    """The profiles of a block of keys."""

    mean: tf.Tensor  # (keys, lanes, KINDS * PHASES) float64
    seen: tf.Tensor  # (keys, 1, KINDS * PHASES) float64, rows
    all_mean: tf.Tensor  # (keys, lanes, PHASES) float64, over all kinds of day
    all_deviation: tf.Tensor  # (keys, lanes, PHASES) float64, mean absolute
    all_seen: tf.Tensor  # (keys, 1, PHASES) float64, rows


class Expected(NamedTuple):
    """What the profiles say of one row of each key."""

    fine: tf.Tensor  # (keys, lanes)
    coarse: tf.Tensor  # (keys, lanes)
    deviation: tf.Tensor  # (keys, lanes); of the coarse one
    seen: tf.Tensor  # (keys, 1), rows of this phase so far
    fine_seen: tf.Tensor  # (keys, 1), rows of this phase and kind so far


def empty(keys: int, lanes: int) -> Profile:
    """Profiles that have seen nothing."""
    zeros = lambda *shape: tf.zeros(shape, tf.float64)  # noqa: E731
    fine = KINDS * PHASES
    return Profile(
        zeros(keys, lanes, fine),
        zeros(keys, 1, fine),
        zeros(keys, lanes, PHASES),
        zeros(keys, lanes, PHASES),
        zeros(keys, 1, PHASES),
    )


def expected(profile: Profile, phase: tf.Tensor, kind: tf.Tensor, level: tf.Tensor) -> Expected:
    """What is usual now.

    Args:
        profile: of the keys.
        phase, kind: (keys,) int32.
        level: (keys, lanes), what to expect where nothing is known.
    """
    here, here_fine = _places(phase, kind)
    seen, fine_seen = _pick(profile.all_seen, here), _pick(profile.seen, here_fine)
    coarse = tf.where(seen > 0.0, _pick(profile.all_mean, here), level)
    fine = tf.where(fine_seen > FAMILIAR, _pick(profile.mean, here_fine), coarse)
    return Expected(fine, coarse, _pick(profile.all_deviation, here), seen, fine_seen)


def learn(profile: Profile, phase: tf.Tensor, kind: tf.Tensor, now: Expected, x: tf.Tensor, surprise: tf.Tensor) -> Profile:
    """The profiles after one more row of each key.

    Args:
        profile: before it.
        phase, kind: (keys,) int32.
        now: what was expected.
        x: (keys, lanes).
        surprise: (keys, lanes), `x - now.fine`, cut off where a single row should not move the profile any farther.
    """
    here, here_fine = _places(phase, kind)
    rate = tf.maximum(1.0 / (now.seen + 1.0), SLOWEST)
    error = x - now.coarse
    all_mean = tf.where(now.seen > 0.0, now.coarse + rate * error, x)
    deviation = tf.where(now.seen > 0.0, now.deviation + rate * (tf.abs(error) - now.deviation), tf.zeros_like(x))
    fine_rate = tf.maximum(1.0 / (now.fine_seen + 1.0), SLOWEST)
    begun = tf.where(now.seen > 0.0, now.fine + 0.5 * (x - now.fine), x)  # half way from what other days say
    mean = tf.where(now.fine_seen > 0.0, now.fine + fine_rate * surprise, begun)
    return Profile(
        tf.where(here_fine, mean[..., None], profile.mean),
        profile.seen + tf.cast(here_fine, tf.float64),
        tf.where(here, all_mean[..., None], profile.all_mean),
        tf.where(here, deviation[..., None], profile.all_deviation),
        profile.all_seen + tf.cast(here, tf.float64),
    )


def _places(phase: tf.Tensor, kind: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Masks over the phases: (keys, 1, PHASES) and (keys, 1, KINDS * PHASES)."""
    here = tf.range(PHASES)[None, None, :] == phase[:, None, None]
    here_fine = tf.range(KINDS * PHASES)[None, None, :] == (phase + kind * PHASES)[:, None, None]
    return here, here_fine


def _pick(table: tf.Tensor, here: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.where(here, table, tf.zeros_like(table)), axis=-1)
