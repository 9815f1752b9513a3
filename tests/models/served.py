"""Versions to predict with, and values to predict, for tests of serving."""

import numpy as np
import pyarrow as pa
import tensorflow as tf

from models.registry import Registry
from models.serving import ModelCache


def vectors(values):
    return pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(values).reshape(-1)), np.shape(values)[1])


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
