"""A model for every key beside one for all: a new key starts on the common model and graduates to its own.

The common model, the parent, is a logistic regression on all rows. A key's own model is the parent plus a correction with a
prior of zero: with few labels it hardly differs, with many it is the key's own. A key graduates when it has had
`graduate_rows` labels, and goes back while its own model was right clearly less often than the parent lately.

Memory is bounded and taken from the start: `max_keys` corrections with their curvature, for each class but the first
(columns + 1)^2 + columns + 1 floats a key (12.7 MiB for 4,096 keys of 27 columns and two classes). Keys beyond that stay on the
parent and are counted.

References:
    Gelman and Hill, "Data Analysis Using Regression and Multilevel/Hierarchical Models", 2007, chapter 12 (partial pooling).
    The curvature: `models.learners.experts.logistic`. Deviation: of more than two classes it is block-diagonal, and a step is
        classes / (2 (classes - 1)) of Newton's for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import tensorflow as tf

from models.learners.experts.classes import Classes
from models.learners.experts.keys import Keys
from models.learners.experts.logistic import BLIND, SMALLEST_CURVATURE, LogisticExperts
from models.learners.experts.standardiser import Standardiser, clipped
from models.learners.signatures import NamedColumns, named_signatures

PARENT_HALF_LIFE_ROWS = 4000.0
DOUBT = 0.5  # times the root of a key's labels: by so many fewer its own model may have been right, and still speaks
RATES_HALF_LIFE_ROWS = 4000.0  # of how often each class comes
AGES = (0, 5, 10, 20, 50, 100)  # the least labels of a key in each group of ages


@dataclass(frozen=True)
class KeyedClassifierConfig:
    """Options of `KeyedClassifier`.

    Attributes:
        features: names of the numeric columns.
        key: name of the column that names the key.
        whole_keys: keys are whole numbers, and not text.
        label: name of the label column: integers from 0 to classes - 1, or what the `vocabulary` holds.
        classes: number of classes, at least 2.
        vocabulary: the labels by class; empty for integers from 0.
        new_keys: who speaks for a key that has not graduated: the `parent`, the `prior` (how often each class came lately,
            whatever the record), or nobody (`abstain`: there is no prediction).
        max_keys: keys that may have a model of their own; 0 for none.
        graduate_rows: labels that a key must have had.
        prior_rows: how many rows the parent counts against a key's own.
        half_life_rows: after this many labels of its key, what a label said counts half.
        parent: whether a key's model begins with the parent's; False to see what keys can do alone.
        seed: nothing is drawn; every learner takes one.
    """

    features: tuple[str, ...]
    key: str = "key"
    whole_keys: bool = False
    label: str = "label"
    classes: int = 2
    vocabulary: tuple[str | int, ...] = ()
    new_keys: Literal["parent", "prior", "abstain"] = "parent"
    max_keys: int = 4096
    graduate_rows: int = 5
    prior_rows: float = 1.0
    half_life_rows: float = 500.0
    parent: bool = True
    seed: int = 7

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("a KeyedClassifier wants at least one feature column")
        if self.new_keys not in ("parent", "prior", "abstain"):
            raise ValueError(f"new_keys: expected parent, prior or abstain, got {self.new_keys!r}")
        for name in ("graduate_rows", "prior_rows", "half_life_rows"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")


class KeyedClassifier(tf.Module):
    """See the module's docstring. `signatures()` gives what `tf.saved_model.save` wants."""

    def __init__(self, config: KeyedClassifierConfig) -> None:
        super().__init__(name="keyed_classifier")
        self._config = config
        self._classes = Classes(config.classes, config.vocabulary)
        key_type = tf.int64 if config.whole_keys else tf.string
        self._inputs = NamedColumns(config.features, {config.key: key_type}, config.label, self._classes.type)
        width, keys, others = len(config.features), config.max_keys, config.classes - 1
        self.standardiser = Standardiser(width, 10_000.0, max_bins=1)
        self.common = LogisticExperts(width, config.classes, (PARENT_HALF_LIFE_ROWS,), "common")
        self.rates = tf.Variable(tf.ones(config.classes), name="rates")  # decayed counts of the classes
        self.keys = Keys(keys)
        # By slot, the last one of no key. Log-odds of each class against the first.
        self.corrections = tf.Variable(tf.zeros((keys + 1, others, width + 1)), name="corrections")
        self.curvature = tf.Variable(tf.zeros((keys + 1, others, width + 1, width + 1)), name="curvature")
        self.age = tf.Variable(tf.zeros(keys + 1), name="age")  # labels so far,
        self.labels = tf.Variable(tf.zeros(keys + 1), name="labels")  # and decayed counts: labels,
        self.own_right = tf.Variable(tf.zeros(keys + 1), name="own_right")  # how often its own model was right,
        self.parent_right = tf.Variable(tf.zeros(keys + 1), name="parent_right")  # and the parent

    def signatures(self) -> dict[str, object]:
        """`serving_default` predicts, `learn` learns; both take the columns by name, each of shape (rows,)."""
        return named_signatures(self._inputs, self._predict, self._learn)

    def _predict(self, given: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """`prediction` and `score` as other classifiers; `abstain` (rows,) int64: 1 where they mean nothing; `graduated`
        (rows,) int64: 1 where the key's own model spoke; `key_age` (rows,) text, how many labels the key has had."""
        slots = self.keys.slots(self._prints(given))
        parent, own = self._odds(self._columns(given), slots)
        graduated = self._graduated(slots)
        probabilities = tf.nn.softmax(self._said(parent, own, graduated))
        code = tf.argmax(probabilities, axis=1)
        score = probabilities[:, 1] if self._config.classes == 2 else tf.reduce_max(probabilities, axis=1)
        names = [f"{low} to {high - 1}" for low, high in pairwise(AGES)] + [f"{AGES[-1]} and more"]
        group = tf.searchsorted(tf.constant(AGES, tf.float32), tf.gather(self.age, slots), side="right") - 1
        silent = tf.logical_not(graduated) if self._config.new_keys == "abstain" else tf.zeros_like(graduated)
        return {
            "prediction": self._classes.labels(code),
            "score": score,
            "abstain": tf.cast(silent, tf.int64),
            "graduated": tf.cast(graduated, tf.int64),
            "key_age": tf.gather(tf.constant(names), group),
        }

    def _learn(self, given: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Learns from labelled rows, in order; fails, and changes nothing, if a label is none of the classes."""
        codes, checks = self._classes.codes(given[self._inputs.label])
        with tf.control_dependencies(checks):
            targets = tf.one_hot(codes, self._config.classes)
            prints = self._prints(given)
            slots = self.keys.slots(prints)
            parent, own = self._odds(self._columns(given), slots)
            said = self._said(parent, own, self._graduated(slots))
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=targets, logits=said))
        with tf.control_dependencies([loss]):
            slots = self.keys.admit(prints)
            x = self._numeric(given)
            self.standardiser.observe(x)
            x = self._columns(given)
            parent, own = self._odds(x, slots)
            self._count(slots, parent, own, codes)
            kept = 0.5 ** (tf.cast(tf.size(codes), tf.float32) / RATES_HALF_LIFE_ROWS)
            self.rates.assign(kept * self.rates + tf.reduce_sum(targets, axis=0))
            self.common.learn(x[:, :-1], targets)
            self._correct(slots, x, own, targets)
        used, refused = self.keys.used, self.keys.refused
        return {"loss": loss, "keys": tf.cast(used, tf.float32), "rows_without_slot": tf.cast(refused, tf.float32)}

    def _correct(self, slots: tf.Tensor, x: tf.Tensor, odds: tf.Tensor, targets: tf.Tensor) -> None:
        """A Newton step for each key that has rows in the window."""
        config = self._config
        keys, place = tf.unique(slots)
        count = tf.size(keys)
        rows = tf.math.unsorted_segment_sum(tf.ones_like(targets[:, 0]), place, count)
        kept = (0.5 ** (rows / config.half_life_rows))[:, None, None, None]
        p = tf.nn.softmax(odds)
        of_label = (1.0 - BLIND) * tf.reduce_sum(p * targets, axis=1, keepdims=True)
        seeing = of_label / (of_label + BLIND / config.classes)
        # (rows, classes - 1), of all but the first class.
        slope = ((p - targets) * seeing)[:, 1:]
        bend = tf.maximum(p * (1.0 - p), SMALLEST_CURVATURE)[:, 1:] * seeing
        slopes = tf.math.unsorted_segment_sum(slope[:, :, None] * x[:, None, :], place, count)
        outer = bend[:, :, None, None] * (x[:, :, None] * x[:, None, :])[:, None]
        curvature = kept * tf.gather(self.curvature, keys) + tf.math.unsorted_segment_sum(outer, place, count)
        before = tf.gather(self.corrections, keys)
        # The prior pulls to the parent, as much as some rows would that are undecided.
        prior = 0.25 * config.prior_rows
        system = curvature + prior * tf.eye(int(x.shape[1]))
        step = tf.linalg.cholesky_solve(tf.linalg.cholesky(system), (slopes + prior * before)[..., None])[..., 0]
        step *= config.classes / (2.0 * (config.classes - 1.0))
        free = tf.cast(keys < config.max_keys, tf.float32)[:, None, None]  # rows without a slot correct nothing
        self.corrections.scatter_nd_update(keys[:, None], (before - step) * free)
        self.curvature.scatter_nd_update(keys[:, None], curvature * free[..., None])

    def _count(self, slots: tf.Tensor, parent: tf.Tensor, own: tf.Tensor, codes: tf.Tensor) -> None:
        keys, place = tf.unique(slots)
        count, ones = tf.size(keys), tf.ones_like(parent[:, 0])
        kept = 0.5 ** (tf.math.unsorted_segment_sum(ones, place, count) / self._config.half_life_rows)
        free = tf.cast(keys < self._config.max_keys, tf.float32)
        for variable, decay, values in (
            (self.age, tf.ones_like(kept), ones),
            (self.labels, kept, ones),
            (self.own_right, kept, tf.cast(tf.argmax(own, axis=1) == codes, tf.float32)),
            (self.parent_right, kept, tf.cast(tf.argmax(parent, axis=1) == codes, tf.float32)),
        ):
            new = decay * tf.gather(variable, keys) + tf.math.unsorted_segment_sum(values, place, count)
            variable.scatter_nd_update(keys[:, None], new * free)

    def _graduated(self, slots: tf.Tensor) -> tf.Tensor:
        if not self._config.parent:
            return tf.gather(self.labels, slots) > 0.0
        enough = tf.gather(self.age, slots) >= self._config.graduate_rows
        # Of few labels chance decides who was right more often, and the own model is still getting better.
        doubt = DOUBT * tf.sqrt(tf.gather(self.labels, slots))
        clearly_worse = tf.gather(self.own_right, slots) + doubt < tf.gather(self.parent_right, slots)
        return tf.logical_and(enough, tf.logical_not(clearly_worse))

    def _said(self, parent: tf.Tensor, own: tf.Tensor, graduated: tf.Tensor) -> tf.Tensor:
        """(rows, classes): the log-odds of who speaks."""
        rates = tf.math.log(self.rates)[None] + tf.zeros_like(parent)
        return tf.where(graduated[:, None], own, rates if self._config.new_keys == "prior" else parent)

    def _odds(self, x: tf.Tensor, slots: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Log-odds of the parent and of the key's own model, (rows, classes) each."""
        parent = self.common.log_odds(x[:, :-1])[0]
        correction = tf.reduce_sum(x[:, None, :] * tf.gather(self.corrections, slots), axis=2)
        correction = tf.concat([tf.zeros_like(x[:, :1]), correction], axis=1)
        return parent, (parent + correction if self._config.parent else correction)

    def _numeric(self, given: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.stack([given[name] for name in self._inputs.numeric], axis=1)

    def _columns(self, given: dict[str, tf.Tensor]) -> tf.Tensor:
        """(rows, columns + 1): standardised, and the intercept."""
        z = clipped(self.standardiser.standardised(self._numeric(given)))
        return tf.concat([z, tf.ones_like(z[:, :1])], axis=1)

    def _prints(self, given: dict[str, tf.Tensor]) -> tf.Tensor:
        key = given[self._inputs.others[0]]
        return self.keys.fingerprints_of(tf.strings.as_string(key) if self._config.whole_keys else key)


LEARNER = (KeyedClassifier, KeyedClassifierConfig)
