"""The network against a slow one in NumPy, and against what it is for: curves, and change."""

import numpy as np
import pytest
import tensorflow as tf

from models.learners.adam import EPSILON, FIRST_DECAY, SECOND_DECAY
from models.learners.mlp_classifier import LARGEST_DEVIATION, SMALLEST_DEVIATION, MlpClassifier, MlpClassifierConfig


class SlowMlp:
    """The same arithmetic in double precision, one row after the other where that says more."""

    def __init__(self, config, weights, biases):
        self.config = config
        self.weights = [w.astype(np.float64) for w in weights]
        self.biases = [b.astype(np.float64) for b in biases]
        width = len(config.features)
        self.weight_sum, self.mean, self.square = np.zeros(width), np.zeros(width), np.zeros(width)
        self.memory = [(np.zeros(width), 0)] * config.memory_rows
        self.rows_seen = self.calls = self.steps = 0
        self.first = [np.zeros_like(p) for p in (*self.weights, *self.biases)]
        self.second = [np.zeros_like(p) for p in (*self.weights, *self.biases)]

    def standardise(self, x):
        out = np.zeros_like(x, dtype=np.float64)
        for column in range(x.shape[1]):
            variance = self.square[column] - self.mean[column] ** 2
            for row, value in enumerate(x[:, column]):
                if np.isfinite(value) and variance > (SMALLEST_DEVIATION * self.mean[column]) ** 2:
                    scaled = (value - self.mean[column]) / np.sqrt(variance)
                    out[row, column] = np.clip(scaled, -LARGEST_DEVIATION, LARGEST_DEVIATION)
        return out

    def observe(self, x):
        for column in range(x.shape[1]):
            known = x[np.isfinite(x[:, column]), column].astype(np.float64)
            kept = self.weight_sum[column] * 0.5 ** (len(known) / self.config.half_life_rows)
            total = kept + len(known)
            if total:
                self.mean[column] = (kept * self.mean[column] + known.sum()) / total
                self.square[column] = (kept * self.square[column] + (known**2).sum()) / total
            self.weight_sum[column] = total

    def probabilities(self, z):
        layers = [z]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            layers.append(np.maximum(layers[-1] @ weight + bias, 0.0))
        logits = layers[-1] @ self.weights[-1] + self.biases[-1]
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return layers, odds / odds.sum(axis=1, keepdims=True)

    def learn(self, x, y):
        config = self.config
        self.observe(x)
        for row, label in zip(x, y, strict=True):
            self.memory[self.rows_seen % config.memory_rows] = (row, label)
            self.rows_seen += 1
        shape, seed = (config.steps, config.batch_rows), tf.constant([config.seed, self.calls], tf.int64)
        filled = min(self.rows_seen, config.memory_rows)
        # The draws are TensorFlow's own: there is nothing in them to get wrong but their bounds and their seed.
        for drawn in tf.random.stateless_uniform(shape, seed, 0, filled, dtype=tf.int64).numpy():
            loss = self.step(
                self.standardise(np.stack([self.memory[slot][0] for slot in drawn])),
                np.array([self.memory[slot][1] for slot in drawn]),
            )
        self.calls += 1
        return loss

    def step(self, z, y):
        layers, p = self.probabilities(z)
        loss = -np.mean(np.log(p[np.arange(len(y)), y]))
        back = p.copy()
        back[np.arange(len(y)), y] -= 1.0
        back /= len(y)
        weights, biases = [], []
        for weight, layer in zip(reversed(self.weights), reversed(layers), strict=True):
            weights.insert(0, layer.T @ back)
            biases.insert(0, back.sum(axis=0))
            back = (back @ weight.T) * (layer > 0)
        self.steps += 1
        scale = self.config.learning_rate * np.sqrt(1 - SECOND_DECAY**self.steps) / (1 - FIRST_DECAY**self.steps)
        for place, (parameter, gradient) in enumerate(zip((*self.weights, *self.biases), (*weights, *biases), strict=True)):
            self.first[place] = FIRST_DECAY * self.first[place] + (1 - FIRST_DECAY) * gradient
            self.second[place] = SECOND_DECAY * self.second[place] + (1 - SECOND_DECAY) * gradient**2
            parameter -= scale * self.first[place] / (np.sqrt(self.second[place]) + EPSILON)
        for weight in self.weights:
            weight *= 1.0 - self.config.l2
        return loss


