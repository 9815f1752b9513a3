"""Labels as codes from 0, and back."""

from __future__ import annotations

import tensorflow as tf


class Classes:
    """The classes of a classifier: integers from 0, or the labels of a vocabulary."""

    def __init__(self, count: int, vocabulary: tuple[str | int, ...] = ()) -> None:
        if count < 2:
            raise ValueError(f"classes: expected 2 or more, got {count}")
        if vocabulary and len(vocabulary) != count:
            raise ValueError(f"vocabulary: expected {count} labels, one a class, got {len(vocabulary)}")
        self._count, self._vocabulary = count, vocabulary
        self.type = tf.string if vocabulary and isinstance(vocabulary[0], str) else tf.int64

    def codes(self, labels: tf.Tensor) -> tuple[tf.Tensor, list[tf.Operation]]:
        """(rows,) int64, and what must hold of the labels before anything is changed."""
        if self._vocabulary:
            same = labels[:, None] == tf.constant(self._vocabulary, labels.dtype)
            known = tf.reduce_all(tf.reduce_any(same, axis=1))
            return tf.argmax(tf.cast(same, tf.int32), axis=1), [
                tf.debugging.Assert(known, ["a label is not one of", ", ".join(map(str, self._vocabulary))], name="known")
            ]
        return labels, [
            tf.debugging.assert_less(
                labels, tf.constant(self._count, tf.int64), f"a label is not below {self._count}, the number of classes"
            ),
            tf.debugging.assert_non_negative(labels, "a label is negative"),
        ]

    def labels(self, codes: tf.Tensor) -> tf.Tensor:
        """The inverse of `codes`."""
        return tf.gather(tf.constant(self._vocabulary, self.type), codes) if self._vocabulary else codes
