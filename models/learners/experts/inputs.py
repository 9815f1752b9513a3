"""The columns of a learner as its signatures take them, and as its experts want them.

Beside its own columns a record may bring what was known when it happened (`transforms.label_context`): the last label that had
become known, the record that it belongs to, and what linear experts say that learnt all labels up to then. So a version that is
learnt every thousand records knows the labels up to the record, as one that is learnt at every record would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from models.learners.experts.online import OnlineExperts
from models.learners.experts.standardiser import Standardiser, clipped
from models.naming import input_names

CONTEXT = "known_labels"  # the column that `transforms.label_context` adds
KNOWN_VALUES = 16  # of a text column that have a column each: the first ones that come
HASH_BUCKETS = 8  # columns that share all other values
LABEL_RATES = 2  # decayed rates of the labels, or means, beside the last label itself


class KnownLabels(NamedTuple):
    """What the context of a record holds, in this order: `labels`, the answers of `online`, the last known record's columns.

    Attributes:
        labels: columns of the last label and its rates.
        online: the experts; every answer of theirs is a column.
    """

    labels: int
    online: OnlineExperts

    @classmethod
    def of(cls, features: int, classes: int) -> KnownLabels:
        """The context of records with so many numeric columns; 0 classes where the label is a number."""
        labels = (classes or 1) * (1 + LABEL_RATES)
        return cls(labels, OnlineExperts(features, labels, classes))

    @property
    def answers(self) -> int:
        """Columns that the experts' answers are."""
        return self.online.experts * self.online.outputs

    @property
    def width(self) -> int:
        """All columns together."""
        return self.labels + self.answers + self.online.width


class Encoded(NamedTuple):
    """Rows as the experts want them, float32.

    Attributes:
        z: (rows, width) in standard deviations; numeric columns, then those of text columns.
        context: (rows, k) what is known of labels; k is 0 without.
        filled: (rows, width) the columns as they came, none missing: thresholds in them stay while statistics move.
        answers: (rows, experts, outputs) of `models.learners.experts.online`, no experts without context.
    """

    z: tf.Tensor
    context: tf.Tensor
    filled: tf.Tensor
    answers: tf.Tensor

    @property
    def plain(self) -> tf.Tensor:
        """The columns without far outliers."""
        return clipped(self.z)

    @property
    def with_context(self) -> tf.Tensor:
        """The columns without far outliers, and the context."""
        return tf.concat([clipped(self.z), self.context], axis=1)


class Inputs(tf.Module):
    """Names, types and encoding of a learner's inputs.

    What text columns hold is learnt: the first values that come have a column each, and share none with another. The vocabulary
    is a variable, so it is of one version with the weights of its columns.
    """

    def __init__(
        self,
        features: tuple[str, ...],
        text_features: tuple[str, ...],
        label: str,
        label_type: tf.DType,
        known: KnownLabels | None,
    ) -> None:
        """Describes the inputs.

        Args:
            features: numeric columns.
            text_features: columns of text; their values are hashed.
            label: the label column.
            label_type: its type.
            known: what a record brings of labels that were known; None for records that bring nothing.
        """
        super().__init__(name="inputs")
        names = input_names((*features, *text_features, label))
        self.numeric, self.text, self.label = names[: len(features)], names[len(features) : -1], names[-1]
        self.label_type, self._known = label_type, known
        self.width = len(self.numeric) + (KNOWN_VALUES + HASH_BUCKETS) * len(self.text)
        # By text column; an empty text where there is no value yet.
        empty = [tf.fill([KNOWN_VALUES], "") for _ in self.text]
        self.values = [tf.Variable(none, name=f"values_{place}") for place, none in enumerate(empty)]
        self.context_width = known.labels + self.width if known is not None else 0

    def specs(self) -> dict[str, tf.TensorSpec]:
        """Of the columns to predict from."""
        specs = {name: tf.TensorSpec([None], tf.float32, name=name) for name in self.numeric}
        specs |= {name: tf.TensorSpec([None], tf.string, name=name) for name in self.text}
        if self._known is not None:
            specs[CONTEXT] = tf.TensorSpec([None, self._known.width], tf.float32, name=CONTEXT)
        return specs

    def label_spec(self) -> dict[str, tf.TensorSpec]:
        return {self.label: tf.TensorSpec([None], self.label_type, name=self.label)}

    def columns(self, given: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """(rows, width) float32: numeric columns as they are, text one-hot, as a known value or as a bucket of its hash."""
        parts = [tf.stack([given[name] for name in self.numeric], axis=1)] if self.numeric else []
        for name, values in zip(self.text, self.values, strict=True):
            known = tf.cast(_same(given[name], values), tf.float32)
            other = 1.0 - tf.reduce_sum(known, axis=1, keepdims=True)
            parts += [known, other * tf.one_hot(tf.strings.to_hash_bucket_fast(given[name], HASH_BUCKETS), HASH_BUCKETS)]
        return tf.concat(parts, axis=1)

    def observed(self, given: Mapping[str, tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        """Takes new values of text columns into the vocabulary, in the order in which they come, while there is room.

        Returns:
            What `columns` gives now; without text that is what it gave before, `x`.
        """
        for name, values in zip(self.text, self.values, strict=True):
            came = tf.unique(given[name]).y
            new = tf.boolean_mask(came, ~tf.reduce_any(_same(came, values), axis=1) & (came != ""))
            used = tf.reduce_sum(tf.cast(values != "", tf.int32))
            new = new[: KNOWN_VALUES - used]
            values.scatter_nd_update(used + tf.range(tf.size(new))[:, None], new)
        return self.columns(given) if self.text else x

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
        if self._known is None:
            return Encoded(z, tf.zeros_like(z[:, :0]), standardiser.filled(x), tf.zeros_like(z[:, :0, None]))
        labels, answers, then = tf.split(given[CONTEXT], [self._known.labels, self._known.answers, len(self.numeric)], axis=1)
        # How far the record is from the last one whose label is known; as if it were that one where there is none.
        then = tf.concat([then, x[:, len(self.numeric) :]], axis=1)
        step = tf.where(tf.math.is_finite(then), z - standardiser.standardised(then), tf.zeros_like(z))
        answers = tf.reshape(answers, (-1, self._known.online.experts, self._known.online.outputs))
        if of_label is not None:
            labels, answers = (
                tf.reshape(clipped(of_label.standardised(tf.reshape(part, (-1, 1)))), tf.shape(part))
                for part in (labels, answers)
            )
        return Encoded(z, tf.concat([labels, clipped(step)], axis=1), standardiser.filled(x), answers)


def _same(texts: tf.Tensor, values: tf.Variable) -> tf.Tensor:
    """(texts, values) bool: which value each text is; an empty one is none."""
    return (texts[:, None] == values) & (texts != "")[:, None]
