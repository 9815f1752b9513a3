"""Adam as plain variables and operations, so that a SavedModel holds the optimiser too.

Keras' optimisers keep Python state that a loaded SavedModel does not bring back; these few lines do not.

References:
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1 with its default decay rates, in the order of
    computation that ends its section 2: the bias corrections scale the step, so epsilon is added to the uncorrected root.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

FIRST_DECAY = 0.9
SECOND_DECAY = 0.999
EPSILON = 1e-7


class Adam(tf.Module):
    """Updates its parameters in place; the slots are variables of the same shapes."""

    def __init__(self, parameters: Sequence[tf.Variable], learning_rate: float) -> None:
        super().__init__(name="adam")
        self._parameters = list(parameters)
        self._learning_rate = learning_rate
        self.first = [tf.Variable(tf.zeros_like(p), name=f"first_{i}") for i, p in enumerate(self._parameters)]
        self.second = [tf.Variable(tf.zeros_like(p), name=f"second_{i}") for i, p in enumerate(self._parameters)]
        self.steps = tf.Variable(0.0, name="steps")

    def apply(self, gradients: Sequence[tf.Tensor]) -> None:
        """Takes one step down the gradients, given in the order of the parameters."""
        step = self.steps.assign_add(1.0)
        scale = self._learning_rate * tf.sqrt(1.0 - SECOND_DECAY**step) / (1.0 - FIRST_DECAY**step)
        for parameter, first, second, gradient in zip(self._parameters, self.first, self.second, gradients, strict=True):
            first.assign(FIRST_DECAY * first + (1.0 - FIRST_DECAY) * gradient)
            second.assign(SECOND_DECAY * second + (1.0 - SECOND_DECAY) * gradient**2)
            parameter.assign_sub(scale * first / (tf.sqrt(second) + EPSILON))
