"""Clusters that come and go: an incremental mixture of normal distributions whose number follows the stream.

Each block of rows is shared out among the clusters where they are expected to be (a step of EM), and moves their decayed
moments on. Rows that no cluster explains are kept until they make new ones; clusters die, merge and split by tests on what has
come since. A cluster keeps its id for life. Nothing here draws a random number: the same rows give the same clusters.

What predicts is a version from before: a row's cluster is the likeliest one at the place where it should be by now, or -1
(`NONE`) beyond the gate of all. Its distance is in standard deviations of that cluster, a root mean square over the columns.

References:
    Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", 1977.
    Song and Wang, "Highly efficient incremental estimation of Gaussian mixture models for online data stream clustering", SPIE
    5803, 2005: components of new data are matched with, merged into or added to those before. Deviations: variances by column
    instead of covariances, clusters have velocities (the alpha-beta filter of radar tracking), and forget by half-life.
    Births: `cluster_births`; deaths, merges and splits: `cluster_changes`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import tensorflow as tf

from models.learners.cluster_births import LEAST_ROWS, births
from models.learners.cluster_changes import (
    HARDLY,
    count_close,
    deaths,
    dying,
    mergeable,
    merges,
    split_ready,
    splits,
    watch_sides,
)
from models.learners.cluster_state import (
    FREE,
    KINDS,
    TINY,
    VARIANCE_FLOOR,
    ClusterState,
    gate,
    moments,
    squared_distances,
    widen,
)
from models.naming import input_names

NONE = FREE
FAR_ROWS = 384  # unexplained rows that are kept
FIRST_BLOCKS = 4.0  # of a cluster's life, in which its shape follows its variance
SHAPE_RATE = 0.03  # a block, after that
ANCHOR_RATE = 0.1
SPEED_RATE = 0.1
VELOCITY_RATE = 0.15  # of an alpha-beta filter
MEAN_ROWS = 20.0  # that a cluster's expected place counts, against the rows of a block
VARIANCE_ROWS = 300.0  # that a cluster's variance so far counts at the most
PRIOR_ROWS = 3.0  # that it counts at the least
FARTHEST = 30.0  # standard deviations of a column from its mean; a value farther out is moved there
FARTHEST_AT_FIRST = 6.0  # in the first block, when an outlier would be much of what is known of its column
EM_STEPS = 2

Move: TypeAlias = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


@dataclass(frozen=True)
class ClustersConfig:
    """Options of `Clusters`.

    Attributes:
        features: names of the numeric columns; their scales do not matter.
        half_life_rows: after this many rows of the stream a row counts half.
        max_clusters: at the same time.
        block_rows: rows that are learnt at once; a longer window is learnt in pieces of about this size.
        gate_deviations: how unlikely a row must be, in deviations of a normal distribution, to belong to no cluster.
        compiled: whether a block's operations become one by XLA: a third of the time a row, some seconds more at the start.
        seed: without effect, as nothing is drawn; every learner has it.
    """

    features: tuple[str, ...]
    half_life_rows: int = 2000
    max_clusters: int = 32
    block_rows: int = 256
    gate_deviations: float = 4.0
    compiled: bool = True
    seed: int = 7

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("Clusters want at least one feature column")
        input_names(self.features)  # refuses names that TensorFlow cannot tell apart
        for name in ("half_life_rows", "max_clusters", "block_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if not self.gate_deviations > 0:
            raise ValueError(f"gate_deviations: expected more than 0, got {self.gate_deviations}")


class Clusters(tf.Module):
    """See the module's docstring. `signatures()` gives what `tf.saved_model.save` wants."""

    def __init__(self, config: ClustersConfig) -> None:
        super().__init__(name="clusters")
        self._config = config
        self._limit = gate(len(config.features), config.gate_deviations)
        self.state = ClusterState(config.max_clusters, len(config.features), FAR_ROWS)

    def signatures(self) -> dict[str, object]:
        """`serving_default` predicts, `learn` learns; both take the columns by name, each of shape (rows,)."""
        names = input_names(self._config.features)
        columns = {name: tf.TensorSpec([None], tf.float64, name=name) for name in names}

        @tf.function(autograph=False)
        def predict(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.predict(tf.stack([given[name] for name in names], axis=1))

        move = tf.function(self._move, autograph=False, jit_compile=True) if self._config.compiled else self._move

        @tf.function(autograph=False)
        def learn(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.learn(tf.stack([given[name] for name in names], axis=1), move)

        return {
            "serving_default": predict.get_concrete_function(**columns),
            "learn": learn.get_concrete_function(**columns),
        }

    def predict(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """Finds the cluster of each row.

        Args:
            x: (rows, features) float64.

        Returns:
            `cluster` (rows,) int64, an id or -1; `distance` (rows,) float32, from the centre of that cluster, or of the nearest
            one if it is none's, in standard deviations (root mean square over the columns); -1 while there is no cluster.
        """
        state = self.state
        wide = widen(self._framed(x))
        mean = state.mean + state.ahead * state.velocity
        score, reach = state.scores(wide, mean, state.variance, self._limit)
        squared = tf.where(state.alive, squared_distances(wide, mean, state.variance), tf.constant(float("inf"), tf.float64))
        near = tf.reduce_any(reach, axis=1)
        slot = tf.where(near, tf.argmax(score, axis=1), tf.argmin(squared, axis=1))
        distance = tf.sqrt(tf.gather(squared, slot, axis=1, batch_dims=1) / state.width)
        return {
            "cluster": tf.where(near, tf.gather(state.id, slot), tf.constant(NONE, tf.int64)),
            "distance": tf.cast(tf.where(tf.math.is_finite(distance), distance, -tf.ones_like(distance)), tf.float32),
        }

    def learn(self, x: tf.Tensor, move: Move | None = None) -> dict[str, tf.Tensor]:
        """Learns from rows, in order.

        Args:
            x: (rows, features) float64, at least one row.
            move: what is done in every block, if it was compiled.

        Returns:
            `clusters` () int64, how many there are now; `unexplained` () float64, the share of the rows that were none's; and
            the events, all (events,): `event_kind` (born, died, split, merged), `event_cluster`, and `event_other`: of a split
            the new id, of a merge the one that is no more, else the same id.
        """
        state = self.state
        rows = tf.shape(x)[0]
        blocks = (rows + self._config.block_rows - 1) // self._config.block_rows
        state.event_count.assign(0)
        state.ahead.assign(0.5 * tf.cast(blocks + 1, tf.float64))
        tf.cond(state.column_weight > 0.0, lambda: tf.constant(0), lambda: self._begin(x))

        def learn_block(block: tf.Tensor, far: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return block + 1, far + self._learn_block(
                x[rows * block // blocks : rows * (block + 1) // blocks], move or self._move
            )

        _, far = tf.while_loop(lambda block, far: block < blocks, learn_block, (0, 0))
        told = state.events[: state.event_count]
        return {
            "clusters": tf.reduce_sum(tf.cast(state.alive, tf.int64)),
            "unexplained": tf.cast(far, tf.float64) / tf.cast(rows, tf.float64),
            "event_kind": tf.gather(tf.constant(KINDS), told[:, 0]),
            "event_cluster": told[:, 1],
            "event_other": told[:, 2],
        }

    def _learn_block(self, x: tf.Tensor, move: Move) -> tf.Tensor:
        """Learns from some rows at once; returns how many of them no cluster explains."""
        state = self.state
        count = tf.shape(x)[0]
        padded = tf.pad(x, [[0, self._config.block_rows - count], [0, 0]])
        padded.set_shape([self._config.block_rows, state.width])
        rows, near, changes = move(padded, count)
        is_far = tf.logical_not(near) & (tf.range(self._config.block_rows) < count)
        number = tf.reduce_sum(tf.cast(is_far, tf.int32))
        tf.cond(number > 0, lambda: self._keep(tf.boolean_mask(rows, is_far)), lambda: tf.constant(0))
        tf.cond(changes | (state.far_fresh >= LEAST_ROWS), self._change, lambda: tf.constant(0))
        return number

    def _move(self, x: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """What happens in every block, the same operations on the same shapes.

        Args:
            x: (block_rows, features), padded.
            count: () int32, how many of them are rows.

        Returns:
            The rows in the frame, which of them a cluster explains (block_rows,), and whether something else is to be done.
        """
        state = self.state
        valid = tf.cast(tf.range(self._config.block_rows) < count, tf.float64)[:, None]
        number = tf.cast(count, tf.float64)
        rows = self._framed(x)
        kept = tf.pow(tf.constant(0.5, tf.float64), number / self._config.half_life_rows)
        self._observe(rows, valid, number, kept)
        wide = widen(rows)
        expected = number * state.weight / tf.maximum(tf.reduce_sum(state.weight), TINY)
        place = state.mean + state.velocity
        mean = place
        for _ in range(EM_STEPS):
            share, near = state.assign(wide, mean, state.variance, self._limit)
            share = share * valid
            came, middle, square = moments(share, wide, state.width)
            gain = (came / (came + MEAN_ROWS))[:, None]
            mean = tf.where(came[:, None] > 0.0, place + gain * (middle - place), place)
        self._follow(rows, share, came, middle, square, place, mean, gain)
        state.weight.assign(state.weight * kept + came)
        state.missed.assign(tf.where(came < HARDLY * expected, state.missed + expected, tf.zeros_like(expected)))
        state.age.assign_add(tf.ones_like(came))
        count_close(state)
        changes = tf.reduce_any(dying(state)) | tf.reduce_any(mergeable(state)[0]) | tf.reduce_any(split_ready(state))
        return rows, near, changes

    def _keep(self, far: tf.Tensor) -> tf.Tensor:
        """Keeps rows that no cluster explains."""
        state = self.state
        held = tf.concat([state.far[: state.far_count], far], axis=0)[-FAR_ROWS:]
        state.far[: tf.shape(held)[0]].assign(held)
        state.far_count.assign(tf.shape(held, tf.int64)[0])
        state.far_fresh.assign_add(tf.shape(far, tf.int64)[0])
        return tf.constant(0)

    def _follow(
        self,
        rows: tf.Tensor,
        share: tf.Tensor,
        came: tf.Tensor,
        middle: tf.Tensor,
        square: tf.Tensor,
        place: tf.Tensor,
        mean: tf.Tensor,
        gain: tf.Tensor,
    ) -> None:
        """Moves the clusters on (the M step): what came, against what was expected."""
        state = self.state
        some = ((came > 0.5) & state.alive)[:, None]
        off = middle - place
        state.velocity.assign(tf.where(some, state.velocity + VELOCITY_RATE * gain * off, 0.9 * state.velocity))
        state.mean.assign(tf.where(some, mean, state.mean))
        spread = tf.maximum(square - middle * middle, 0.0) + (middle - mean) ** 2
        before = tf.minimum(state.weight, VARIANCE_ROWS)[:, None] + PRIOR_ROWS
        number = came[:, None]
        variance = (before * state.variance + number * spread) / (before + number)
        variance = tf.maximum(variance, VARIANCE_FLOOR * state.column_floor)
        state.variance.assign(tf.where(some, variance, state.variance))
        speed = tf.norm(state.velocity / tf.sqrt(state.variance), axis=1)
        state.speed.assign(state.speed + SPEED_RATE * (speed - state.speed))
        state.anchor.assign(state.anchor + ANCHOR_RATE * (state.mean - state.anchor))
        rate = tf.where(state.age < FIRST_BLOCKS, tf.ones_like(state.age), SHAPE_RATE * tf.ones_like(state.age))[:, None]
        state.shape.assign(tf.where(some, state.shape * (state.variance / state.shape) ** rate, state.shape))
        watch_sides(state, rows, share)

    def _change(self) -> tf.Tensor:
        """Deaths, births, merges and splits."""
        state = self.state
        deaths(state)
        tf.cond(state.far_fresh >= LEAST_ROWS, lambda: births(state, self._limit), lambda: tf.constant(0))
        merges(state)
        splits(state)
        return tf.constant(0)

    def _begin(self, x: tf.Tensor) -> tf.Tensor:
        """Fixes the frame by the first rows: their medians, and how far nine in ten are from them."""
        known = tf.where(tf.math.is_finite(x), x, tf.zeros_like(x))
        ordered = tf.sort(known, axis=0)
        last = tf.shape(x)[0] - 1
        middle = ordered[last // 2]
        away = tf.sort(tf.abs(known - middle), axis=0)[last * 9 // 10]
        self.state.shift.assign(middle)
        self.state.scale.assign(tf.where(away > 0.0, away, tf.maximum(tf.abs(middle), 1.0)))
        return tf.constant(0)

    def _framed(self, x: tf.Tensor) -> tf.Tensor:
        """Rows in the frame. A missing value counts as the column's mean; one that is absurdly far out is drawn in."""
        state = self.state
        rows = (x - state.shift) / state.scale
        deviations = tf.where(state.column_weight > 0.0, FARTHEST * tf.ones_like(state.column_weight), FARTHEST_AT_FIRST)
        farthest = deviations * tf.sqrt(state.column_floor)
        rows = tf.where(tf.math.is_nan(rows), state.column_mean, rows)
        return tf.clip_by_value(rows, state.column_mean - farthest, state.column_mean + farthest)

    def _observe(self, rows: tf.Tensor, valid: tf.Tensor, number: tf.Tensor, kept: tf.Tensor) -> None:
        """Decayed moments of the columns."""
        state = self.state
        before = state.column_weight * kept
        total = before + number
        mean = (before * state.column_mean + tf.reduce_sum(rows * valid, axis=0)) / total
        old = state.column_variance + (state.column_mean - mean) ** 2
        state.column_variance.assign((before * old + tf.reduce_sum((rows - mean) ** 2 * valid, axis=0)) / total)
        state.column_mean.assign(mean)
        state.column_weight.assign(total)


LEARNER = (Clusters, ClustersConfig)
