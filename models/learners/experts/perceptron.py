"""A small perceptron that rehearses from the memory with Adam.

References:
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015 (see `models.learners.adam`).
    Lin, "Self-improving reactive agents ...", 1992 (experience replay).
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from models.learners.adam import Adam
from models.learners.experts.memory import Memory


class Perceptron(tf.Module):
    """One hidden layer of rectified units."""

    def __init__(self, width: int, hidden: int, outputs: int, *, learning_rate: float, seed: int) -> None:
        super().__init__(name="perceptron")
        self._seed = seed
        limit = (6.0 / (width + hidden)) ** 0.5  # Glorot's uniform; the last layer begins at zero
        start = tf.random.stateless_uniform((width, hidden), (seed, 0), -limit, limit)
        self.weights = [tf.Variable(start, name="weight_0"), tf.Variable(tf.zeros((hidden, outputs)), name="weight_1")]
        self.biases = [tf.Variable(tf.zeros(hidden), name="bias_0"), tf.Variable(tf.zeros(outputs), name="bias_1")]
        self.optimiser = Adam([*self.weights, *self.biases], learning_rate)

    def outputs(self, encoded: tf.Tensor) -> tf.Tensor:
        """(rows, outputs) for (rows, width)."""
        hidden = tf.nn.relu(tf.matmul(encoded, self.weights[0]) + self.biases[0])
        return tf.matmul(hidden, self.weights[1]) + self.biases[1]

    def learn(
        self,
        memory: Memory,
        encode: Callable[[tf.Tensor], tf.Tensor],
        loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        *,
        steps: int,
        batch_rows: int,
    ) -> tf.Tensor:
        """Takes some steps on rows drawn from the memory; gives the last one's mean loss.

        Args:
            memory: rows and targets.
            encode: turns rows of the memory into (rows, width).
            loss: (rows,) of (rows, k) targets and (rows, outputs).
            steps: of Adam.
            batch_rows: rows drawn for a step.
        """
        rows, targets = memory.drawn((steps * batch_rows,), self._seed)
        parts = tf.split(encode(rows), steps), tf.split(targets, steps)
        parameters = [*self.weights, *self.biases]
        mean = tf.zeros(())
        for encoded, target in zip(*parts, strict=True):
            with tf.GradientTape() as tape:
                mean = tf.reduce_mean(loss(target, self.outputs(encoded)))
            self.optimiser.apply(tape.gradient(mean, parameters))
        return mean
