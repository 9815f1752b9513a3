"""A model for every key beside one for all: a new key starts on the common model and graduates to its own.

The common model, the parent, is a logistic regression on all rows. A key's own model is the parent plus a correction with a
prior of zero: with few labels it hardly differs, with many it is the key's own. A key graduates when it has had
`graduate_rows` labels and its own model was right lately at least as often as the parent; and goes back when it is not.

Memory is bounded and taken from the start: `max_keys` corrections with their curvature, (columns + 1)^2 + columns + 1 floats a
key (12.7 MiB for 4,096 keys of 27 columns). Keys beyond that stay on the parent and are counted.

References:
    Gelman and Hill, "Data Analysis Using Regression and Multilevel/Hierarchical Models", 2007, chapter 12 (partial pooling).
    The curvature: `models.learners.experts.logistic`.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from models.learners.experts.inputs import Inputs
from models.learners.experts.logistic import BLIND, SMALLEST_CURVATURE, LogisticExperts
from models.learners.experts.standardiser import Standardiser, clipped
from models.learners.signatures import named_signatures

PARENT_HALF_LIFE_ROWS = 4000.0
FREE = 0  # the fingerprint of a slot without a key


@dataclass(frozen=True)
class KeyedClassifierConfig:
    """Options of `KeyedClassifier`; two classes, 0 and 1.

    Attributes:
        features: names of the numeric columns.
        key: name of the column of text that names the key.
        label: name of the label column.
        classes: 2.
        max_keys: keys that may have a model of their own; 0 for none.
        graduate_rows: labels that a key must have had.
        prior_rows: how many rows the parent counts against a key's own.
        half_life_rows: after this many labels of its key, what a label said counts half.
        parent: whether a key's model begins with the parent's; False to see what keys can do alone.
        seed: nothing is drawn; every learner takes one.
    """

    features: tuple[str, ...]
    key: str = "key"
    label: str = "label"
    classes: int = 2
    max_keys: int = 4096
    graduate_rows: int = 5
    prior_rows: float = 2.0
    half_life_rows: float = 500.0
    parent: bool = True
    seed: int = 7

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("a KeyedClassifier wants at least one feature column")
        if self.classes != 2:
            raise ValueError(f"classes: a KeyedClassifier knows 2, got {self.classes}")


class KeyedClassifier(tf.Module):
    """See the module's docstring. `signatures()` gives what `tf.saved_model.save` wants."""

    def __init__(self, config: KeyedClassifierConfig) -> None:
        super().__init__(name="keyed_classifier")
        self._config = config
        self._inputs = Inputs(config.features, (config.key,), config.label, tf.int64, 0)
        width, keys = len(config.features), config.max_keys
        self.standardiser = Standardiser(width, 10_000.0, max_bins=1)
        self.common = LogisticExperts(width, 2, (PARENT_HALF_LIFE_ROWS,), "common")
        self.fingerprints = tf.Variable(tf.zeros(keys, tf.int64), name="fingerprints")
        self.used = tf.Variable(0, dtype=tf.int64, name="used")  # slots that have a key, the first ones
        self.refused = tf.Variable(0, dtype=tf.int64, name="refused")  # rows of keys that found no slot
        self.corrections = tf.Variable(tf.zeros((keys + 1, width + 1)), name="corrections")  # the last: of no key
        self.curvature = tf.Variable(tf.zeros((keys + 1, width + 1, width + 1)), name="curvature")
        self.labels = tf.Variable(tf.zeros(keys + 1), name="labels")  # decayed counts by slot: labels,
        self.own_right = tf.Variable(tf.zeros(keys + 1), name="own_right")  # how often its own model was right,
        self.parent_right = tf.Variable(tf.zeros(keys + 1), name="parent_right")  # and the parent

    def signatures(self) -> dict[str, object]:
        """`serving_default` predicts, `learn` learns; both take the columns by name, each of shape (rows,)."""
        return named_signatures(self._inputs, self._predict, self._learn)

    def _predict(self, given: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """`prediction` and `score` as other classifiers; `graduated` (rows,) int64: 1 where the key's own model spoke; and
        `key_labels` (rows,) float32, the decayed count of the labels that it has had."""
        slots = self._slots(self._prints(given))
        parent, own = self._odds(self._columns(given), slots)
        graduated = self._graduated(slots)
        score = tf.sigmoid(tf.where(graduated, own, parent))
        return {
            "prediction": tf.cast(score > 0.5, tf.int64),
            "score": score,
            "graduated": tf.cast(graduated, tf.int64),
            "key_labels": tf.gather(self.labels, slots),
        }

    def _learn(self, given: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Learns from labelled rows, in order; fails, and changes nothing, if a label is not 0 or 1."""
        labels = given[self._inputs.label]
        checks = [
            tf.debugging.assert_less(labels, tf.constant(2, tf.int64), "a label is not below 2, the number of classes"),
            tf.debugging.assert_non_negative(labels, "a label is negative"),
        ]
        with tf.control_dependencies(checks):
            target = tf.cast(labels, tf.float32)
            prints = self._prints(given)
            slots = self._slots(prints)
            parent, own = self._odds(self._columns(given), slots)
            said = tf.where(self._graduated(slots), own, parent)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=said))
        with tf.control_dependencies([loss]):
            self._admit(prints, slots)
            slots = self._slots(prints)
            self.standardiser.observe(self._numeric(given))
            x = self._columns(given)
            parent, own = self._odds(x, slots)
            self._count(slots, parent, own, target)
            self.common.learn(x[:, :-1], tf.stack([1.0 - target, target], axis=1))
            self._correct(slots, x, own, target)
        return {"loss": loss, "keys": tf.cast(self.used, tf.float32), "rows_without_slot": tf.cast(self.refused, tf.float32)}

    def _correct(self, slots: tf.Tensor, x: tf.Tensor, odds: tf.Tensor, target: tf.Tensor) -> None:
        """A Newton step for each key that has rows in the window."""
        config = self._config
        keys, place = tf.unique(slots)
        count = tf.size(keys)
        rows = tf.math.unsorted_segment_sum(tf.ones_like(target), place, count)
        kept = (0.5 ** (rows / config.half_life_rows))[:, None]
        p = tf.sigmoid(odds)
        of_label = (1.0 - BLIND) * tf.where(target > 0.5, p, 1.0 - p)
        seeing = of_label / (of_label + BLIND / 2.0)
        slope = tf.math.unsorted_segment_sum(((p - target) * seeing)[:, None] * x, place, count)
        bend = tf.maximum(p * (1.0 - p), SMALLEST_CURVATURE) * seeing
        outer = tf.math.unsorted_segment_sum(bend[:, None, None] * x[:, :, None] * x[:, None, :], place, count)
        curvature = kept[..., None] * tf.gather(self.curvature, keys) + outer
        before = tf.gather(self.corrections, keys)
        # The prior pulls to the parent, as much as some rows would that are undecided.
        prior = 0.25 * config.prior_rows
        system = curvature + prior * tf.eye(int(x.shape[1]))
        step = tf.linalg.cholesky_solve(tf.linalg.cholesky(system), (slope + prior * before)[..., None])[..., 0]
        free = tf.cast(keys < config.max_keys, tf.float32)[:, None]  # rows without a slot correct nothing
        self.corrections.scatter_nd_update(keys[:, None], (before - step) * free)
        self.curvature.scatter_nd_update(keys[:, None], curvature * free[..., None])

    def _count(self, slots: tf.Tensor, parent: tf.Tensor, own: tf.Tensor, target: tf.Tensor) -> None:
        keys, place = tf.unique(slots)
        count, ones = tf.size(keys), tf.ones_like(target)
        kept = 0.5 ** (tf.math.unsorted_segment_sum(ones, place, count) / self._config.half_life_rows)
        free = tf.cast(keys < self._config.max_keys, tf.float32)
        for variable, values in (
            (self.labels, ones),
            (self.own_right, tf.cast((own > 0) == (target > 0.5), tf.float32)),
            (self.parent_right, tf.cast((parent > 0) == (target > 0.5), tf.float32)),
        ):
            new = kept * tf.gather(variable, keys) + tf.math.unsorted_segment_sum(values, place, count)
            variable.scatter_nd_update(keys[:, None], new * free)

    def _graduated(self, slots: tf.Tensor) -> tf.Tensor:
        if not self._config.parent:
            return tf.gather(self.labels, slots) > 0.0
        enough = tf.gather(self.labels, slots) >= self._config.graduate_rows
        return tf.logical_and(enough, tf.gather(self.own_right, slots) >= tf.gather(self.parent_right, slots))

    def _odds(self, x: tf.Tensor, slots: tf.Tensor) -> tf.Tensor:
        """Log-odds of the parent and of the key's own model, (rows,) each."""
        both = self.common.log_odds(x[:, :-1])[0]
        parent = both[:, 1] - both[:, 0]
        correction = tf.reduce_sum(x * tf.gather(self.corrections, slots), axis=1)
        return parent, (parent + correction if self._config.parent else correction)

    def _numeric(self, given: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.stack([given[name] for name in self._inputs.numeric], axis=1)

    def _columns(self, given: dict[str, tf.Tensor]) -> tf.Tensor:
        """(rows, columns + 1): standardised, and the intercept."""
        z = clipped(self.standardiser.standardised(self._numeric(given)))
        return tf.concat([z, tf.ones_like(z[:, :1])], axis=1)

    def _prints(self, given: dict[str, tf.Tensor]) -> tf.Tensor:
        """(rows,) int64: the keys' fingerprints, never `FREE`."""
        return tf.strings.to_hash_bucket_fast(given[self._inputs.text[0]], 2**62) + 1

    def _slots(self, prints: tf.Tensor) -> tf.Tensor:
        """(rows,) int64: where each key's correction is; `max_keys` for a key without one."""
        same = tf.cast(prints[:, None] == self.fingerprints, tf.float32)
        none = 1.0 - tf.reduce_sum(same, axis=1, keepdims=True)
        return tf.argmax(tf.concat([same, none], axis=1), axis=1)

    def _admit(self, prints: tf.Tensor, slots: tf.Tensor) -> None:
        """Gives new keys the next free slots, in the order in which they came."""
        without = slots == self._config.max_keys
        new, _ = tf.unique(tf.boolean_mask(prints, without))
        room = tf.minimum(tf.size(new, tf.int64), self._config.max_keys - self.used)
        places = self.used + tf.range(room)
        self.fingerprints.scatter_nd_update(places[:, None], new[:room])
        self.used.assign_add(room)
        left = tf.reduce_sum(tf.cast(self._slots(prints) == self._config.max_keys, tf.int64))
        self.refused.assign_add(left)


LEARNER = (KeyedClassifier, KeyedClassifierConfig)
