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
from models.serving import ModelCache, ModelError
from tests.models import saved
from tests.models.served import numbers, vectors

ROWS = 5000
BLOCK_ROWS = 256


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
