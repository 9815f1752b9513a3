"""Versions that get ready beside those that predict: the same bits, whoever loads them; what cannot be loaded harms nobody."""

from __future__ import annotations

import gc
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tensorflow.python.eager import context

from models.activation_log import ActivationLog
from models.isolation import Limits
from models.preloading import Preloader, _Maker, prepare
from models.registry import Registry
from models.serving import LoadedGraph, ModelCache, ModelError
from tests.models import saved

BLOCK_ROWS = 32


def rows(count: int) -> pa.RecordBatch:
    values = np.random.default_rng(3).normal(size=count * 16).astype(np.float32)
    return pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(values), 16)})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("preloading")
    registry = Registry(str(folder / "registry"))
    saved.save(saved.Small(), folder / "small")
    saved.save(saved.Small(gain=2.0), folder / "other")
    registry.publish("small", str(folder / "small"))
    registry.publish("small", str(folder / "other"))  # another graph
    doubled = saved.write_like(registry.path("small", 2), lambda key, value: value * 2 if "w1" in key else value)
    registry.publish_variables("small", 2, doubled)
    return registry


def test_a_graph_from_a_child_gives_the_bits_of_one_loaded_here(small: Registry) -> None:
    prepared, here = (ModelCache(small, block_rows=BLOCK_ROWS) for _ in range(2))
    functions = len(context.context().list_function_names())
    for version in (2, 3):
        served = prepare(prepared, "small", version)
        for count in (1, 7, 32, 100):
            assert served.predict(rows(count))["p"].equals(here.get("small", version).predict(rows(count))["p"])
    assert not isinstance(prepared.get("small", 3)._graph, LoadedGraph)
    assert prepared.get("small", 2)._graph is prepared.get("small", 3)._graph, (
        "a version with the same graph swaps variables only"
    )
    assert not prepared.get("small", 2).predict(rows(9))["p"].equals(prepared.get("small", 3).predict(rows(9))["p"])
    before = len(context.context().list_function_names())
    del served, prepared
    gc.collect()
    assert len(context.context().list_function_names()) < before, "the functions go with the last version that needs them"
    assert functions > 0


def test_a_graph_with_tables_is_loaded_here(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    saved.save(saved.Rich(tmp_path), tmp_path / "rich")
    registry.publish("rich", str(tmp_path / "rich"))
    cache = ModelCache(registry, block_rows=BLOCK_ROWS)
    served = prepare(cache, "rich", 1)
    assert isinstance(served._graph, LoadedGraph)


def test_what_hangs_in_the_child_is_not_loaded_here_either(small: Registry) -> None:
    cache = ModelCache(small, block_rows=BLOCK_ROWS)
    with pytest.raises(ModelError, match=r"version 2 of small cannot be loaded: it was not done with .* after 0.01 s"):
        cache.prepare("small", 2, _Maker(BLOCK_ROWS, Limits(seconds=0.01)))
    with pytest.raises(ModelError, match=r"was not done with"):
        cache.get("small", 2)
    assert len(cache.get("small", 1).predict(rows(3))["p"]) == 3, "the others predict on"


def test_the_watcher_gets_ready_what_will_be_live_and_gives_up_on_what_is_damaged(small: Registry, tmp_path: Path) -> None:
    shutil.copytree(small.root, tmp_path / "registry")
    registry = Registry(str(tmp_path / "registry"))
    log = ActivationLog(registry.root, "small")
    log.activate(1, by="test", reason="first")
    cache = ModelCache(registry, block_rows=BLOCK_ROWS)
    cache.get("small", 1)
    variables = Path(registry.path("small", 3), "variables", "variables.data-00000-of-00001")
    content = bytearray(variables.read_bytes())
    content[100] ^= 1
    variables.write_bytes(content)
    watcher = Preloader(cache, "small")
    watcher.look()  # the newest candidate is damaged
    assert not cache.has("small", 3)
    log.activate(2, 10_000_000, by="test", reason="planned")
    done = threading.Thread(target=watcher.look)
    done.start()
    done.join(120)
    assert cache.has("small", 2)
    watcher.look()
    assert not cache.has("small", 3)
