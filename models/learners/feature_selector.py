"""A classifier that learns which features matter now, and looks at those alone.

How much a feature says of the label is measured by decayed sums: the share of its variance that lies between the classes, as
the z score that chance would give it (a one-way analysis of variance). A feature is selected when its score rises above `enter`
and dropped when it falls below `leave`; rows count half after a stated half-life, so what mattered once is forgotten. Mask and
network are variables of one module, learnt and published together: a version cannot have the mask of another.

References:
    Fisher, "Statistical Methods for Research Workers", 1925 (analysis of variance).
    Wilson and Hilferty, "The distribution of chi-square", PNAS 17, 1931 (the z score).
    The classifier: `models.learners.mlp_classifier`. Deviation: features that are not selected are given to it as their means.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from models.learners.mlp_classifier import MlpClassifier, MlpClassifierConfig

LEAST_ROWS = 200.0  # before, all features are let through
SELECTED, DROPPED = "selected", "dropped"
LARGEST_SHARE = 1.0 - 1e-9


@dataclass(frozen=True)
class FeatureSelectorConfig(MlpClassifierConfig):
    """Options of `FeatureSelector`; those of the classifier, and:

    Attributes:
        relevance_half_life_rows: after this many rows a row counts half in what a feature is worth.
        select: so many features are selected, the best ones; 0 selects as many as are worth it.
        enter: z score above which a feature is selected; 3.5 lets one in 4,000 in by chance.
        leave: z score below which it is dropped.
    """

    memory_rows: int = 1000
    steps: int = 8
    relevance_half_life_rows: int = 500
    select: int = 0
    enter: float = 3.5
    leave: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relevance_half_life_rows < 1:
            raise ValueError(f"relevance_half_life_rows: expected 1 or more, got {self.relevance_half_life_rows}")
        if not 0 <= self.select <= len(self.features):
            raise ValueError(f"select: expected 0 to {len(self.features)}, the number of features, got {self.select}")
        if self.leave > self.enter:
            raise ValueError(f"leave: expected at most {self.enter}, as `enter` is, got {self.leave}")


class FeatureSelector(MlpClassifier):
    """See the module's docstring. `signatures()` gives what `tf.saved_model.save` wants."""

    def __init__(self, config: FeatureSelectorConfig) -> None:
        super().__init__(config)
        self._options = config
        width = len(config.features)
        self.mask = tf.Variable(tf.ones(width), name="mask")  # 1 for a selected feature
        self.relevance = tf.Variable(tf.zeros(width, tf.float64), name="relevance")  # z scores
        # Decayed, in standard units: rows by class, their sums, the sum of squares of all; and the sum of squared weights.
        self.class_rows = tf.Variable(tf.zeros(config.classes, tf.float64), name="class_rows")
        self.class_sums = tf.Variable(tf.zeros((config.classes, width), tf.float64), name="class_sums")
        self.squares = tf.Variable(tf.zeros(width, tf.float64), name="squares")
        self.squared_weights = tf.Variable(0.0, dtype=tf.float64, name="squared_weights")

    def learn(self, x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        """Learns from labelled rows, in order; see `MlpClassifier.learn`.

        Returns:
            `loss`, and `selected` () int64, how many features are; and the events, all (events,): `event_kind` (selected,
            dropped), `event_feature`, its name, and `event_relevance` float64, its z score.
        """
        before = self.mask.read_value()
        with tf.control_dependencies([before]):
            given = super().learn(x, y)
        with tf.control_dependencies(list(given.values())):
            after = self.mask.read_value()
        changed = tf.where(before != after)[:, 0]
        return given | {
            "selected": tf.cast(tf.reduce_sum(after), tf.int64),
            "event_kind": tf.where(tf.gather(after, changed) > 0.0, SELECTED, DROPPED),
            "event_feature": tf.gather(tf.constant(self._options.features), changed),
            "event_relevance": tf.gather(self.relevance, changed),
        }

    def _remember(self, x: tf.Tensor, y: tf.Tensor) -> None:
        self._weigh(x, y)
        super()._remember(x, y)

    def _standardise(self, x: tf.Tensor) -> tf.Tensor:
        return super()._standardise(x) * self.mask

    def _weigh(self, x: tf.Tensor, y: tf.Tensor) -> None:
        """Measures what each feature says of the label, and selects."""
        config = self._options
        scaled = tf.cast(super()._standardise(x), tf.float64)
        own = tf.one_hot(y, config.classes, dtype=tf.float64)
        kept = tf.pow(tf.constant(0.5, tf.float64), tf.cast(tf.shape(x)[0], tf.float64) / config.relevance_half_life_rows)
        rows = kept * self.class_rows + tf.reduce_sum(own, axis=0)
        sums = kept * self.class_sums + tf.matmul(own, scaled, transpose_a=True)
        squares = kept * self.squares + tf.reduce_sum(scaled * scaled, axis=0)
        weights = kept * kept * self.squared_weights + tf.cast(tf.shape(x)[0], tf.float64)
        for variable, value in zip(
            (self.class_rows, self.class_sums, self.squares, self.squared_weights), (rows, sums, squares, weights), strict=True
        ):
            variable.assign(value)
        total = tf.reduce_sum(rows)
        middle = tf.reduce_sum(sums, axis=0) / total
        means = tf.math.divide_no_nan(sums, rows[:, None])
        between = tf.reduce_sum(rows[:, None] * (means - middle) ** 2, axis=0)
        within = squares - total * middle**2
        share = tf.minimum(tf.math.divide_no_nan(between, within), LARGEST_SHARE)
        # So many rows of equal weight would say as much.
        worth = total * total / weights
        freedom = float(config.classes - 1)
        spread = 2.0 / (9.0 * freedom)
        chi = worth * share / (1.0 - share) / freedom
        relevance = (tf.pow(tf.maximum(chi, 0.0), 1.0 / 3.0) - (1.0 - spread)) / spread**0.5
        self.relevance.assign(relevance)
        if config.select:
            best = tf.math.top_k(relevance, k=config.select).indices
            chosen = tf.reduce_max(tf.one_hot(best, len(config.features)), axis=0) > 0.0
        else:
            was_seen = total - tf.cast(tf.shape(x)[0], tf.float64) >= LEAST_ROWS  # a mask that lets all through is no selection
            chosen = (relevance > config.enter) | ((relevance > config.leave) & (self.mask > 0.0) & was_seen)
        through = (total < LEAST_ROWS) | tf.logical_not(tf.reduce_any(chosen))
        self.mask.assign(tf.cast(chosen | through, tf.float32))


LEARNER = (FeatureSelector, FeatureSelectorConfig)
