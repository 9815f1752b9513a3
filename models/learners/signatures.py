"""What `tf.saved_model.save` wants of a learner: its two functions with named columns."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from models.learners.experts.inputs import Inputs

Columns = dict[str, tf.Tensor]


def named_signatures(
    inputs: Inputs, predict: Callable[[Columns], Columns], learn: Callable[[Columns], Columns]
) -> dict[str, object]:
    """`serving_default` predicts, `learn` learns; both take the columns by name, each of shape (rows,).

    Args:
        inputs: names and types of the columns.
        predict: from the columns to the outputs by name.
        learn: from the columns and the label to figures.
    """
    specs = inputs.specs()

    @tf.function(autograph=False)
    def serving(**given: tf.Tensor) -> Columns:
        return predict(given)

    @tf.function(autograph=False)
    def learning(**given: tf.Tensor) -> Columns:
        return learn(given)

    return {
        "serving_default": serving.get_concrete_function(**specs),
        "learn": learning.get_concrete_function(**specs, **inputs.label_spec()),
    }
