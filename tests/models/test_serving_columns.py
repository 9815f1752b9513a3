"""What columns become on their way into a model, and its outputs on their way back; what does not fit is refused, by name."""

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from models.serving import ModelError, output_schema
from models.signature import SignatureError
from tests.models.served import function, served, vectors

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


@pytest.mark.parametrize("encoded", [False, True], ids=["plain", "dictionary"])
def test_a_null_in_text_becomes_an_empty_one(tmp_path, encoded):
    model = served(function(lambda x: {"y": tf.strings.join([x, "!"])}, x=tf.string), tmp_path)
    column = pa.array(["a", None, "b"])
    given = model.predict(pa.RecordBatch.from_pydict({"x": column.dictionary_encode() if encoded else column}))
    assert given["y"].to_pylist() == ["a!", "!", "b!"]


@pytest.mark.parametrize(
    ("dtype", "column", "says"),
    [
        ("int64", pa.array([1, None]), "'x' has 1 nulls, and int64 has no NaN"),
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
