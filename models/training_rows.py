"""The summary of training rows for a model that was trained elsewhere: inputs as they were, outputs as it gives them."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import tensorflow as tf

from models.drift import Reference, Summariser, is_number, is_text
from models.loaded_graph import ModelError
from models.naming import column_for
from models.serving import SERVING_SIGNATURE, to_arrow, to_numpy


def summarise_training_rows(saved_model: str, batches: Iterable[pa.RecordBatch]) -> Reference:
    """Summarises rows that a SavedModel was trained on; a sketch, so their number does not matter.

    Args:
        saved_model: the folder of the SavedModel.
        batches: the rows, in the order in which they came.

    Raises:
        ModelError: there are no rows, or they lack an input of the model.
    """
    serving = tf.saved_model.load(saved_model).signatures[SERVING_SIGNATURE]
    inputs = serving.structured_input_signature[1]
    found: dict[str, Summariser] = {}
    rows = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        rows += batch.num_rows
        try:
            given = {name: to_numpy(batch, name, spec.dtype.name, tuple(spec.shape[1:])) for name, spec in inputs.items()}
            said = serving(**{name: tf.constant(values) for name, values in given.items()})
        except (ValueError, tf.errors.OpError) as error:
            raise ModelError(f"the training rows do not fit the model: {error}") from error
        columns = {name: batch.column(name) for name in (column_for(name, batch.schema.names) for name in inputs)}
        columns |= {name: to_arrow(value.numpy()) for name, value in said.items() if value.shape.rank == 1}
        for name, column in columns.items():
            if is_number(column.type) or is_text(column.type):
                found.setdefault(name, Summariser()).add(column)
    if not rows:
        raise ModelError("there are no training rows to summarise: expected at least one that can be read")
    return Reference({name: summariser.summary() for name, summariser in found.items()}, rows)
