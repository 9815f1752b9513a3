"""How surprising a row of a series is, in nine ways, each against its own past, and all of them in one number.

The nine: off the season's profile, the same in logarithms, the same in units of what is usual at this time of the season; a
shift of the short against the long mean; a jerk (second difference); below all before; above all before; a lasting drift off
the profile; and a stay off it, which no single row of the last few interrupts. Each is a number from 0 up, and becomes a tail
probability p among its own earlier values (`models.anomaly.tails`). So there is nothing to tune to the units or the noise of a
series, and scores of different series mean the same. The surprise is a power mean of the nine -log10(p): one that screams
counts more than nine that murmur.

One lane is one series; arrays are `(keys, lanes, ...)`. All times are rows.

References:
    Ahmad, Lavin, Purdy and Agha, "Unsupervised real-time anomaly detection for streaming data", Neurocomputing 262, 2017
        (judging errors by their own distribution; values outside the range seen so far).
    Burnaev and Ishimtsev, "Conformalized density- and distance-based anomaly detection in time-series data", 2016.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

from models.anomaly import seasons, tails

# How much each way counts, in the order above: a jerk is what people call a spike; a stay says little that others do not.
WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.5, 1.0, 1.0, 1.0, 0.5)
CHANNELS = len(WEIGHTS)
WARM_UP_ROWS = 100  # nothing is scored before; the scale of the histograms is set then
HALF_LIFE_ROWS = 4000  # of the histograms
SHORT_RATE, LONG_RATE = 0.1, 0.0125  # of the two means whose difference is a shift
DRIFT_RATE = 0.03
LEVEL_RATE = 1.0 / 2000.0  # of the level and the spread
STAY_ROWS = 6  # of a stay off the profile
POWER = 4.0  # of the mean over the channels
TRUSTED_AFTER_ROWS = 200  # from then on a single row moves the profile by at most
LARGEST_ERROR = 6.0  # spreads
SPREAD_SHARE = 0.1  # of the spread is added to what may be next to 0 before something is divided by it
_TINY = 1e-9


class State(NamedTuple):
    """What is known of a block of lanes."""

    level: tf.Tensor  # (keys, lanes) float64, the running mean
    spread: tf.Tensor  # (keys, lanes) float64, the mean distance from it
    unit: tf.Tensor  # (keys, lanes) float64, the spread when the warm-up ended: the histograms' 1
    last: tf.Tensor  # (keys, lanes) float64, the value before
    last_but_one: tf.Tensor  # (keys, lanes) float64
    low: tf.Tensor  # (keys, lanes) float64, the smallest value
    high: tf.Tensor  # (keys, lanes) float64, the largest
    short: tf.Tensor  # (keys, lanes) float64, mean over some 10 rows
    long: tf.Tensor  # (keys, lanes) float64, mean over some 80 rows
    drift: tf.Tensor  # (keys, lanes) float64, mean distance off the profile over some 30 rows
    recent: tf.Tensor  # (keys, lanes, STAY_ROWS - 1) float64, distances off the profile of the rows before, newest first
    profile: seasons.Profile
    above: tf.Tensor  # (keys, lanes, CHANNELS, tails.BINS + 1) float32, the histograms


def empty(keys: int, lanes: int) -> State:
    """Lanes that have seen nothing."""
    zeros = {name: tf.zeros((keys, lanes), tf.float64) for name in State._fields[:-3]}
    recent = tf.zeros((keys, lanes, STAY_ROWS - 1), tf.float64)
    return State(**zeros, recent=recent, profile=seasons.empty(keys, lanes), above=tails.empty((keys, lanes, CHANNELS)))


def step(
    state: State, rows: tf.Tensor, weight: tf.Tensor, x: tf.Tensor, phase: tf.Tensor, kind: tf.Tensor
) -> tuple[State, tf.Tensor]:
    """Scores one row of each key, and learns it.

    Args:
        state: before it.
        rows: (keys, 1) float64, rows of the key before this one.
        weight: (keys, 1) float64, what is in the histograms.
        x: (keys, lanes) float64, finite.
        phase, kind: (keys,) int32, where in the season it is.

    Returns:
        The state after it, and the surprise, (keys, lanes) float64 from 0 up; 0 during the warm-up.
    """
    state = _begin(state, rows == 0.0, x)
    now = seasons.expected(state.profile, phase, kind, state.level)
    error, coarse_error = x - now.fine, x - now.coarse
    distance = tf.abs(error)
    short = state.short + tf.maximum(1.0 / (rows + 1.0), SHORT_RATE) * (x - state.short)
    long = state.long + tf.maximum(1.0 / (rows + 1.0), LONG_RATE) * (x - state.long)
    drift = state.drift + DRIFT_RATE * (coarse_error - state.drift)
    least = _TINY * tf.maximum(tf.abs(state.level), _TINY)
    unit = tf.where(rows == WARM_UP_ROWS, tf.maximum(state.spread, least), state.unit)
    one = tf.maximum(unit, _TINY * _TINY)
    small = SPREAD_SHARE * state.spread + least
    zero = tf.zeros_like(x)
    channels = tf.stack(
        [
            distance / one,
            tf.abs(tf.math.log((tf.abs(x) + small) / (tf.abs(now.fine) + small))),
            tf.where(now.seen > 1.0, tf.abs(coarse_error) / (now.deviation + small), zero),
            tf.abs(short - long) / one,
            tf.where(rows > 1.0, tf.abs(x - 2.0 * state.last + state.last_but_one) / one, zero),
            tf.maximum(state.low - x, 0.0) / one,
            tf.maximum(x - state.high, 0.0) / one,
            tf.abs(drift) / one,
            tf.minimum(distance, tf.reduce_min(state.recent, axis=-1)) / one,
        ],
        axis=-1,
    )
    warm = rows >= WARM_UP_ROWS
    p = tails.p_value(state.above, tf.broadcast_to(weight[..., None], tf.shape(channels)), channels)
    shares = tf.constant(WEIGHTS, tf.float64) / sum(WEIGHTS)
    surprise = tf.reduce_sum(shares * (-tf.math.log(p) / math.log(10.0)) ** POWER, axis=-1) ** (1.0 / POWER)
    above = tf.where(warm[..., None, None], tails.observe(state.above, channels, kept()), state.above)
    limit = tf.where(rows > TRUSTED_AFTER_ROWS, LARGEST_ERROR * state.spread, distance)
    profile = seasons.learn(state.profile, phase, kind, now, x, tf.clip_by_value(error, -limit, limit))
    rate = tf.maximum(1.0 / (rows + 1.0), LEVEL_RATE)
    level = state.level + rate * (x - state.level)
    learnt = State(
        level=level,
        spread=state.spread + rate * (tf.abs(x - level) - state.spread),
        unit=unit,
        last=x,
        last_but_one=state.last,
        low=tf.minimum(state.low, x),
        high=tf.maximum(state.high, x),
        short=short,
        long=long,
        drift=drift,
        recent=tf.concat([distance[..., None], state.recent[..., :-1]], axis=-1),
        profile=profile,
        above=above,
    )
    return learnt, tf.where(warm, surprise, zero)


def kept() -> float:
    """The share of their weight that earlier rows keep in the histograms with each new one."""
    return 0.5 ** (1.0 / HALF_LIFE_ROWS)


def _begin(state: State, first: tf.Tensor, x: tf.Tensor) -> State:
    """The first row of a key is its level, its range and its past."""
    names = ("level", "last", "last_but_one", "low", "high", "short", "long")
    return state._replace(**{name: tf.where(first, x, getattr(state, name)) for name in names})
