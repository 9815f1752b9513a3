"""Models of several kinds: Keras, lookup tables with the same or other contents, no variables at all."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from models.registry import Registry
from models.serving import LoadedGraph, ModelCache, ModelError
from tests.models import saved
from tests.models.served import function, numbers, served, vectors


def test_a_keras_model_as_exported(tmp_path):
    keras = tf.keras
    keras.utils.set_random_seed(1)
    wide, number = keras.Input((3,), name="wide"), keras.Input((1,), name="number")
    hidden = keras.layers.BatchNormalization()(
        keras.layers.Dense(4, activation="relu")(keras.layers.Concatenate()([wide, number]))
    )
    model = keras.Model({"wide": wide, "number": number}, {"p": keras.layers.Dense(2, activation="softmax")(hidden)})
    registry = Registry(str(tmp_path / "registry"))
    rng = np.random.default_rng(0)
    batch = pa.RecordBatch.from_pydict({"wide": vectors(rng.normal(size=(5, 3))), "number": rng.normal(size=5)})
    feed = {"wide": numbers(batch.column("wide")), "number": batch.column("number").to_numpy()[:, None]}
    expected = []
    for step in range(2):
        model.set_weights([weight + step for weight in model.get_weights()])
        model.export(str(tmp_path / f"saved-{step}"), verbose=False)
        registry.publish("keras", str(tmp_path / f"saved-{step}"))
        expected.append(model.predict(feed, verbose=0)["p"])
    cache = ModelCache(registry, block_rows=4)
    for version in (1, 2, 1):
        [output] = cache.get("keras", version).predict(batch).values()
        np.testing.assert_allclose(numbers(output), expected[version - 1], rtol=1e-5)


def table_module(words, shift):
    module = tf.Module()
    module.shift = tf.Variable(shift)
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(words, list(range(len(words))), value_dtype=tf.int64), -1
    )
    call = lambda word: {"y": tf.cast(module.table.lookup(word), tf.float32) + module.shift}  # noqa: E731
    module.predict = tf.function(call).get_concrete_function(word=tf.TensorSpec([None], tf.string, "word"))
    return module


def mutable_module(words, shift):
    module = tf.Module()
    module.shift = tf.Variable(shift)
    module.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    module.table.insert(words, tf.range(len(words), dtype=tf.int64))
    call = lambda word: {"y": tf.cast(module.table.lookup(word), tf.float32) + module.shift}  # noqa: E731
    module.predict = tf.function(call).get_concrete_function(word=tf.TensorSpec([None], tf.string, "word"))
    return module


@pytest.mark.parametrize("make", [table_module, mutable_module])
def test_tables_with_other_contents_are_not_mixed_up(tmp_path, make):
    registry = Registry(str(tmp_path / "registry"))
    for number, words in enumerate((["a", "b"], ["b", "a"], ["b", "a"])):
        module = make(words, 10.0 * number)
        tf.saved_model.save(module, str(tmp_path / f"saved{number}"), signatures={"serving_default": module.predict})
        registry.publish("m", str(tmp_path / f"saved{number}"))
    cache = ModelCache(registry, block_rows=4)
    batch = pa.RecordBatch.from_pydict({"word": ["a", "b", "?"]})
    expected = {1: [0, 1, -1], 2: [11, 10, 9], 3: [21, 20, 19]}
    for version in (1, 2, 3, 1, 2):
        assert cache.get("m", version).predict(batch)["y"].to_pylist() == expected[version], version


def test_tables_from_assets_are_each_versions_own(tmp_path):
    registry = Registry(str(tmp_path / "registry"))
    for words in (("a", "b"), ("b", "a")):
        registry.publish("rich", saved.save(saved.Rich(str(tmp_path), words), tmp_path / "".join(words)))
    shutil.rmtree(tmp_path / "ab")
    (tmp_path / "words.txt").unlink()
    cache = ModelCache(registry, block_rows=4)
    batch = pa.RecordBatch.from_pydict({"x": vectors(np.zeros((3, 4))), "word": ["a", "b", "x"]})
    given = {version: numbers(cache.get("rich", version).predict(batch)["y"])[:, 0] for version in (1, 2)}
    np.testing.assert_array_equal(given[1] - given[1][0], given[2][[1, 0, 2]] - given[2][1])
    assert given[1][1] - given[1][0] == 1.0 and given[2][1] - given[2][0] == -1.0


def test_a_model_without_variables_and_one_that_is_none(tmp_path):
    double = served(function(lambda x: {"y": x * 2}, x=tf.float32), tmp_path)
    assert double.predict(pa.RecordBatch.from_pydict({"x": [2.0]}))["y"].to_pylist() == [4.0]
    with pytest.raises(ModelError, match="does not load as a SavedModel"):
        LoadedGraph(str(tmp_path / "nowhere"), 4)
