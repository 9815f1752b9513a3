"""What `tf.saved_model.save` wants of a learner: its two functions with named columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import tensorflow as tf

from models.naming import input_names

Columns = dict[str, tf.Tensor]


class Described(Protocol):
    """Names and types of a learner's columns."""

    def specs(self) -> dict[str, tf.TensorSpec]:
        """Of the columns to predict from."""

    def label_spec(self) -> dict[str, tf.TensorSpec]:
        """Of the label."""


class NamedColumns:
    """Numeric columns, others with a type of their own, and a label; `numeric`, `others` and `label` are the inputs' names."""

    def __init__(self, numeric: tuple[str, ...], others: Mapping[str, tf.DType], label: str, label_type: tf.DType) -> None:
        names = input_names((*numeric, *others, label))
        self.numeric, self.others, self.label = names[: len(numeric)], names[len(numeric) : -1], names[-1]
        self._types, self._label_type = tuple(others.values()), label_type

    def specs(self) -> dict[str, tf.TensorSpec]:
        """Of the columns to predict from."""
        types = zip((*self.numeric, *self.others), (*[tf.float32] * len(self.numeric), *self._types), strict=True)
        return {name: tf.TensorSpec([None], kind, name=name) for name, kind in types}

    def label_spec(self) -> dict[str, tf.TensorSpec]:
        """Of the label."""
        return {self.label: tf.TensorSpec([None], self._label_type, name=self.label)}


def named_signatures(
    inputs: Described, predict: Callable[[Columns], Columns], learn: Callable[[Columns], Columns]
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
