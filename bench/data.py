"""The data and the model of the benchmark: seeded, so that every run measures the same work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

SEED = 20260301
FEATURES = tuple(f"f{number:02d}" for number in range(16))
_DIGITS = 6  # what a CSV export holds
_WRITE_ROWS = 1 << 17


def write_records(folder: Path, sizes: tuple[int, ...], example_sizes: tuple[int, ...]) -> None:
    """Writes the first n records to a file for each n.

    Args:
        folder: where to.
        sizes: written as CSV and Parquet.
        example_sizes: written as CSV and TFRecord of tf.Example.
    """
    shape = max(sizes + example_sizes), len(FEATURES)
    values = np.random.default_rng(SEED).normal(size=shape).round(_DIGITS).astype(np.float32)
    for rows in {*sizes, *example_sizes}:
        # Rounded doubles, so that the text has the digits that a person would write and no more.
        doubles = values[:rows].astype(np.float64).round(_DIGITS)
        pacsv.write_csv(pa.table(dict(zip(FEATURES, doubles.T.copy(), strict=True))), records_file(folder, rows, "csv"))
    for rows in sizes:
        table = pa.table(dict(zip(FEATURES, values[:rows].T.copy(), strict=True)))
        pq.write_table(table, records_file(folder, rows, "parquet"), row_group_size=_WRITE_ROWS)
    for rows in example_sizes:
        _write_examples(values[:rows], records_file(folder, rows, "tfrecord"))


def records_file(folder: Path, rows: int, kind: str) -> Path:
    """Where `write_records` puts that many records."""
    return folder / f"records-{rows}.{kind}"


def _write_examples(values: np.ndarray, path: Path) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in values.tolist():
            feature = {
                name: tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
                for name, value in zip(FEATURES, row, strict=True)
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def write_models(folder: Path) -> None:
    """Writes one seeded 64-32-2 MLP in the three forms that the contenders take.

    `model.keras` for Beam; `examples`, a SavedModel over serialised tf.Example, for tfx-bsl; `columns`, a SavedModel over named
    columns, for the bare loop and for Midstream.
    """
    import tensorflow as tf

    tf.keras.utils.set_random_seed(SEED)
    model = tf.keras.Sequential(
        [
            tf.keras.Input((len(FEATURES),)),
            tf.keras.layers.Dense(64, activation="relu"),
            tf.keras.layers.Dense(32, activation="relu"),
            tf.keras.layers.Dense(2, activation="softmax"),
        ]
    )
    model.save(folder / "model.keras")

    # Plain variables: TensorFlow 1's loader, which tfx-bsl uses, does not find those of a Keras 3 layer.
    variables = [tf.Variable(values) for values in model.get_weights()]

    def outputs(matrix: tf.Tensor) -> dict[str, tf.Tensor]:
        first_weights, first_bias, second_weights, second_bias, last_weights, last_bias = variables
        hidden = tf.nn.relu(matrix @ first_weights + first_bias)
        hidden = tf.nn.relu(hidden @ second_weights + second_bias)
        shares = tf.nn.softmax(hidden @ last_weights + last_bias)
        return {"prediction": tf.argmax(shares, axis=1), "score": shares[:, 1]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name=name) for name in FEATURES])
    def columns(*given: tf.Tensor) -> dict[str, tf.Tensor]:
        return outputs(tf.stack(given, axis=1))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def examples(serialised: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = {name: tf.io.FixedLenFeature([], tf.float32) for name in FEATURES}
        parsed = tf.io.parse_example(serialised, spec)
        return outputs(tf.stack([parsed[name] for name in FEATURES], axis=1))

    for name, function in (("columns", columns), ("examples", examples)):
        module = tf.Module()
        module.parameters = variables
        tf.saved_model.save(module, str(folder / name), signatures={"serving_default": function})
