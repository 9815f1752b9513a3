"""What happens in every block of rows: a step of EM that moves the clusters on, always the same operations on the same shapes.

Several blocks in a row are one program, so that XLA can compile them to one. It stops behind a block after which something
else is to be done (births, deaths, merges, splits: rare, and of shapes that are not known beforehand), and goes on from there.

References: see `models.learners.clusters`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from models.learners.cluster_births import may_be_born
from models.learners.cluster_changes import HARDLY, count_close, dying, mergeable, split_ready, watch_sides
from models.learners.cluster_shapes import covariances, moments, products, turn, widen, widened
from models.learners.cluster_state import SHAPE_ROWS, TINY, VARIANCE_FLOOR, Precision, State, assign

FIRST_BLOCKS = 4.0  # of a cluster's life, in which its shape follows its variance
SHAPE_RATE = 0.03  # a block, after that
ANCHOR_RATE = 0.1
SPEED_RATE = 0.1
VELOCITY_RATE = 0.15  # of an alpha-beta filter
MEAN_ROWS = 20.0  # that a cluster's expected place counts, against the rows of a block
PRIOR_ROWS = 3.0  # that it counts at the least
FARTHEST = 30.0  # standard deviations of a column from its mean; a value farther out is moved there
FARTHEST_AT_FIRST = 6.0  # in the first block, when an outlier would be much of what is known of its column
EM_STEPS = 2


class Swept(NamedTuple):
    """How many blocks were done, how many of their rows no cluster explains, and whether clusters may come or go now."""

    blocks: tf.Tensor
    far: tf.Tensor
    changes: tf.Tensor


@dataclass(frozen=True)
class Blocks:
    """Moves clusters on, block by block.

    Attributes:
        block_rows: of a block, at the most.
        blocks: of one call.
        half_life_rows: after so many rows a row counts half.
        limit: squared distance beyond which a row does not belong to a cluster.
    """

    block_rows: int
    blocks: int
    half_life_rows: int
    limit: float

    def number(self, rows: tf.Tensor) -> tf.Tensor:
        """() int32, so many blocks are so many rows."""
        return (rows + self.block_rows - 1) // self.block_rows

    def starts(self, rows: tf.Tensor, block: tf.Tensor) -> tf.Tensor:
        """(blocks + 1,) int32, the first row of this block and of those behind it; all are about as long."""
        ends = tf.cast(block + tf.range(self.blocks + 1), tf.int64)
        return tf.cast(tf.cast(rows, tf.int64) * ends // tf.cast(self.number(rows), tf.int64), tf.int32)

    def sweep(self, moving: State, x: tf.Tensor, rows: tf.Tensor, block: tf.Tensor) -> tuple[State, Swept]:
        """Moves the clusters on by some blocks, until something else is to be done.

        Args:
            moving: the clusters.
            x: (block_rows * blocks, width) rows from the beginning of the first block, padded.
            rows: () int32, so many there are in the whole window.
            block: () int32, the first block.

        Returns:
            The clusters, and how far it came.
        """
        places = self.starts(rows, block)
        starts = places - places[0]
        stop = tf.minimum(self.number(rows) - block, self.blocks)

        def more(block: tf.Tensor, far: tf.Tensor, changes: tf.Tensor, moving: State) -> tf.Tensor:
            del far, moving
            return (block < stop) & ~changes

        def one(
            block: tf.Tensor, far: tf.Tensor, changes: tf.Tensor, moving: State
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, State]:
            # By `gather`: what a slice begins at XLA takes for a constant, and compiles anew for every length of a window.
            start, end = tf.gather(starts, block), tf.gather(starts, block + 1)
            rows = tf.gather(x, start + tf.range(self.block_rows))
            count = end - start
            moving, rows, is_far = self.move(moving, rows, count)
            number = tf.reduce_sum(tf.cast(is_far, tf.int64))
            fresh = moving.far_fresh + number
            # Without a branch for blocks that have none: it is not slower, and XLA then lost a row of the block elsewhere.
            kept, held = self._keep(moving, rows, is_far, number)
            changes = changing(moving) | may_be_born(moving._replace(far_count=held, far_fresh=fresh))
            return block + 1, far + number, changes, moving._replace(far=kept, far_count=held, far_fresh=fresh)

        block, far, changes, moving = tf.while_loop(
            more, one, (tf.constant(0), tf.constant(0, tf.int64), tf.constant(False), moving)
        )
        return moving, Swept(block, far, changes)

    def move(self, state: State, x: tf.Tensor, count: tf.Tensor) -> tuple[State, tf.Tensor, tf.Tensor]:
        """One block.

        Args:
            state: the clusters.
            x: (block_rows, width).
            count: () int32, how many of them are rows.

        Returns:
            The clusters, the rows as they were taken, and which of them none explains (block_rows,).
        """
        valid = tf.range(self.block_rows) < count
        number = tf.cast(count, tf.float64)
        kept = tf.pow(tf.constant(0.5, tf.float64), number / self.half_life_rows)
        state, rows = self._observe(state, x, valid, number, kept)
        wide = widen(rows)
        expected = number * state.weight / tf.maximum(tf.reduce_sum(state.weight), TINY)
        place = state.mean + state.velocity
        mean = place
        precision = state.precision
        for _ in range(EM_STEPS):
            share, near = assign(state, wide, mean, precision, self.limit)
            share = share * tf.cast(valid, tf.float64)[:, None]
            came, middle = moments(share, wide)
            gain = (came / (came + MEAN_ROWS))[:, None]
            mean = tf.where(came[:, None] > 0.0, place + gain * (middle - place), place)
        fresh = covariances(share, wide, came, middle) + products(middle - mean)
        state = _follow(state, precision, came, middle, fresh, place, mean, gain)
        sides, axis = watch_sides(state, rows, share)
        state = state._replace(
            sides=sides,
            axis=axis,
            weight=state.weight * kept + came,
            missed=tf.where(came < HARDLY * expected, state.missed + expected, tf.zeros_like(expected)),
            age=state.age + 1.0,
        )
        return state._replace(close=count_close(state)), rows, ~near & valid

    def _observe(
        self, state: State, x: tf.Tensor, valid: tf.Tensor, number: tf.Tensor, kept: tf.Tensor
    ) -> tuple[State, tf.Tensor]:
        """Decayed moments of the columns, and the rows: what is missing counts as the mean, what is far out is drawn in."""
        rows = drawn_in(x, state)
        weights = tf.cast(valid, tf.float64)[:, None]
        before = state.column_weight * kept
        total = before + number
        mean = (before * state.column_mean + tf.reduce_sum(rows * weights, axis=0)) / total
        old = state.column_variance + (state.column_mean - mean) ** 2
        variance = (before * old + tf.reduce_sum((rows - mean) ** 2 * weights, axis=0)) / total
        return state._replace(column_weight=total, column_mean=mean, column_variance=variance), rows

    def _keep(self, state: State, rows: tf.Tensor, is_far: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Keeps rows that no cluster explains, behind those that are kept; the oldest go. Gives them, and how many they are."""
        room = state.far.shape[0]
        held = tf.range(room, dtype=tf.int64) < state.far_count
        all_rows, wanted = tf.concat([state.far, rows], axis=0), tf.concat([held, is_far], axis=0)
        total = state.far_count + number
        place = tf.cumsum(tf.cast(wanted, tf.int64)) - 1 - tf.maximum(total - room, 0)
        place = tf.where(wanted & (place >= 0), place, tf.constant(room, tf.int64))  # the others go to a row that is cut off
        far = tf.tensor_scatter_nd_update(tf.pad(state.far, [[0, 1], [0, 0]]), place[:, None], all_rows)[:room]
        return far, tf.minimum(total, room)


