"""The latest labelled rows, in a ring: what a learner rehearses from, compares with, and grows its trees on.

References:
    Lin, "Self-improving reactive agents based on reinforcement learning, planning and teaching", 1992 (experience replay).
"""

from __future__ import annotations

import tensorflow as tf


class Memory(tf.Module):
    """Holds the last `size` rows and their targets."""

    def __init__(self, size: int, width: int, targets: int) -> None:
        super().__init__(name="memory")
        self.size = size
        self.rows = tf.Variable(tf.zeros((size, width)), name="rows")
        self.targets = tf.Variable(tf.zeros((size, targets)), name="targets")
        self.rows_seen = tf.Variable(0, dtype=tf.int64, name="rows_seen")  # slot = rows seen modulo size

    def remember(self, rows: tf.Tensor, targets: tf.Tensor) -> None:
        """Adds (n, width) rows with their (n, targets) targets; of more than `size` only the last ones stay."""
        given = tf.shape(rows, out_type=tf.int64)[0]
        first = tf.maximum(given - self.size, 0)
        slots = tf.math.floormod(self.rows_seen + tf.range(first, given), self.size)
        self.rows.scatter_nd_update(slots[:, None], rows[first:])
        self.targets.scatter_nd_update(slots[:, None], targets[first:])
        self.rows_seen.assign_add(given)

    def filled(self) -> tf.Tensor:
        """() int64: how many of the slots hold a row; they are the first ones."""
        return tf.minimum(self.rows_seen, self.size)

    def in_use(self) -> tf.Tensor:
        """(size,) float32: 1 for a slot that holds a row, else 0."""
        return tf.cast(tf.range(self.size, dtype=tf.int64) < self.filled(), tf.float32)

    def ages(self) -> tf.Tensor:
        """(size,) float32: how many rows came after the one in each slot."""
        newest = tf.math.floormod(self.rows_seen - 1, self.size)
        return tf.cast(tf.math.floormod(newest - tf.range(self.size, dtype=tf.int64), self.size), tf.float32)

    def latest(self, count: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The last `count` rows, oldest first, their targets, and 1 for each that is one, else 0."""
        places = tf.range(-count, 0, dtype=tf.int64) + self.rows_seen
        slots = tf.math.floormod(places, self.size)
        return tf.gather(self.rows, slots), tf.gather(self.targets, slots), tf.cast(places >= 0, tf.float32)

    def drawn(self, shape: tuple[int, ...], seed: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows and targets drawn with replacement; the draw follows from the seed and from how many rows were seen."""
        stream = tf.stack([tf.constant(seed, tf.int64), self.rows_seen])
        slots = tf.random.stateless_uniform(shape, stream, 0, self.filled(), dtype=tf.int64)
        return tf.gather(self.rows, slots), tf.gather(self.targets, slots)