def learner(**options):
    config = MlpClassifierConfig(**({"features": ("a", "b", "c"), "hidden": (8, 5)} | options))
    module = MlpClassifier(config)
    spec = [tf.TensorSpec([None, len(config.features)], tf.float32), tf.TensorSpec([None], tf.int64)]
    return module, tf.function(module.learn, input_signature=spec), tf.function(module.predict, input_signature=spec[:1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory_rows": 20, "batch_rows": 7, "classes": 3},
        {"hidden": (), "half_life_rows": 5, "steps": 1},
        {"memory_rows": 5, "l2": 0.1, "learning_rate": 0.02},
    ],
)
def test_it_computes_what_a_slow_one_computes(options):
    module, learn, predict = learner(**options)
    slow = SlowMlp(module._config, [w.numpy() for w in module.weights], [b.numpy() for b in module.biases])
    rng = np.random.default_rng(4)
    for rows in (1, 6, 13, 48, 2):
        x = (rng.normal(size=(rows, 3)) * [1.0, 50.0, 0.01] + [0.0, 1000.0, 5.0]).astype(np.float32)
        x[rng.random(x.shape) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
        y = rng.integers(0, module._config.classes, rows)
        loss = learn(tf.constant(x), tf.constant(y))["loss"]
        np.testing.assert_allclose(loss, slow.learn(x, y), rtol=1e-3)
    assert module.rows_seen.numpy() == 70 and module.calls.numpy() == 5
    for name in ("weight_sum", "mean", "square"):
        np.testing.assert_allclose(getattr(module, name).numpy(), getattr(slow, name), rtol=1e-9)
    np.testing.assert_array_equal(module.memory_x.numpy(), np.array([row for row, _ in slow.memory], np.float32))
    np.testing.assert_array_equal(module.memory_y.numpy(), [label for _, label in slow.memory])
    for ours, theirs in zip((*module.weights, *module.biases), (*slow.weights, *slow.biases), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=2e-3, atol=2e-4)
    given, (_, expected) = predict(tf.constant(x)), slow.probabilities(slow.standardise(x))
    score = expected[:, 1] if module._config.classes == 2 else expected.max(axis=1)
    np.testing.assert_allclose(given["score"], score, rtol=1e-2, atol=1e-3)


def test_the_memory_holds_the_latest_rows_however_they_came():
    rows = np.arange(57, dtype=np.float32)
    for cuts in ([57], [20, 37], [1] * 57, [9, 1, 31, 16]):
        module, learn, _ = learner(memory_rows=20, steps=1, batch_rows=1, features=("a",))
        for part in np.split(rows, np.cumsum(cuts)[:-1]):
            learn(tf.constant(part[:, None]), tf.constant((part % 2).astype(np.int64)))
        slots = np.arange(37, 57)
        assert module.memory_x.numpy()[slots % 20, 0].tolist() == slots.tolist(), cuts
        assert module.memory_y.numpy()[slots % 20].tolist() == (slots % 2).tolist(), cuts


def xor(rng, rows, flipped=False):
    x = rng.uniform(-1, 1, (rows, 3)).astype(np.float32)
    return tf.constant(x), tf.constant(((x[:, 0] > 0) ^ (x[:, 1] > 0) ^ flipped).astype(np.int64))


def accuracy(predict, rng, **options):
    x, y = xor(rng, 1000, **options)
    return np.mean(predict(x)["prediction"].numpy() == y.numpy())


def test_it_learns_xor_and_recovers_when_the_labels_swap():
    rng = np.random.default_rng(2)
    _, learn, predict = learner(hidden=(32, 32), memory_rows=960, seed=3)
    for _ in range(120):
        learn(*xor(rng, 48))
    assert accuracy(predict, rng) > 0.9
    assert accuracy(predict, rng, flipped=True) < 0.1
    for _ in range(2 * 960 // 48):  # twice as many rows as it remembers
        learn(*xor(rng, 48, flipped=True))
    assert accuracy(predict, rng, flipped=True) > 0.9


def test_a_shift_of_a_column_is_followed_by_the_statistics():
    module, learn, _ = learner(features=("a",), half_life_rows=100)
    rng = np.random.default_rng(5)
    for mean in (0.0, 1e6):
        for _ in range(40):
            learn(tf.constant(rng.normal(mean, 2.0, (100, 1)).astype(np.float32)), tf.zeros(100, tf.int64))
    deviation = np.sqrt(module.square.numpy() - module.mean.numpy() ** 2)
    assert abs(module.mean.numpy()[0] - 1e6) < 2.0 and deviation[0] < 100.0


def learnt_in_units(scale, offset):
    """Predictions for 1,000 rows of a column in this unit."""
    rng = np.random.default_rng(6)
    _, learn, predict = learner(features=("a",))
    x = rng.uniform(-1, 1, (40, 48, 1))
    for window in x:
        learn(
            tf.constant((window * scale + offset).astype(np.float32)),
            tf.constant((np.abs(window[:, 0]) > 0.5).astype(np.int64)),
        )
    return predict(tf.constant((x.reshape(-1, 1)[:1000] * scale + offset).astype(np.float32)))["prediction"].numpy()


def test_the_unit_of_a_column_makes_no_difference():
    expected = learnt_in_units(1.0, 0.0)
    assert 100 < expected.sum() < 900
    for scale, offset in ((1e-9, 0.0), (1.0, 1e3), (1e30, 0.0)):
        assert np.mean(learnt_in_units(scale, offset) == expected) > 0.98, (scale, offset)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 123456.7, 1e-20, 3e38])
def test_a_constant_column_stays_at_zero(value):
    module, learn, _ = learner(features=("a",), steps=1, batch_rows=1)
    rows = tf.fill((37, 1), np.float32(value))
    for _ in range(5):
        learn(rows, tf.zeros(37, tf.int64))
    assert not module._standardise(rows).numpy().any()


@pytest.mark.parametrize("name", ["memory_rows", "steps", "batch_rows", "half_life_rows", "classes"])
def test_options_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected . or more, got 0"):
        MlpClassifierConfig(features=("a",), **{name: 0})
