"""Clusters that die, merge and split.

- One dies when rows that were expected of it stay away: `GONE_ROWS` expected and hardly one came, which by chance happens once
  in e^12 times (Poisson). If it was on top of another cluster by then, it has merged with it.
- Two merge when they have stood so close for a while that rows between them are as frequent as at their centres, and are not
  just crossing: then they have different velocities.
- One splits when its rows fall apart into two heaps along the direction in which they vary most. The direction comes from
  earlier rows than those it is tested with, so that it cannot be one that only chance made look like a gap.

The slower of two that merge keeps its id, and so does the part of a split that is nearer to where the cluster was.

References:
    Chang and Fisher, "Parallel sampling of DP mixture models using sub-cluster splits", NIPS 2013: two halves within each
    cluster that are kept up to date, to test for a split at no cost. Deviation: along one direction, and with forgetting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from models.learners.cluster_shapes import join, products, separations, squared_distances, turn, widen
from models.learners.cluster_state import DIED, MERGED, SPLIT, TINY, State, Told

GONE_ROWS = 12.0
HARDLY = 0.2  # of the expected rows; noise still falls where a cluster was
LEAST_WEIGHT = 2.0
ON_TOP = 3.0  # deviations apart, of a dying cluster and the one it has merged with
ONE_HEAP = 2.8  # deviations apart: two normal distributions have hardly a valley between them
CLOSE_BLOCKS = 4.0  # so long they must stand so close; young ones one block
YOUNG_BLOCKS = 2.0
SETTLED_BLOCKS = 8.0  # of a younger cluster the velocity is not known
CROSSING_SPEED = 0.3  # deviations a block, between two that cross
TWO_HEAPS = 3.7  # deviations apart: halves of a normal distribution are 2.65, of a uniform one 3.46
SIDE_ROWS = 15.0  # on the smaller side at least
SIDES_KEPT = 0.5  # of the counts on either side, a block; older rows, from before the heaps were so far apart, fill the gap
AXIS_KEPT = 0.5
LEAST_WITHIN = 0.02  # of a part's variance along the axis, as a share of what the cluster had


def dying(state: State) -> tf.Tensor:
    """Which clusters are gone (slots,) bool."""
    return state.alive & ((state.missed > GONE_ROWS) | (state.weight < LEAST_WEIGHT))


def deaths(state: State, told: Told) -> tuple[State, Told]:
    """Frees the slots of clusters that are gone."""
    gone = dying(state)
    apart = separations(state.mean, state.spread, state.precision.terms, state.alive)
    apart = tf.where(gone[None], tf.constant(float("inf"), tf.float64), apart)

    def one(slot: tf.Tensor, id: tf.Tensor, told: Told) -> tuple[tf.Tensor, Told]:
        other, mine = tf.argmin(apart[slot]), id[slot]
        merged = apart[slot, other] < ON_TOP
        swap = merged & (state.speed[slot] < state.speed[other]) & (state.age[slot] > SETTLED_BLOCKS)
        kept, lost = (tf.where(swap, mine, id[other]), tf.where(swap, id[other], mine))
        id = _put(id, [slot, other], tf.where(merged, [lost, kept], [mine, id[other]]))
        kind = tf.where(merged, tf.constant(MERGED, tf.int64), tf.constant(DIED, tf.int64))
        return id, told.note(kind, tf.where(merged, kept, mine), tf.where(merged, lost, mine))

    id, told = _each(tf.where(gone)[:, 0], one, state.id, told)
    return state._replace(id=id).clear(gone), told


def count_close(state: State) -> tf.Tensor:
    """For how many blocks pairs of clusters have stood so close that they may be one: the new `close`."""
    near, _ = _near(state)
    return tf.where(near, state.close + 1.0, tf.zeros_like(state.close))


def _near(state: State) -> tuple[tf.Tensor, tf.Tensor]:
    precision = state.precision.terms
    apart = separations(state.mean, state.spread, precision, state.alive)
    passing = squared_distances(widen(state.velocity), state.velocity, precision)
    moving = passing + tf.transpose(passing) > 2.0 * CROSSING_SPEED**2
    younger = tf.minimum(state.age[:, None], state.age)
    return (apart < ONE_HEAP) & (~moving | (younger <= SETTLED_BLOCKS)), apart


def mergeable(state: State) -> tuple[tf.Tensor, tf.Tensor]:
    """Which pairs are one cluster by now (slots, slots), and how far apart all are."""
    near, apart = _near(state)
    younger = tf.minimum(state.age[:, None], state.age)
    return near & ((state.close >= CLOSE_BLOCKS) | (younger <= YOUNG_BLOCKS)), apart


def merges(state: State, told: Told) -> tuple[State, Told]:
    """Merges pairs, the closest first, each cluster at most once a block."""
    ready, apart = mergeable(state)
    slots = state.slots

    def more(ready: tf.Tensor, state: State, told: Told) -> tf.Tensor:
        del state, told
        return tf.reduce_any(ready)

    def one(ready: tf.Tensor, state: State, told: Told) -> tuple[tf.Tensor, State, Told]:
        open_ones = tf.where(ready, apart, tf.constant(float("inf"), tf.float64))
        place = tf.argmin(tf.reshape(open_ones, [-1]), output_type=tf.int32)
        first, second = place // slots, place % slots
        older = (state.age[first] > state.age[second]) | (
            (state.age[first] == state.age[second]) & (state.weight[first] >= state.weight[second])
        )
        settled = tf.minimum(state.age[first], state.age[second]) > SETTLED_BLOCKS
        keep_first = tf.where(settled, state.speed[first] < state.speed[second], older)
        kept, lost = tf.where(keep_first, first, second), tf.where(keep_first, second, first)
        told = told.note(MERGED, state.id[kept], state.id[lost])
        total, middle, spread = join(state.weight, state.mean, state.spread, kept, lost)
        part = state.weight[kept] / total
        velocity = part * state.velocity[kept] + (1.0 - part) * state.velocity[lost]
        state = state._replace(
            weight=_put(state.weight, [kept], total[None]),
            mean=_put(state.mean, [kept], middle[None]),
            spread=_put(state.spread, [kept], spread[None]),
            velocity=_put(state.velocity, [kept], velocity[None]),
        )
        gone = tf.range(slots) == lost
        touched = gone | (tf.range(slots) == kept)
        return ready & ~touched[:, None] & ~touched, state.clear(gone).forget_sides(touched), told

    _, state, told = tf.while_loop(more, one, (ready, state, told), maximum_iterations=slots)
    return state, told


def watch_sides(state: State, rows: tf.Tensor, share: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Counts the rows of each cluster on either side of its mean, and turns the axis to where its rows vary most.

    Args:
        state: with the means of this block.
        rows: (rows, width).
        share: (rows, slots).

    Returns:
        The new `sides` and `axis`.
    """
    slot = tf.argmax(share, axis=1)
    own = tf.one_hot(slot, share.shape[1], dtype=tf.float64) * tf.cast(share > 0.5, tf.float64)
    away = rows - tf.gather(state.mean, slot)
    axis = tf.gather(state.axis, slot)
    along = tf.reduce_sum(away * axis, axis=1)
    known = tf.cast(tf.reduce_any(axis != 0.0, axis=1), tf.float64)
    powers = tf.stack([tf.ones_like(along), along, along * along], axis=1) * known[:, None]
    above = tf.cast(along > 0.0, tf.float64)[:, None]
    sums = tf.matmul(own, tf.concat([powers * (1.0 - above), powers * above], axis=1), transpose_a=True)
    sides = SIDES_KEPT * state.sides + tf.reshape(sums, [share.shape[1], 2, 3])
    # A step of the power method on the rows' covariance against the shape, from any direction at the start.
    scale = tf.sqrt(state.shape[:, : state.width])
    along = tf.where(known > 0.0, along, tf.reduce_sum(away * tf.gather(scale, slot), axis=1))
    turned = turn(state.shape, tf.matmul(own, away * along[:, None], transpose_a=True)) / scale
    turned = turned / tf.maximum(tf.norm(turned, axis=1, keepdims=True), TINY)
    before = state.axis / scale
    before = before / tf.maximum(tf.norm(before, axis=1, keepdims=True), TINY)
    sign = tf.sign(tf.reduce_sum(turned * before, axis=1, keepdims=True) + TINY)
    turned = AXIS_KEPT * before + (1.0 - AXIS_KEPT) * turned * sign
    length = tf.norm(turned, axis=1, keepdims=True)
    return sides, tf.where(length > TINY, turned / tf.maximum(length, TINY) * scale, state.axis)


