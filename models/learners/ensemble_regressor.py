"""A regression that follows drift: the experts of `ensemble_classifier` with squared loss, and linear ones that see products of
columns. Where errors jump, some experts forget what they knew.

References: `models.learners.experts`, a file and a paper for each part.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from models.learners.experts.changes import Changes
from models.learners.experts.inputs import Encoded, Inputs, KnownLabels
from models.learners.experts.kernel import WIDTHS, kernel_means
from models.learners.experts.linear import LinearExperts
from models.learners.experts.memory import Memory
from models.learners.experts.perceptron import Perceptron
from models.learners.experts.pool import Pool
from models.learners.experts.products import products_width, with_products
from models.learners.experts.standardiser import LARGEST_VALUE, Standardiser
from models.learners.experts.trees import BoostedTrees
from models.learners.signatures import named_signatures

FORGETFUL_HALF_LIFE_ROWS = 1000.0  # of a linear expert that forgets at changes
HALF_LIVES_ROWS = (300.0, 4000.0)  # of more of them, where records do not bring what such experts say
PRODUCTS_HALF_LIVES_ROWS = (FORGETFUL_HALF_LIFE_ROWS, 4000.0)  # of linear experts on products of columns
FARTHEST = 10.0  # deviations of the label that an estimate may be from its mean
ERROR_HALF_LIFE_ROWS = 2000.0  # of the error to expect


@dataclass(frozen=True)
class EnsembleRegressorConfig:
    """Options of `EnsembleRegressor`; those it shares with `EnsembleClassifierConfig` mean the same.

    Attributes:
        features: names of the numeric columns.
        label: name of the label column, a number.
    """

    features: tuple[str, ...]
    label: str = "label"
    text_features: tuple[str, ...] = ()
    context: bool = False
    memory_rows: int = 2048
    half_life_rows: int = 10_000
    trees: int = 24
    depth: int = 5
    grown: int = 3
    hidden: int = 48
    steps: int = 8
    batch_rows: int = 256
    learning_rate: float = 5e-3
    seed: int = 7

    def __post_init__(self) -> None:
        if not (self.features or self.text_features):
            raise ValueError("an EnsembleRegressor wants at least one feature column")
        for name in ("memory_rows", "half_life_rows", "trees", "depth", "grown", "hidden", "steps", "batch_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")


class EnsembleRegressor(tf.Module):
    """See the module's docstring. `signatures()` gives what `tf.saved_model.save` wants."""

    def __init__(self, config: EnsembleRegressorConfig) -> None:
        super().__init__(name="ensemble_regressor")
        self._config = config
        known = KnownLabels.of(len(config.features), 0) if config.context else None
        self._inputs = inputs = Inputs(config.features, config.text_features, config.label, tf.float32, known)
        wide = inputs.width + inputs.context_width
        self.standardiser = Standardiser(inputs.width, config.half_life_rows)
        self.of_label = Standardiser(1, config.half_life_rows, max_bins=1)
        self.memory = Memory(config.memory_rows, wide, 1)
        others = () if config.context else HALF_LIVES_ROWS
        self.linear = LinearExperts(inputs.width, (FORGETFUL_HALF_LIFE_ROWS, *others), "linear")
        self.trees = BoostedTrees(wide, 1, trees=config.trees, depth=config.depth, grown=config.grown, logistic=False)
        self.perceptron = Perceptron(
            wide + self.standardiser.bin_columns, config.hidden, 1, learning_rate=config.learning_rate, seed=config.seed
        )
        multiplied = products_width(len(config.features))
        self.products = LinearExperts(multiplied, PRODUCTS_HALF_LIVES_ROWS, "products") if multiplied else None
        linear = self.linear.experts + (self.products.experts if self.products is not None else 0)
        self.pool = Pool(linear + (known.online.experts if known is not None else 0) + WIDTHS + 2)
        self.changes = Changes()
        self.error = tf.Variable(1.0, name="error")  # decayed mean square, in variances of the label

    def signatures(self) -> dict[str, object]:
        """`serving_default` predicts, `learn` learns; both take the columns by name, each of shape (rows,)."""
        return named_signatures(self._inputs, self._predict, self._learn)

    def _predict(self, given: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """`prediction` (rows,) float32; `score` (rows,) float32, the error to expect: its decayed root mean square."""
        rows = self._inputs.encoded(given, self._inputs.columns(given), self.standardiser, self.of_label)
        estimate = self.pool.estimates(self._experts(rows))
        mean, deviation = self._label_scale()
        return {"prediction": mean + deviation * estimate, "score": tf.ones_like(estimate) * deviation * tf.sqrt(self.error)}

    def _learn(self, given: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Learns from labelled rows, in order; fails, and changes nothing, if a label is not finite.

        A label whose square would leave float32 says nothing: it counts as what was expected.

        Returns `rmse` of the rows before they were learnt."""
        label = given[self._inputs.label]
        finite = tf.reduce_all(tf.math.is_finite(label))
        with tf.control_dependencies([tf.debugging.Assert(finite, ["a label is not finite"], name="finite")]):
            x = self._inputs.columns(given)
            said = self._experts(self._inputs.encoded(given, x, self.standardiser, self.of_label))
            mean, deviation = self._label_scale()
            expected = mean + deviation * self.pool.estimates(said)
            label = tf.where(tf.abs(label) < LARGEST_VALUE, label, expected)
            off = label - expected
            rmse = tf.sqrt(tf.reduce_mean(off**2))
        with tf.control_dependencies([rmse]):
            self.of_label.observe(label[:, None])
            target = self._standardised(label)
            off = target - self.pool.estimates(said)
            count = tf.cast(tf.size(off), tf.float32)
            share = count / (count + ERROR_HALF_LIFE_ROWS)
            self.error.assign((1.0 - share) * self.error + share * tf.reduce_mean(off**2))
            left = self.changes.left(off)
            self.pool.learn(said, target, left)
            x = self._inputs.observed(given, x)
            self.standardiser.observe(x)
            rows = self._inputs.encoded(given, x, self.standardiser, self.of_label)
            self.memory.remember(tf.concat([rows.filled, rows.context], axis=1), label[:, None])
            self.linear.learn(rows.plain, target, left)
            if self.products is not None:
                self.products.learn(self._multiplied(rows), target, left)
            remembered = self._remembered(self.memory.rows)
            targets = self._standardised(self.memory.targets)
            none = tf.zeros((), tf.int64)
            self.trees.learn(_for_trees(remembered), targets, self.memory.in_use(), none, self.memory.filled())
            self.perceptron.learn(
                self.memory,
                lambda drawn: self._for_perceptron(self._remembered(drawn)),
                lambda targets, given: tf.reduce_sum((self._standardised(targets) - given) ** 2, axis=1),
                steps=self._config.steps,
                batch_rows=self._config.batch_rows,
            )
        return {"rmse": rmse}

    def _experts(self, rows: Encoded) -> tf.Tensor:
        """(experts, rows): the estimates, in standard deviations of the label."""
        remembered = self._remembered(self.memory.rows).plain
        targets = self._standardised(self.memory.targets)
        near = kernel_means(rows.plain, remembered, targets, [self.memory.in_use()])[:, :, 0]
        linear = [self.linear.estimates(rows.plain), tf.transpose(rows.answers[:, :, 0])]
        if self.products is not None:
            linear.append(self.products.estimates(self._multiplied(rows)))
        others = [self.trees.scores(_for_trees(rows)), self.perceptron.outputs(self._for_perceptron(rows))]
        said = tf.concat([*linear, *[tf.transpose(o) for o in others], near], axis=0)
        return tf.clip_by_value(said, -FARTHEST, FARTHEST)

    def _label_scale(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and standard deviation of the labels."""
        mean = self.of_label.mean[0]
        variance = tf.maximum(self.of_label.square[0] - mean**2, 0.0)
        return tf.cast(mean, tf.float32), tf.cast(tf.sqrt(variance), tf.float32)

    def _standardised(self, labels: tf.Tensor) -> tf.Tensor:
        return tf.reshape(self.of_label.standardised(tf.reshape(labels, (-1, 1))), tf.shape(labels))

    def _remembered(self, kept: tf.Tensor) -> Encoded:
        """Rows of the memory, standardised by today's statistics."""
        width = self._inputs.width
        x = kept[:, :width]
        return Encoded(self.standardiser.standardised(x), kept[:, width:], self.standardiser.filled(x), kept[:, :0, None])

    def _multiplied(self, rows: Encoded) -> tf.Tensor:
        return with_products(rows.plain[:, : len(self._inputs.numeric)])

    def _for_perceptron(self, rows: Encoded) -> tf.Tensor:
        return tf.concat([rows.with_context, self.standardiser.binned(rows.z)], axis=1)


def _for_trees(rows: Encoded) -> tf.Tensor:
    return tf.concat([rows.filled, rows.context], axis=1)


LEARNER = (EnsembleRegressor, EnsembleRegressorConfig)