def changing(state: State) -> tf.Tensor:
    """Whether clusters die, merge or split now."""
    return tf.reduce_any(dying(state) | split_ready(state)) | tf.reduce_any(mergeable(state)[0])


def drawn_in(x: tf.Tensor, state: State) -> tf.Tensor:
    """Rows, taken into the frame. A missing value counts as the column's mean; one that is absurdly far out is drawn in."""
    deviations = tf.where(state.column_weight > 0.0, FARTHEST * tf.ones_like(state.column_weight), FARTHEST_AT_FIRST)
    farthest = deviations * tf.sqrt(state.column_floor)
    rows = (x - state.shift) / state.scale
    rows = tf.where(tf.math.is_nan(rows), state.column_mean, rows)
    return tf.clip_by_value(rows, state.column_mean - farthest, state.column_mean + farthest)


def _follow(
    state: State,
    precision: Precision,
    came: tf.Tensor,
    middle: tf.Tensor,
    fresh: tf.Tensor,
    place: tf.Tensor,
    mean: tf.Tensor,
    gain: tf.Tensor,
) -> State:
    """Moves the clusters on (the M step): what came, against what was expected."""
    some = ((came > 0.5) & state.alive)[:, None]
    off = middle - place
    velocity = tf.where(some, state.velocity + VELOCITY_RATE * gain * off, 0.9 * state.velocity)
    mean = tf.where(some, mean, state.mean)
    before = tf.minimum(state.weight, SHAPE_ROWS)[:, None] + PRIOR_ROWS
    number = came[:, None]
    spread = (before * state.spread + number * fresh) / (before + number)
    spread = widened(spread, state.width, tf.maximum(VARIANCE_FLOOR * state.column_floor - spread[:, : state.width], 0.0))
    spread = tf.where(some, spread, state.spread)
    speed = tf.sqrt(tf.maximum(tf.reduce_sum(velocity * turn(precision.terms, velocity), axis=1), 0.0))
    rate = tf.where(state.age < FIRST_BLOCKS, tf.ones_like(state.age), SHAPE_RATE * tf.ones_like(state.age))[:, None]
    return state._replace(
        velocity=velocity,
        mean=mean,
        spread=spread,
        speed=state.speed + SPEED_RATE * (speed - state.speed),
        anchor=state.anchor + ANCHOR_RATE * (mean - state.anchor),
        shape=tf.where(some, state.shape + rate * (precision.terms - state.shape), state.shape),
    )