def split_ready(state: State) -> tf.Tensor:
    """Which clusters are two heaps (slots,) bool."""
    count = tf.maximum(state.sides[:, :, 0], TINY)
    middle = state.sides[:, :, 1] / count
    spread = tf.maximum(state.sides[:, :, 2] / count - middle * middle, 1e-6)
    apart = (middle[:, 1] - middle[:, 0]) / tf.reduce_mean(tf.sqrt(spread), axis=1)
    enough = tf.reduce_min(state.sides[:, :, 0], axis=1) >= SIDE_ROWS
    return state.alive & enough & (apart > TWO_HEAPS) & (state.age > YOUNG_BLOCKS)


def splits(state: State, told: Told) -> tuple[State, Told]:
    """Splits clusters that are two heaps, as far as there are free slots."""
    free = tf.where(~state.alive)[:, 0]
    chosen = tf.where(split_ready(state))[:, 0][: tf.size(free)]
    both = tf.stack([chosen, free[: tf.size(chosen)]], axis=1)

    def one(pair: tf.Tensor, state: State, told: Told) -> tuple[State, Told]:
        slot, new = pair[0], pair[1]
        axis, sides, spread = state.axis[slot], state.sides[slot], state.spread[slot]
        count = sides[:, 0]
        middle = sides[:, 1] / count
        total = tf.reduce_sum(count)
        was = tf.reduce_sum((state.anchor[slot] - state.mean[slot]) * axis)
        stays = tf.argmin(tf.abs(was - middle), output_type=tf.int32)
        parts = tf.stack([stays, 1 - stays])
        within = tf.reduce_sum(sides[:, 2] - middle * middle * count) / total
        # Two heaps of one shape vary along `covaries` and nowhere else more than each of them.
        covaries = turn(spread[None], axis[None])[0]
        varies = tf.maximum(tf.reduce_sum(covaries * axis), TINY)
        between = tf.clip_by_value(1.0 - within / varies, 0.0, 1.0 - LEAST_WITHIN)
        spread = spread - products(covaries) * between / varies
        spreads = tf.stack([spread, spread])
        means = state.mean[slot] + covaries / varies * tf.gather(middle, parts)[:, None]
        weights = state.weight[slot] * tf.gather(count, parts) / total
        told = told.note(SPLIT, state.id[slot], state.next_id)
        state = state._replace(
            mean=_put(state.mean, pair, means),
            anchor=_put(state.anchor, pair, means),
            weight=_put(state.weight, pair, weights),
            spread=_put(state.spread, pair, spreads),
            shape=_put(state.shape, pair, tf.gather(state.shape, [slot, slot])),
            velocity=_put(state.velocity, [new], state.velocity[slot][None]),
            speed=_put(state.speed, [new], state.speed[slot][None]),
            age=_put(state.age, [new], tf.zeros([1], tf.float64)),
            missed=_put(state.missed, [new], tf.zeros([1], tf.float64)),
            id=_put(state.id, [new], state.next_id[None]),
            next_id=state.next_id + 1,
        )
        places = tf.range(state.slots, dtype=tf.int64)
        return state.forget_sides((places == slot) | (places == new)), told

    return _each(both, one, state, told)


def _put(values: tf.Tensor, places: Sequence[tf.Tensor] | tf.Tensor, given: tf.Tensor) -> tf.Tensor:
    return tf.tensor_scatter_nd_update(values, tf.stack(places)[:, None], given)


def _each(items: tf.Tensor, do: Callable[..., tuple[Any, Told]], what: Any, told: Told) -> tuple[Any, Told]:
    """Takes `do` from one item to the next; there are few, and mostly none."""
    count = tf.shape(items)[0]

    def one(place: tf.Tensor, what: Any, told: Told) -> tuple[tf.Tensor, Any, Told]:
        return place + 1, *do(items[place], what, told)

    _, what, told = tf.while_loop(lambda place, *_: place < count, one, (tf.constant(0), what, told))
    return what, told
