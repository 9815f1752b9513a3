"""New versions get ready while the stream goes on: loaded and warmed up before their boundary, so that the swap is a reference.

A thread reads the activation log and the registry on. A version whose graph is in memory already needs its variables only:
milliseconds. One with a new graph is loaded and traced by a child process (`models.exported_graph`), which also takes the
blow if
it hangs or crashes; then this process takes over the functions and calls them once.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models import isolation
from models.exported_graph import ExportedGraph
from models.gate.behaviour import made_up_rows
from models.isolation import IsolatedFailure, Limits, run_isolated
from models.opened import shared_log
from models.registry import Manifest, UnknownVersion
from models.serving import Graph, LoadedGraph, ModelCache, ModelError, ServedModel
from models.timeline import COLD_START

POLL_S = 0.5
LOOK_BACK = 2  # activations: the one that is live and the one to come
CHILD = Limits(seconds=120.0, memory_bytes=8 << 30, nice=10)
# Python's lock is offered to the thread that predicts this often while this one works; the default of 5 ms would be its p99.
SWITCH_INTERVAL_S = 0.0005
_LOG = logging.getLogger("midstream")


def make_graph(block_rows: int, limits: Limits = CHILD) -> _Maker:
    """How a graph is made without standing in the stream's way; for `ModelCache.prepare`."""
    return _Maker(block_rows, limits)


class _Maker:
    def __init__(self, block_rows: int, limits: Limits) -> None:
        self._block_rows, self._limits = block_rows, limits

    def __call__(self, model: str, manifest: Manifest, path: str) -> Graph:
        tag = f"__{manifest.digests.graph[:16]}_{self._block_rows}"
        folder = tempfile.mkdtemp(prefix="midstream-graph-")
        try:
            order = {"path": str(Path(path).absolute()), "block_rows": self._block_rows, "tag": tag}
            if run_isolated("export", order, self._limits, keep=folder)["exported"]:
                return ExportedGraph(folder)
        except IsolatedFailure as failure:
            raise ModelError(f"version {manifest.version} of {model} cannot be loaded: {failure}") from failure
        finally:
            isolation.remove(folder)
        return LoadedGraph(path, self._block_rows)  # its child loaded it, so it does load


def prepare(cache: ModelCache, model: str, version: int) -> ServedModel:
    """Loads a version beside those that predict, and warms it up.

    Raises:
        ModelError: it does not load, or fails on made-up rows.
    """
    with _generous():
        served = cache.prepare(model, version, make_graph(cache.block_rows))
        with contextlib.suppress(ModelError):  # made-up rows may be refused; the graph is warm then, too
            served.predict(made_up_rows(served.manifest.signature, cache.block_rows))
        return served


@contextlib.contextmanager
def _generous() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_INTERVAL_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Preloader:
    """Watches a model, and gets ready what will be live."""

    def __init__(self, cache: ModelCache, model: str) -> None:
        self._cache, self._model = cache, model
        self._stop = threading.Event()
        self._given_up: set[int] = set()
        self._thread = threading.Thread(target=self._run, name=f"midstream-preload-{model}", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stops watching; what is being loaded is still loaded."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self.look()
            except (
                Exception
            ) as error:  # a registry that is away for a moment, a log that is being mended: the next look will tell
                _LOG.debug("preloading %s: %s", self._model, error)

    def look(self) -> None:
        """Gets ready what is not yet: the latest activations, and the newest candidate."""
        registry = self._cache.registry
        timeline = shared_log(registry.root, self._model).timeline()
        latest = np.concatenate([timeline.version[-LOOK_BACK:], timeline.challenger[-LOOK_BACK:]])
        wanted = [int(version) for version in latest if version != COLD_START]
        newest = registry.newest(self._model)
        if newest is not None and len(timeline):
            wanted.append(newest)
        for version in dict.fromkeys(wanted):
            if version in self._given_up or self._cache.has(self._model, version):
                continue
            try:
                prepare(self._cache, self._model, version)
            except (ModelError, UnknownVersion) as error:
                self._given_up.add(version)
                _LOG.warning("version %d of %s cannot be made ready: %s", version, self._model, error)


_watching: dict[tuple[int, str], Preloader] = {}
_watching_lock = threading.Lock()


def watch(cache: ModelCache, model: str) -> Preloader:
    """Starts to watch a model for a cache, once in a process."""
    with _watching_lock:
        key = id(cache), model
        if key not in _watching:
            _watching[key] = Preloader(cache, model)
            _watching[key].start()
        return _watching[key]
