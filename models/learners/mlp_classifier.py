"""An incremental classifier: a small perceptron that learns from a bounded memory of the latest rows.

Each call of `learn` standardises by decayed statistics, writes the new rows into a ring buffer, and takes a few Adam steps on
mini-batches drawn from the buffer. The buffer is what keeps a small network from forgetting last week while it follows today
(experience replay, Lin 1992), and its length is what makes it follow drift.

Everything that prediction or learning needs is a `tf.Variable`: weights, optimiser slots, statistics, the buffer, and the
counter that seeds the draws. So loading version n and learning the next rows gives version n+1, bit for bit, wherever it runs.

References:
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015 (algorithm 1).
    Lin, "Self-improving reactive agents based on reinforcement learning, planning and teaching", 1992 (experience replay).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import tensorflow as tf

from models.learners.adam import Adam
from models.learners.experts.classes import Classes
from models.naming import input_names

# A column counts as constant that varies less than these: float32's epsilon, as a share of the mean; next to nothing.
SMALLEST_DEVIATION = 1.2e-7
SMALLEST_VARIANCE = 1e-60
LARGEST_DEVIATION = 8.0  # in standard deviations; a value farther out would drive the first layer alone


@dataclass(frozen=True)
class MlpClassifierConfig:
    """Options of `MlpClassifier`.

    Attributes:
        features: names of the numeric columns, in the order of the network's inputs.
        label: name of the label column: integers from 0 to classes - 1, or what the `vocabulary` holds.
        classes: number of classes, at least 2.
        vocabulary: the labels by class; empty for integers from 0.
        hidden: widths of the hidden layers.
        learning_rate: Adam's step size.
        l2: weight decay, a share of the weights taken off a step.
        memory_rows: length of the ring buffer of labelled rows.
        steps: Adam steps a call of `learn`.
        batch_rows: rows drawn for a step.
        half_life_rows: after this many rows a row counts half in the statistics that standardise.
        seed: of the initial weights and of the draws.
    """

    features: tuple[str, ...]
    label: str = "label"
    classes: int = 2
    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 3e-3
    l2: float = 1e-4
    memory_rows: int = 1440
    steps: int = 4
    batch_rows: int = 256
    half_life_rows: int = 10_000
    seed: int = 7
    vocabulary: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("an MlpClassifier wants at least one feature column")
        input_names((*self.features, self.label))  # refuses names that TensorFlow cannot tell apart
        Classes(self.classes, self.vocabulary)  # refuses what are no classes
        for name in ("memory_rows", "steps", "batch_rows", "half_life_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")


class MlpClassifier(tf.Module):
    """See the module's docstring. `signatures()` gives what `tf.saved_model.save` wants."""

    def __init__(self, config: MlpClassifierConfig) -> None:
        super().__init__(name="mlp_classifier")
        self._config = config
        self._classes = Classes(config.classes, config.vocabulary)
        width = len(config.features)
        sizes = [width, *config.hidden, config.classes]
        self.weights, self.biases = [], []
        for place, (inputs, outputs) in enumerate(pairwise(sizes)):
            limit = (6.0 / (inputs + outputs)) ** 0.5  # Glorot's uniform
            start = tf.random.stateless_uniform((inputs, outputs), (config.seed, place), -limit, limit)
            self.weights.append(tf.Variable(start, name=f"weight_{place}"))
            self.biases.append(tf.Variable(tf.zeros(outputs), name=f"bias_{place}"))
        self.optimiser = Adam([*self.weights, *self.biases], config.learning_rate)
        # Decayed moments of each feature: weight of the rows so far, mean of x, mean of x^2. Double, as squares cancel.
        self.weight_sum = tf.Variable(tf.zeros(width, tf.float64), name="weight_sum")
        self.mean = tf.Variable(tf.zeros(width, tf.float64), name="mean")
        self.square = tf.Variable(tf.zeros(width, tf.float64), name="square")
        # The ring buffer; slot = rows seen modulo its length.
        self.memory_x = tf.Variable(tf.zeros((config.memory_rows, width)), name="memory_x")
        self.memory_y = tf.Variable(tf.zeros(config.memory_rows, tf.int64), name="memory_y")
        self.rows_seen = tf.Variable(0, dtype=tf.int64, name="rows_seen")
        self.calls = tf.Variable(0, dtype=tf.int64, name="calls")

    def signatures(self) -> dict[str, object]:
        """`serving_default` predicts, `learn` learns; both take the columns by name, each of shape (rows,)."""
        *names, label_name = input_names((*self._config.features, self._config.label))
        columns = {name: tf.TensorSpec([None], tf.float32, name=name) for name in names}
        label = {label_name: tf.TensorSpec([None], self._classes.type, name=label_name)}

        @tf.function
        def predict(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.predict(tf.stack([given[name] for name in names], axis=1))

        @tf.function
        def learn(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.learn(tf.stack([given[name] for name in names], axis=1), given[label_name])

        return {
            "serving_default": predict.get_concrete_function(**columns),
            "learn": learn.get_concrete_function(**columns, **label),
        }

    def predict(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """Predicts.

        Args:
            x: (rows, features) float32.

        Returns:
            `prediction` (rows,), the likeliest label; `score` (rows,) float32, with two classes the probability of class
            1, with more that of the predicted class.
        """
        probabilities = tf.nn.softmax(self._logits(self._standardise(x)))
        code = tf.argmax(probabilities, axis=1)
        score = probabilities[:, 1] if self._config.classes == 2 else tf.reduce_max(probabilities, axis=1)
        return {"prediction": self._classes.labels(code), "score": score}

    def learn(self, x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        """Learns from labelled rows, in order.

        Args:
            x: (rows, features) float32, at least one row.
            y: (rows,) labels.

        Returns:
            `loss` () float32, the mean cross-entropy of the last step.

        Raises:
            tf.errors.InvalidArgumentError: a label is none of the classes; nothing has changed then.
        """
        codes, checks = self._classes.codes(y)
        with tf.control_dependencies(checks):
            self._observe(x)
            self._remember(x, codes)
            return {"loss": self._rehearse()}

    def _rehearse(self) -> tf.Tensor:
        """Takes the Adam steps of one call on rows drawn from memory; returns the last step's loss."""
        config = self._config
        filled = tf.minimum(self.rows_seen, config.memory_rows)
        seed = tf.stack([tf.constant(config.seed, tf.int64), self.calls])
        drawn = tf.random.stateless_uniform((config.steps, config.batch_rows), seed, 0, filled, dtype=tf.int64)
        drawn_x = self._standardise(tf.gather(self.memory_x, drawn))  # once for all steps
        drawn_y = tf.gather(self.memory_y, drawn)
        loss = tf.zeros(())
        for x, y in zip(tf.unstack(drawn_x), tf.unstack(drawn_y), strict=True):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=self._logits(x)))
            self.optimiser.apply(tape.gradient(loss, [*self.weights, *self.biases]))
            for weight in self.weights:
                weight.assign(weight * (1.0 - config.l2))
        self.calls.assign_add(1)
        return loss

    def _logits(self, x: tf.Tensor) -> tf.Tensor:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = tf.nn.relu(tf.matmul(x, weight) + bias)
        return tf.matmul(x, self.weights[-1]) + self.biases[-1]

    def _standardise(self, x: tf.Tensor) -> tf.Tensor:
        smallest = tf.maximum((SMALLEST_DEVIATION * self.mean) ** 2, SMALLEST_VARIANCE)
        variance = self.square - self.mean**2
        scale = tf.cast(tf.math.rsqrt(tf.maximum(variance, smallest)), tf.float32)
        scaled = (x - tf.cast(self.mean, tf.float32)) * scale
        # A missing value counts as the mean, and so does all of a constant column. Far outliers are cut.
        usable = tf.logical_and(tf.math.is_finite(x), variance > smallest)
        return tf.clip_by_value(tf.where(usable, scaled, tf.zeros_like(x)), -LARGEST_DEVIATION, LARGEST_DEVIATION)

    def _observe(self, x: tf.Tensor) -> None:
        known = tf.math.is_finite(x)
        x = tf.where(known, tf.cast(x, tf.float64), tf.zeros_like(x, tf.float64))
        rows = tf.reduce_sum(tf.cast(known, tf.float64), axis=0)
        kept = tf.pow(tf.constant(0.5, tf.float64), rows / self._config.half_life_rows)
        total = self.weight_sum * kept + rows
        # The weights of the new rows and of those before add up to 1; a column without a value so far stays as it is.
        before = tf.math.divide_no_nan(self.weight_sum * kept, total)
        self.mean.assign(before * self.mean + tf.math.divide_no_nan(tf.reduce_sum(x, axis=0), total))
        self.square.assign(before * self.square + tf.math.divide_no_nan(tf.reduce_sum(x**2, axis=0), total))
        self.weight_sum.assign(total)

    def _remember(self, x: tf.Tensor, y: tf.Tensor) -> None:
        # Of more rows than the buffer holds only the last ones stay.
        size = self._config.memory_rows
        rows = tf.shape(y, out_type=tf.int64)[0]
        first = tf.maximum(rows - size, 0)
        slots = tf.math.floormod(self.rows_seen + tf.range(first, rows), size)
        self.memory_x.scatter_nd_update(slots[:, None], x[first:])
        self.memory_y.scatter_nd_update(slots[:, None], y[first:])
        self.rows_seen.assign_add(rows)


LEARNER = (MlpClassifier, MlpClassifierConfig)
