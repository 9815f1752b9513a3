"""What a version predicts is a function of the version and the row, whatever else is predicted, loaded or dropped."""

import gc
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models import serving
from models.registry import Registry
from models.serving import LoadedGraph, ModelCache, ModelError, output_schema
from models.signature import SignatureError
from tests.models import saved

ROWS = 5000
BLOCK_ROWS = 256


def vectors(values):
    return pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(values).reshape(-1)), np.shape(values)[1])


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Six versions of `small`, 1 to 6, that share a graph."""
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry(str(folder / "registry"))
    registry.publish("small", saved.save(saved.Small(), folder / "small"))
    for shift in range(1, 6):
        registry.publish_variables("small", 1, saved.write_like(folder / "small", partial(shifted, shift)))
    return registry


def shifted(shift, key, value):
    return value if isinstance(value, bytes) else value + value.dtype.type(shift)


@pytest.fixture(scope="module")
def rows():
    return pa.RecordBatch.from_pydict({"x": vectors(np.random.default_rng(3).normal(size=(ROWS, 16)).astype(np.float32))})


@pytest.fixture(scope="module")
def cache(registry):
    return ModelCache(registry, block_rows=BLOCK_ROWS)


@pytest.fixture(scope="module")
def whole(cache, rows):
    """What each version predicts for all rows at once."""
    return {version: numbers(cache.get("small", version).predict(rows)["p"]) for version in range(1, 7)}


def numbers(array):
    return array.flatten().to_numpy().reshape(len(array), array.type.list_size)


def served(module, tmp_path, name="m", **options):
    """A version of this module, which has a method `predict`, loaded."""
    registry = Registry(str(tmp_path / "registry"))
    path = str(tmp_path / f"saved-{name}")
    tf.saved_model.save(module, path, signatures={"serving_default": module.predict})
    version = registry.publish(name, path).version
    return ModelCache(registry, block_rows=4, **options).get(name, version)


def function(call, **columns):
    """A module that predicts with this function of named columns, each given as a dtype or a TensorSpec."""
    module = tf.Module()
    specs = {
        name: spec if isinstance(spec, tf.TensorSpec) else tf.TensorSpec([None], spec, name) for name, spec in columns.items()
    }
    module.predict = tf.function(lambda **given: call(**given), autograph=False).get_concrete_function(**specs)
    return module


@pytest.mark.parametrize("size", [1, 7, 48, 1000, 5000])
def test_a_row_gets_the_same_bits_in_batches_of_every_size(cache, rows, whole, size):
    starts = range(0, ROWS, size) if size > 1 else range(0, ROWS, 499)
    for start in starts:
        given = numbers(cache.get("small", 2).predict(rows.slice(start, size))["p"])
        assert np.array_equal(given, whole[2][start : start + size])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, ROWS), st.integers(0, 700), st.integers(1, 6)), min_size=1, max_size=6))
def test_a_row_gets_the_same_bits_whatever_is_predicted_in_between(cache, rows, whole, requests):
    for start, size, version in requests:
        given = numbers(cache.get("small", version).predict(rows.slice(start, size))["p"])
        assert np.array_equal(given, whole[version][start : start + size]), (start, size, version)


def test_versions_predict_side_by_side(cache, rows, whole):
    def predict(number):
        version, start = number % 6 + 1, number * 37
        return np.array_equal(
            numbers(cache.get("small", version).predict(rows.slice(start, 300))["p"]), whole[version][start : start + 300]
        )

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(predict, range(72)))


def test_versions_differ_and_are_what_tensorflow_says(registry, rows, whole):
    for version in (1, 6):
        x = tf.constant(numbers(rows.column("x")))
        expected = tf.saved_model.load(registry.path("small", version)).signatures["serving_default"](x=x)["p"]
        np.testing.assert_allclose(whole[version], expected, rtol=1e-4, atol=1e-6)
    assert len({whole[version].tobytes() for version in whole}) == 6


def test_a_version_is_loaded_once_however_many_ask(registry, rows, monkeypatch):
    made, start = [], threading.Barrier(8)
    for kind in (serving.LoadedGraph, serving.ServedModel):
        monkeypatch.setattr(
            kind,
            "__init__",
            lambda self, *given, real=kind.__init__, name=kind.__name__: made.append(name) or real(self, *given),
        )
    cache = ModelCache(registry, block_rows=8, max_versions=3)

    def ask(number):
        start.wait()
        return [cache.get("small", version) for version in (1, 2, 3)]

    with ThreadPoolExecutor(8) as threads:
        given = list(threads.map(ask, range(8)))
    assert made.count("LoadedGraph") == 1 and made.count("ServedModel") == 3
    assert all(models == given[0] for models in given)
    for version in (4, 5, 6, 1):
        cache.get("small", version)
        assert len(cache) == 3
    assert made.count("LoadedGraph") == 1, "the graph stays as long as its versions come and go"


def test_memory_of_dropped_versions_is_released(registry, rows):
    cache = ModelCache(registry, block_rows=8, max_versions=1)
    first = cache.get("small", 1)
    first.predict(rows.slice(0, 3))
    gone = weakref.ref(first)
    values = weakref.ref(first._variables[0])  # a handle that counts references: what it names is freed with it
    cache.get("small", 2)
    assert numbers(first.predict(rows.slice(0, 3))["p"]).shape == (3, 2), "who still has it may use it"
    del first
    gc.collect()
    assert gone() is None and values() is None


def test_a_version_that_fails_to_load_is_tried_again(registry, tmp_path, rows):
    copy = Registry(str(tmp_path / "copy"))
    shutil.copytree(registry.model_folder("small"), copy.model_folder("small"))
    hidden = Path(copy.path("small", 1), "variables")
    hidden.rename(tmp_path / "hidden")
    cache = ModelCache(copy)
    for _ in range(2):
        with pytest.raises(ModelError, match="small"):
            cache.get("small", 1)
    (tmp_path / "hidden").rename(hidden)
    assert len(cache.get("small", 1).predict(rows.slice(0, 2))["p"]) == 2
    with pytest.raises(ModelError, match="no version 77"):
        cache.get("small", 77)


def test_variables_changed_after_publication_are_refused(registry, tmp_path):
    copy = Registry(str(tmp_path / "copy"))
    shutil.copytree(registry.model_folder("small"), copy.model_folder("small"))
    for name in ("variables.index", "variables.data-00000-of-00001"):
        shutil.copy(Path(copy.path("small", 3), "variables", name), Path(copy.path("small", 2), "variables", name))
    data = Path(copy.path("small", 4), "variables", "variables.data-00000-of-00001")
    content = data.read_bytes()
    data.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    cache = ModelCache(copy)
    cache.get("small", 1)
    with pytest.raises(ModelError, match=r"version 2 of small is not what was published.*Publish it again and activate"):
        cache.get("small", 2)
    with pytest.raises(ModelError, match=r"version 4 of small cannot be loaded.*damaged"):
        cache.get("small", 4)


COLUMNS = {
    "float32": (pa.array([1.5, None, -2.0], pa.float32()), [1.5, np.nan, -2.0]),
    "float64": (pa.array([1.1, None, 1e300], pa.float64()), [1.1, np.nan, 1e300]),
    "int64": (pa.array([1, 2**62, -3], pa.int64()), [1, 2**62, -3]),
    "int8": (pa.array([1, -128, 127], pa.int64()), [1, -128, 127]),
    "bool": (pa.array([True, False, True]), [True, False, True]),
    "string": (pa.array(["a", "", "é"]), ["a", "", "é"]),
}


@pytest.mark.parametrize("dtype", COLUMNS)
def test_scalars_of_every_type_come_through(tmp_path, dtype):
    column, expected = COLUMNS[dtype]
    model = served(function(lambda x: {"y": tf.identity(x)}, x=tf.as_dtype(dtype)), tmp_path)
    given = model.predict(pa.RecordBatch.from_pydict({"other": [1, 2, 3], "x": column}))["y"]
    if dtype.startswith("float"):
        assert np.array_equal(given.to_numpy(), np.array(expected, dtype), equal_nan=True)
    else:
        assert given.to_pylist() == expected
    schema = output_schema(model.manifest.signature)
    assert schema.field("y").type == given.type
    empty = model.predict(pa.RecordBatch.from_pydict({"x": column.slice(0, 0)}))["y"]
    assert len(empty) == 0 and empty.type == given.type
    assert model.predict(pa.RecordBatch.from_pydict({"x": column}).slice(2, 1))["y"].to_pylist() == given.to_pylist()[2:]


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    return served(function(lambda x: {"y": x * 2}, x=tf.float32), tmp_path_factory.mktemp("double"))


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([0.1, None], pa.float64()), [np.float32(0.1) * 2, np.nan]),
        (pa.array([3, None], pa.int64()), [6, np.nan]),
        (pa.array([True, None]), [2, np.nan]),
        (pa.array([1, 2], pa.decimal128(5, 1)), [2, 4]),
        (pa.array([3, 4], pa.int8()).dictionary_encode(), [6, 8]),
        (pa.array([None, None], pa.float16()), [np.nan, np.nan]),
    ],
)
def test_numbers_become_floats_and_nulls_nan(double, column, expected):
    given = double.predict(pa.RecordBatch.from_pydict({"x": column}))["y"]
    assert given.type == pa.float32()
    np.testing.assert_array_equal(given.to_numpy(), np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("dtype", "column", "says"),
    [
        ("int64", pa.array([1, None]), "'x' has 1 nulls, and int64 has no NaN"),
        ("string", pa.array(["a", None]), "'x' has 1 nulls"),
        ("int64", pa.array([1.0, 2.5]), "'x' is double, the model wants int64: cast it"),
        ("int8", pa.array([1, 300]), "'x' is int64, the model wants int8: .*300"),
        ("float32", pa.array(["1", "2"]), "'x' is string, the model wants float32: cast it"),
        ("float32", pa.array([1, 2], pa.timestamp("us")), "'x' is timestamp.*, the model wants float32"),
        ("string", pa.array([1, 2]), "'x' is int64, the model wants string"),
        ("float32", pa.array([None, None]), "'x' is null, the model wants float32"),
        ("float32", pa.array([[1.0], [2.0]]), "'x' is list<.*>, the model wants float32"),
        ("float32", vectors(np.ones((2, 3))), r"'x': the model wants shape \[\] a row, the column is fixed_size_list"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, dtype, column, says):
    model = served(function(lambda x: {"y": tf.identity(x)}, x=tf.as_dtype(dtype)), tmp_path)
    with pytest.raises(ModelError, match=rf"version 1 of m refused a batch: .*{says}"):
        model.predict(pa.RecordBatch.from_pydict({"x": column}))


def test_a_missing_or_doubled_column_is_named(double):
    with pytest.raises(ModelError, match=r"wants a column 'x'; the records have a, b"):
        double.predict(pa.RecordBatch.from_pydict({"a": [1.0], "b": [1.0]}))
    with pytest.raises(ModelError, match="could be fed by the columns x, x"):
        double.predict(pa.RecordBatch.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["x", "x"]))


def test_vectors_slices_and_missing_vectors(tmp_path):
    model = served(
        function(lambda x: {"y": tf.reduce_sum(x, axis=1), "x": x}, x=tf.TensorSpec([None, 3], tf.float32)), tmp_path
    )
    values = np.arange(30.0).reshape(10, 3)
    for column in (vectors(values), vectors(values.astype(np.int64))):
        given = model.predict(pa.RecordBatch.from_pydict({"x": column}).slice(4, 5))
        assert given["y"].to_pylist() == values[4:9].sum(axis=1).tolist()
        assert (
            given["x"].to_pylist() == values[4:9].tolist()
            and given["x"].type == output_schema(model.manifest.signature).field("x").type
        )
    missing = pa.array([[1, 2, 3], None, [4, None, 6], [7, 8, 9]], pa.list_(pa.float64(), 3))
    given = model.predict(pa.RecordBatch.from_pydict({"x": missing}).slice(1))
    np.testing.assert_array_equal(given["y"].to_numpy(), np.array([np.nan, np.nan, 24], np.float32))
    with pytest.raises(ModelError, match=r"wants shape \[3\] a row, the column is fixed_size_list<item: double>\[2\]"):
        model.predict(pa.RecordBatch.from_pydict({"x": vectors(np.ones((4, 2)))}))
    with pytest.raises(ModelError, match=r"wants shape \[3\] a row, the column is double"):
        model.predict(pa.RecordBatch.from_pydict({"x": [1.0, 2.0]}))


def test_missing_vectors_of_integers_are_refused(tmp_path):
    model = served(function(lambda x: {"y": tf.reduce_sum(x, axis=1)}, x=tf.TensorSpec([None, 2], tf.int64)), tmp_path)
    with pytest.raises(ModelError, match="has 1 nulls, and int64 has no NaN"):
        model.predict(pa.RecordBatch.from_pydict({"x": pa.array([[1, 2], None], pa.list_(pa.int64(), 2))}))


def test_a_column_of_its_own_feeds_a_matrix_of_one_column(tmp_path):
    model = served(
        function(
            lambda x: {"y": x + 1, "z": tf.strings.as_string(tf.cast(x, tf.int32))}, x=tf.TensorSpec([None, 1], tf.float32)
        ),
        tmp_path,
    )
    given = model.predict(pa.RecordBatch.from_pydict({"x": [1.0, 2.0]}))
    assert given["y"].to_pylist() == [2.0, 3.0] and given["z"].to_pylist() == ["1", "2"]
    assert pa.schema([(name, column.type) for name, column in given.items()]).equals(output_schema(model.manifest.signature))


def test_outputs_of_every_shape_are_as_the_schema_says(tmp_path):
    def outputs(x):
        return {
            "rank1": x,
            "column": x[:, None],
            "matrix": tf.stack([x, -x], axis=1),
            "cube": tf.reshape(tf.repeat(x, 6), [-1, 2, 3]),
            "text": tf.strings.as_string(tf.cast(x, tf.int64)),
            "texts": tf.strings.as_string(tf.cast(tf.stack([x, x], axis=1), tf.int64)),
            "flag": x > 1,
        }

    model = served(function(outputs, x=tf.float32), tmp_path)
    given = model.predict(pa.RecordBatch.from_pydict({"x": [1.0, 2.0, 3.0, 4.0, 5.0]}))
    assert pa.schema([(name, column.type) for name, column in given.items()]).equals(output_schema(model.manifest.signature))
    last = {name: column.to_pylist()[-1] for name, column in given.items()}
    assert last == {
        "rank1": 5.0,
        "column": 5.0,
        "matrix": [5.0, -5.0],
        "cube": [[5.0] * 3] * 2,
        "text": "5",
        "texts": ["5", "5"],
        "flag": True,
    }


def test_output_that_is_no_text_is_refused(tmp_path):
    model = served(function(lambda x: {"y": tf.fill(tf.shape(x), tf.constant(b"\xff"))}, x=tf.float32), tmp_path)
    with pytest.raises(ModelError, match=r"version 1 of m refused a batch: .*UTF8"):
        model.predict(pa.RecordBatch.from_pydict({"x": [1.0]}))


@pytest.mark.parametrize("call", [lambda x: {"y": tf.reduce_sum(x)[None]}, lambda x: {"y": tf.concat([x, x], axis=0)}])
def test_outputs_that_are_not_a_row_for_each_row_are_refused(tmp_path, call):
    specs = tf.TensorSpec([None], tf.float32, "x")
    module = tf.Module()
    module.predict = tf.function(call).get_concrete_function(x=specs)
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": module.predict})
    with pytest.raises((ModelError, SignatureError), match=r"output .*y"):
        served(module, tmp_path).predict(pa.RecordBatch.from_pydict({"x": [1.0, 2.0]}))


def test_columns_whose_names_tensorflow_cannot_take(tmp_path):
    model = served(
        function(lambda class_, unit_price: {"y": class_ + unit_price}, class_=tf.float32, unit_price=tf.float32), tmp_path
    )
    batch = {"unit price": [1.0, 2.0], "class": [10, 20]}
    assert model.predict(pa.RecordBatch.from_pydict(batch))["y"].to_pylist() == [11.0, 22.0]
    with pytest.raises(ModelError, match="could be fed by the columns class, class_"):
        model.predict(pa.RecordBatch.from_pydict(batch | {"class_": [0, 0]}))


def test_a_row_that_the_graph_refuses(tmp_path):
    def checked(x):
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, "x must not be negative")]):
            return {"y": tf.sqrt(x)}

    model = served(function(checked, x=tf.float32), tmp_path)
    with pytest.raises(ModelError, match=r"version 1 of m refused a batch(.|\n)*must not be negative"):
        model.predict(pa.RecordBatch.from_pydict({"x": [1.0, -1.0]}))
    # Fewer rows than a block: the padding must not be what fails.
    assert model.predict(pa.RecordBatch.from_pydict({"x": [4.0]}))["y"].to_pylist() == [2.0]


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


def test_a_model_without_variables_and_one_that_is_none(tmp_path, double):
    assert double.predict(pa.RecordBatch.from_pydict({"x": [2.0]}))["y"].to_pylist() == [4.0]
    with pytest.raises(ModelError, match="does not load as a SavedModel"):
        LoadedGraph(str(tmp_path / "nowhere"), 4)
