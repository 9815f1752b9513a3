"""A classifier that follows drift: experts that forget at different speeds, weighed by how they did lately.

Nobody knows beforehand what a stream is like, so several kinds of learner learn it side by side: logistic regressions with
short and long memory (a boundary that moves), a kernel average (islands), boosted trees (thresholds), a perceptron (the
rest). Each window they are first asked and then told, and what they said decides how they are weighed from then on.

Everything that prediction or learning needs is a `tf.Variable`: loading version n and learning the next rows gives version
n + 1, bit for bit, wherever it runs.

References: `models.learners.experts`, a file and a paper for each part.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from models.learners.experts.classes import Classes
from models.learners.experts.inputs import Encoded, Inputs, KnownLabels
from models.learners.experts.kernel import WIDTHS, kernel_means
from models.learners.experts.logistic import LogisticExperts
from models.learners.experts.memory import Memory
from models.learners.experts.perceptron import Perceptron
from models.learners.experts.stacking import Stacking, log_odds
from models.learners.experts.standardiser import Standardiser
from models.learners.experts.trees import BoostedTrees
from models.learners.signatures import named_signatures

YOUNG_TREES, YOUNG_DEPTH, YOUNG_GROWN, YOUNG_ROWS, YOUNG_HALF_LIFE_ROWS = 8, 4, 2, 512, 100.0
HALF_LIVES_ROWS = (300.0, 1000.0, 4000.0)  # of logistic regressions, where records do not bring what such experts say


@dataclass(frozen=True)
class EnsembleClassifierConfig:
    """Options of `EnsembleClassifier`.

    Attributes:
        features: names of the numeric columns.
        label: name of the label column: integers from 0 to classes - 1, or what the `vocabulary` holds.
        classes: number of classes, at least 2.
        vocabulary: the labels by class; empty for integers from 0.
        text_features: names of columns of text; their first values have a column each, others are hashed.
        context: records bring what was known of labels when they happened (`transforms.label_context`).
        memory_rows: latest labelled rows that are kept.
        half_life_rows: after this many rows a row counts half in the statistics that standardise.
        trees, depth, grown: trees in the ring, questions of a tree, trees grown anew by a call of `learn`.
        hidden, steps, batch_rows, learning_rate: units of the perceptron, Adam steps a call, rows a step, step size.
        seed: of the initial weights and of the draws.
    """

    features: tuple[str, ...]
    label: str = "label"
    classes: int = 2
    vocabulary: tuple[str | int, ...] = ()
    text_features: tuple[str, ...] = ()
    context: bool = False
    memory_rows: int = 2048
    half_life_rows: int = 10_000
    trees: int = 24
    depth: int = 5
    grown: int = 2
    hidden: int = 32
    steps: int = 2
    batch_rows: int = 256
    learning_rate: float = 5e-3
    seed: int = 7

    def __post_init__(self) -> None:
        if not (self.features or self.text_features):
            raise ValueError("an EnsembleClassifier wants at least one feature column")
        Classes(self.classes, self.vocabulary)  # refuses what are no classes
        for name in ("memory_rows", "half_life_rows", "trees", "depth", "grown", "hidden", "steps", "batch_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")


class EnsembleClassifier(tf.Module):
    """See the module's docstring. `signatures()` gives what `tf.saved_model.save` wants."""

    def __init__(self, config: EnsembleClassifierConfig) -> None:
        super().__init__(name="ensemble_classifier")
        self._config = config
        known = KnownLabels.of(len(config.features), config.classes) if config.context else None
        self._classes = Classes(config.classes, config.vocabulary)
        self._inputs = inputs = Inputs(config.features, config.text_features, config.label, self._classes.type, known)
        classes, wide = config.classes, inputs.width + inputs.context_width
        self.standardiser = Standardiser(inputs.width, config.half_life_rows)
        # Of the rows: the columns without gaps, and their context as it was encoded then.
        self.memory = Memory(config.memory_rows, wide, classes)
        self.logistic = None if config.context else LogisticExperts(inputs.width, classes, HALF_LIVES_ROWS, "logistic")
        self.trees = BoostedTrees(wide, classes - 1, trees=config.trees, depth=config.depth, grown=config.grown, logistic=True)
        self.perceptron = Perceptron(
            wide + self.standardiser.bin_columns, config.hidden, classes, learning_rate=config.learning_rate, seed=config.seed
        )
        young = {"trees": YOUNG_TREES, "depth": YOUNG_DEPTH, "grown": YOUNG_GROWN}
        self.young = BoostedTrees(inputs.width, classes - 1, **young, logistic=True)
        linear = len(HALF_LIVES_ROWS) if known is None else known.online.experts
        self.stacking = Stacking(linear + 2 * WIDTHS + 3)

    def signatures(self) -> dict[str, object]:
        """`serving_default` predicts, `learn` learns; both take the columns by name, each of shape (rows,)."""
        return named_signatures(self._inputs, self._predict, self._learn)

    def _predict(self, given: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """`prediction` (rows,), the likeliest label; `score` (rows,) float32, with two classes the probability of class 1, with
        more that of the predicted class."""
        config = self._config
        rows = self._inputs.encoded(given, self._inputs.columns(given), self.standardiser)
        probabilities = self.stacking.probabilities(log_odds(self._experts(rows)))
        code = tf.argmax(probabilities, axis=1)
        score = probabilities[:, 1] if config.classes == 2 else tf.reduce_max(probabilities, axis=1)
        return {"prediction": self._classes.labels(code), "score": score}

    def _learn(self, given: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Learns from labelled rows, in order; fails, and changes nothing, if a label is none of the classes.

        Returns `loss`, the mean log loss of the rows before they were learnt, and `accuracy` likewise."""
        codes, checks = self._classes.codes(given[self._inputs.label])
        with tf.control_dependencies(checks):
            targets = tf.one_hot(codes, self._config.classes)
            x = self._inputs.columns(given)
            before = self._inputs.encoded(given, x, self.standardiser)
            odds = log_odds(self._experts(before))
            said = self.stacking.probabilities(odds)
            loss = -tf.reduce_mean(tf.math.log(tf.maximum(tf.reduce_sum(said * targets, axis=1), 1e-7)))
            right = tf.reduce_mean(tf.cast(tf.argmax(said, axis=1) == codes, tf.float32))
        with tf.control_dependencies([loss, right]):
            self.stacking.learn(odds, targets)
            x = self._inputs.observed(given, x)
            self.standardiser.observe(x)
            rows = self._inputs.encoded(given, x, self.standardiser)
            self.memory.remember(tf.concat([rows.filled, rows.context], axis=1), targets)
            if self.logistic is not None:
                self.logistic.learn(rows.plain, targets)
            remembered = self._remembered(self.memory.rows)
            filled = self.memory.filled()
            none = tf.zeros((), tf.int64)
            self.trees.learn(_for_trees(remembered), self.memory.targets[:, 1:], self._weights()[0], none, filled)
            latest, their_targets, there = self.memory.latest(YOUNG_ROWS)
            count = tf.minimum(filled, YOUNG_ROWS)
            weight = there * 0.5 ** (tf.range(YOUNG_ROWS - 1, -1, -1, dtype=tf.float32) / YOUNG_HALF_LIFE_ROWS)
            self.young.learn(self._remembered(latest).filled, their_targets[:, 1:], weight, YOUNG_ROWS - count, count)
            self.perceptron.learn(
                self.memory,
                lambda drawn: self._for_perceptron(self._remembered(drawn)),
                tf.nn.softmax_cross_entropy_with_logits,
                steps=self._config.steps,
                batch_rows=self._config.batch_rows,
            )
        return {"loss": loss, "accuracy": right}

    def _experts(self, rows: Encoded) -> tf.Tensor:
        """(experts, rows, classes): the probabilities that each of them gives."""
        if self.logistic is not None:
            logits = [self.logistic.log_odds(rows.plain)]
        else:
            answers = tf.transpose(rows.answers, (1, 0, 2))
            logits = [answers if self._config.classes > 2 else tf.pad(answers, [[0, 0], [0, 0], [1, 0]])]
        logits.append(tf.pad(self.trees.scores(_for_trees(rows)), [[0, 0], [1, 0]])[None])
        logits.append(tf.pad(self.young.scores(rows.filled), [[0, 0], [1, 0]])[None])
        logits.append(self.perceptron.outputs(self._for_perceptron(rows))[None])
        remembered = self._remembered(self.memory.rows).plain
        near = kernel_means(rows.plain, remembered, self.memory.targets, self._weights())
        return tf.concat([tf.nn.softmax(tf.concat(logits, axis=0)), near], axis=0)

    def _weights(self) -> list[tf.Tensor]:
        """How much each row of the memory counts: all alike, and the newer the more."""
        in_use = self.memory.in_use()
        return [in_use, in_use * 0.5 ** (self.memory.ages() / YOUNG_HALF_LIFE_ROWS)]

    def _remembered(self, kept: tf.Tensor) -> Encoded:
        """Rows of the memory, standardised by today's statistics."""
        width = self._inputs.width
        x = kept[:, :width]
        return Encoded(self.standardiser.standardised(x), kept[:, width:], self.standardiser.filled(x), kept[:, :0, None])

    def _for_perceptron(self, rows: Encoded) -> tf.Tensor:
        return tf.concat([rows.with_context, self.standardiser.binned(rows.z)], axis=1)


def _for_trees(rows: Encoded) -> tf.Tensor:
    return tf.concat([rows.filled, rows.context], axis=1)


LEARNER = (EnsembleClassifier, EnsembleClassifierConfig)
