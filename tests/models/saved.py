"""Small SavedModels for the tests of this folder."""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf


class Small(tf.Module):
    """A 16-64-2 network that predicts and learns; one gain is a constant of the graph."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = gain
        self.w1 = tf.Variable(np.linspace(-1, 1, 16 * 64, dtype=np.float32).reshape(16, 64))
        self.w2 = tf.Variable(np.linspace(-1, 1, 64 * 2, dtype=np.float32).reshape(64, 2))
        self.slots = [tf.Variable(tf.zeros_like(variable)) for variable in (self.w1, self.w2)]
        self.seen = tf.Variable(0, dtype=tf.int64)

    def logits(self, x):
        return tf.matmul(tf.nn.relu(tf.matmul(x, self.w1)), self.w2) * self.gain

    @tf.function(input_signature=[tf.TensorSpec([None, 16], tf.float32, "x")])
    def predict(self, x):
        return {"p": tf.nn.softmax(self.logits(x))}

    @tf.function(input_signature=[tf.TensorSpec([None, 16], tf.float32, "x"), tf.TensorSpec([None], tf.int32, "y")])
    def learn(self, x, y):
        weights = [self.w1, self.w2]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, self.logits(x)))
        for weight, gradient, slot in zip(weights, tape.gradient(loss, weights), self.slots, strict=True):
            slot.assign(0.9 * slot + gradient)
            weight.assign_sub(0.01 * slot)
        self.seen.assign_add(1)
        return {"loss": loss}


class Rich(tf.Module):
    """What makes graphs differ from save to save: lookup tables, assets, loops with gradients, branches, custom gradients."""

    def __init__(self, folder, words=("a", "b")):
        super().__init__()
        vocabulary = Path(folder, "words.txt")
        vocabulary.write_text("\n".join(words) + "\n")
        self.asset = tf.saved_model.Asset(str(vocabulary))
        whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
        lines = tf.lookup.TextFileInitializer(self.asset.asset_path, tf.string, whole, tf.int64, number)
        self.words = tf.lookup.StaticVocabularyTable(lines, 1)
        self.pairs = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["x", "y"], [1.0, 2.0]), 0.0)
        self.w = tf.Variable(tf.ones([4, 4]))

    @tf.custom_gradient
    def clipped(self, x):
        return x * 1.0, lambda gradient: tf.clip_by_value(gradient, -1.0, 1.0)

    @tf.function
    def loop(self, x):
        for _ in tf.range(3):
            x = tf.matmul(x, self.w)
            x = x / 2.0 if tf.reduce_sum(x) > 3 else x + 1.0
        return self.clipped(x)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x"), tf.TensorSpec([None], tf.string, "word")])
    def predict(self, x, word):
        offset = tf.cast(self.words.lookup(word), tf.float32) + self.pairs.lookup(word)
        return {"y": self.loop(x) + offset[:, None]}

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
    def learn(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.loop(x))
        self.w.assign_sub(0.01 * tape.gradient(loss, self.w))
        return {"loss": loss}


def save(module, path):
    signatures = {"serving_default": module.predict, "learn": module.learn}
    tf.saved_model.save(module, str(path), signatures=signatures)
    return str(path)


def write_like(parent, change=None):
    """A `write_variables`: the parent's checkpoint with `change(key, value)` for each entry; None leaves one out."""
    reader = tf.train.load_checkpoint(f"{parent}/variables/variables")
    entries = {key: reader.get_tensor(key) for key in sorted(reader.get_variable_to_shape_map())}
    if change is not None:
        entries = {key: new for key, value in entries.items() if (new := change(key, value)) is not None}

    def write(folder):
        tensors = [tf.constant(value) for value in entries.values()]
        tf.raw_ops.SaveV2(
            prefix=f"{folder}/variables", tensor_names=list(entries), shape_and_slices=[""] * len(entries), tensors=tensors
        )

    return write


if __name__ == "__main__":  # saves both into a folder, after other work has used up some of the process's numbers
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    for shift in range(5):
        tf.function(lambda x, shift=shift: x + shift)(tf.constant(1.0))
    save(Small(), target / "small")
    save(Rich(target), target / "rich")
