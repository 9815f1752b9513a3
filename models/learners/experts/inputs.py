"""The columns of a learner as its signatures take them, and as its experts want them.

Beside its own columns a record may bring what was known when it happened: the last label that had become known and the record
that it belongs to (`transforms.label_context`). So a version that is learnt every few hundred records knows the labels up to
the record, as one that is learnt at every record would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from models.learners.experts.standardiser import Standardiser, clipped
from models.naming import input_names

CONTEXT = "known_labels"  # the column that `transforms.label_context` adds
HASH_BUCKETS = 16  # columns that a text column becomes


class Encoded(NamedTuple):
    """Rows as the experts want them, float32.

    Attributes:
        z: (rows, width) in standard deviations; numeric columns, then the buckets of text columns.
        context: (rows, k) what is known of labels; k is 0 without.
        filled: (rows, width) the columns as they came, none missing: thresholds in them stay while statistics move.
    """

    z: tf.Tensor
    context: tf.Tensor
    filled: tf.Tensor

    @property
    def plain(self) -> tf.Tensor:
        """The columns without far outliers."""
        return clipped(self.z)

    @property
    def with_context(self) -> tf.Tensor:
        """The columns without far outliers, and the context."""
        return tf.concat([clipped(self.z), self.context], axis=1)


class Inputs:
    """Names, types and encoding of a learner's inputs."""

    def __init__(
        self, features: tuple[str, ...], text_features: tuple[str, ...], label: str, label_type: tf.DType, label_columns: int
    ) -> None:
        """Describes the inputs.

        Args:
            features: numeric columns.
            text_features: columns of text; their values are hashed.
            label: the label column.
            label_type: its type.
            label_columns: what a record brings of labels that were known (`context_width` without the last record's columns);
                0 for records that bring nothing.
        """
        names = input_names((*features, *text_features, label))
        self.numeric, self.text, self.label = names[: len(features)], names[len(features) : -1], names[-1]
        self.label_type, self._label_columns = label_type, label_columns
        self.width = len(self.numeric) + HASH_BUCKETS * len(self.text)
        self.context_width = label_columns + self.width if label_columns else 0

    def specs(self) -> dict[str, tf.TensorSpec]:
        """Of the columns to predict from."""
        specs = {name: tf.TensorSpec([None], tf.float32, name=name) for name in self.numeric}
        specs |= {name: tf.TensorSpec([None], tf.string, name=name) for name in self.text}
        if self._label_columns:
            given = self._label_columns + len(self.numeric)
            specs[CONTEXT] = tf.TensorSpec([None, given], tf.float32, name=CONTEXT)
        return specs

    def label_spec(self) -> dict[str, tf.TensorSpec]:
        return {self.label: tf.TensorSpec([None], self.label_type, name=self.label)}

    def columns(self, given: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """(rows, width) float32: numeric columns as they are, text as one-hot buckets of its hash."""
        parts = [tf.stack([given[name] for name in self.numeric], axis=1)] if self.numeric else []
        for name in self.text:
            parts.append(tf.one_hot(tf.strings.to_hash_bucket_fast(given[name], HASH_BUCKETS), HASH_BUCKETS))
        return tf.concat(parts, axis=1)

    def encoded(
        self,
        given: Mapping[str, tf.Tensor],
        x: tf.Tensor,
        standardiser: Standardiser,
        of_label: Standardiser | None = None,
    ) -> Encoded:
        """The rows for the experts.

        Args:
            given: the inputs by name.
            x: what `columns` gave for them.
            standardiser: of those columns.
            of_label: of the label, where it is a number to be estimated.
        """
        z = standardiser.standardised(x)
        if not self._label_columns:
            return Encoded(z, tf.zeros_like(z[:, :0]), standardiser.filled(x))
        known = given[CONTEXT]
        # How far the record is from the last one whose label is known; as if it were that one where there is none.
        then = tf.concat([known[:, self._label_columns :], x[:, len(self.numeric) :]], axis=1)
        step = tf.where(tf.math.is_finite(then), z - standardiser.standardised(then), tf.zeros_like(z))
        labels = known[:, : self._label_columns]
        if of_label is not None:
            labels = tf.reshape(clipped(of_label.standardised(tf.reshape(labels, (-1, 1)))), tf.shape(labels))
        return Encoded(z, tf.concat([labels, clipped(step)], axis=1), standardiser.filled(x))
