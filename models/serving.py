"""Predicting with a version: one loaded graph, any number of versions of its variables, the same bits in every batch.

TensorFlow is asked for a whole RecordBatch at a time. Rows are padded to blocks of `block_rows` and the blocks are walked
inside the graph: a row's result then depends neither on the rows beside it nor on how many they are (TensorFlow picks its
kernels by shape, and kernels differ in the last bit), nothing is ever traced twice, and Python is left once a batch instead of
once a block.

Versions that share a graph share the loaded module. Each has variables of its own, and predicting with it means handing *its*
variables to the function in place of those it was loaded with. So a swap is a reference, several versions predict side by
side, and none needs a lock.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds
import tensorflow as tf

from models import handed_over
from models.digest import variables_digest
from models.loaded_graph import Graph, LoadedGraph, ModelError
from models.naming import column_for
from models.opened import shared_registry
from models.registry import Manifest, Registry
from models.signature import Signature

SERVING_SIGNATURE = "serving_default"
DEFAULT_BLOCK_ROWS = 1024
DEFAULT_MAX_VERSIONS = 8
_FIRST_PAUSE_S = 0.1  # between tries to load, doubled each time
_TRIED_AGAIN_AFTER_S = 5.0  # a version that failed; until then whoever asks is told so at once


class ServedModel:
    """One version, ready to predict."""

    def __init__(self, graph: Graph, manifest: Manifest, path: str) -> None:
        self.manifest = manifest
        self._graph = graph
        values = handed_over.take(manifest.digests.variables)
        found = variables_digest(path) if values is None else manifest.digests.variables
        if found != manifest.digests.variables:
            raise ModelError(
                f"version {manifest.version} of {manifest.model} is not what was published: its variables have digest "
                f"{found[:12]}, the manifest says {manifest.digests.variables[:12]}. Publish it again and activate that one."
            )
        self._variables = graph.variables(path, values)
        # How long predicting took, the first call left out, which warms up. Two threads may lose a count: it is an average.
        self.seconds, self.rows, self._warm = 0.0, 0, False

    def warm_up(self) -> None:
        """Has TensorFlow make the graph ready, which it else does in the first call."""
        fields = self.manifest.signature.inputs
        if any(size is None for field in fields.values() for size in field.shape):
            return
        columns = [tf.zeros([1, *fields[name].shape], fields[name].dtype).numpy() for name in self._graph.input_names]
        with contextlib.suppress(ValueError, tf.errors.OpError):  # who does not take zeros is warmed up by the first records
            self._graph.predict(columns, 1, self._variables)

    def predict(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """Predicts every row.

        Args:
            batch: has a column for each input of the signature; more columns do no harm.

        Returns:
            One Arrow array of `batch.num_rows` per output of the signature, in its order.

        Raises:
            ModelError: a column is missing, has another type or shape, or the graph failed.
        """
        inputs = self.manifest.signature.inputs
        try:
            columns = [to_numpy(batch, name, inputs[name].dtype, inputs[name].shape) for name in self._graph.input_names]
            if not batch.num_rows:
                return {field.name: pa.array([], field.type) for field in output_schema(self.manifest.signature)}
            begun = time.perf_counter()
            given = self._graph.predict(columns, batch.num_rows, self._variables)
            if self._warm:
                self.seconds, self.rows = self.seconds + time.perf_counter() - begun, self.rows + batch.num_rows
            self._warm = True
            return {name: to_arrow(given[name]) for name in self.manifest.signature.outputs}
        except (ValueError, tf.errors.OpError) as error:
            raise ModelError(f"version {self.manifest.version} of {self.manifest.model} refused a batch: {error}") from error


def to_numpy(batch: pa.RecordBatch, name: str, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """The column for a signature's input, as the array it wants: (rows, *shape). A null becomes NaN where the type has one,
    and an empty text.

    Raises:
        ValueError: no column feeds it, nulls where the type has no NaN, or a type that cannot be cast without changing values.
    """
    name = column_for(name, batch.schema.names)
    column = batch.column(name)
    kind, sizes, missing = column.type, [], None
    if kinds.is_fixed_size_list(kind) and column.null_count:
        missing = column.is_null().to_numpy(zero_copy_only=False)
    while kinds.is_fixed_size_list(kind):
        # Not `flatten`: that leaves out the rows that are null.
        column = column.values.slice(column.offset * kind.list_size, len(column) * kind.list_size)
        sizes.append(kind.list_size)
        kind = kind.value_type
    fits = len(sizes) == len(shape) and all(want in (None, size) for want, size in zip(shape, sizes, strict=True))
    if not fits and (sizes or shape != (1,)):
        raise ValueError(
            f"column {name!r}: the model wants shape {list(shape)} a row, the column is {batch.schema.field(name).type}"
        )
    # A text by itself that is missing is an empty one, in `_cast`; a list of texts that is missing has no such thing.
    filled = dtype.startswith("float") or (dtype == "string" and missing is None)
    if not filled and (nulls := column.null_count if missing is None else missing.sum()):
        raise ValueError(f"column {name!r} has {nulls} nulls, and {dtype} has no NaN to stand for them")
    array = _cast(name, column, dtype).reshape(batch.num_rows, *(sizes or shape))
    return array if missing is None else np.where(missing.reshape(-1, *[1] * len(sizes)), np.nan, array).astype(dtype)


@lru_cache(maxsize=1000)  # the same types come with every batch
def _takes(dtype: str, kind: pa.DataType) -> bool:
    """Whether values of this type can become the dtype, as far as the types tell."""
    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    if dtype == "string":
        return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_binary(kind) or kinds.is_large_binary(kind)
    whole = kinds.is_integer(kind) or kinds.is_boolean(kind)
    return whole or (dtype.startswith("float") and (kinds.is_floating(kind) or kinds.is_decimal(kind)))


def _cast(name: str, column: pa.Array, dtype: str) -> np.ndarray:
    """The values of a column as another type. Refuses what would change them: cut decimals, overflow, text as numbers."""
    if not _takes(dtype, column.type):
        raise ValueError(f"column {name!r} is {column.type}, the model wants {dtype}: cast it in a `map` step")
    if dtype == "string":
        texts = np.asarray(column.to_numpy(zero_copy_only=False), dtype=object)
        return np.where(column.is_valid().to_numpy(zero_copy_only=False), texts, "") if column.null_count else texts
    if dtype.startswith("float"):
        # Doubles are rounded to single precision where the model wants that.
        column = column if kinds.is_floating(column.type) else column.cast(pa.float64())
        with np.errstate(over="ignore"):  # beyond that they are infinite
            return column.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    try:
        return column.cast(pa.from_numpy_dtype(np.dtype(dtype))).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise ValueError(f"column {name!r} is {column.type}, the model wants {dtype}: {error}") from error


def to_arrow(array: np.ndarray) -> pa.Array:
    """An output as an Arrow column: (rows,) and (rows, 1) as plain values, (rows, k) as fixed-size lists."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    text = array.dtype == object
    values = pa.array(array.reshape(-1), pa.binary()).cast(pa.string()) if text else pa.array(array.reshape(-1))
    for size in reversed(array.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values


def output_schema(signature: Signature) -> pa.Schema:
    """The Arrow columns that a signature's outputs become in `to_arrow`."""
    fields = []
    for name, field in signature.outputs.items():
        shape = () if field.shape == (1,) else field.shape
        if None in shape:
            raise ModelError(f"output {name!r} has the shape {list(shape)} a row; expected sizes that are known beforehand")
        kind = pa.string() if field.dtype == "string" else pa.from_numpy_dtype(np.dtype(field.dtype))
        for size in reversed(shape):
            kind = pa.list_(kind, size)
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


Value = TypeVar("Value")


class _OncePerKey(Generic[Value]):
    """A bounded map that makes each value once, however many threads ask; the least recently used one leaves first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, Future[Value]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._lock:
            found = self._values.get(key)
            value = self._values.setdefault(key, Future())
            self._values.move_to_end(key)
            while len(self._values) > self._limit:
                self._values.popitem(last=False)
        if found is None:  # this thread makes it, the others wait for it
            try:
                value.set_result(make())
            except BaseException as error:
                with self._lock:
                    if self._values.get(key) is value:
                        del self._values[key]  # whoever asks later tries again
                value.set_exception(error)
        return value.result()

    def values(self) -> list[Value]:
        """What has been made."""
        with self._lock:
            made = list(self._values.values())
        return [value.result() for value in made if value.done() and value.exception() is None]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)


class ModelCache:
    """The versions that a process has in memory: each loaded once, several at a time, a bounded number."""

    def __init__(
        self, registry: Registry, *, block_rows: int = DEFAULT_BLOCK_ROWS, max_versions: int = DEFAULT_MAX_VERSIONS
    ) -> None:
        self.registry = registry
        self.block_rows = block_rows
        self._graphs: _OncePerKey[Graph] = _OncePerKey(max_versions)
        self._models: _OncePerKey[ServedModel] = _OncePerKey(max_versions)
        self._failed: dict[tuple[str, int], tuple[float, ModelError]] = {}  # until when it is not tried again, and why

    def get(self, model: str, version: int, *, tries: int = 1) -> ServedModel:
        """The version, loaded now if need be.

        Args:
            model: its name.
            version: of the model.
            tries: how often to try, with a growing pause: a file system may be away for a moment.

        Raises:
            ModelError: it is not there, or does not load, or is not what its manifest says.
        """
        return self._get(model, version, lambda: self._load(model, version, self._load_graph), tries, tries > 1)

    def prepare(self, model: str, version: int, make_graph: Callable[[str, Manifest, str], Graph]) -> ServedModel:
        """Loads a version beside those that predict, with a graph that was made elsewhere where it is new.

        Args:
            model: its name.
            version: of the model.
            make_graph: takes the model's name, the manifest and the folder.

        Raises:
            ModelError: see `get`; the version is then not loaded in place either, for a while.
        """
        return self._get(model, version, lambda: self._load(model, version, make_graph), 1, True)

    def latencies(self, model: str) -> dict[int, float]:
        """Seconds a row that the versions in memory took, once warm; without those that have predicted too little."""
        return {
            served.manifest.version: served.seconds / served.rows
            for served in self._models.values()
            if served.manifest.model == model and served.rows >= self.block_rows
        }

    def has(self, model: str, version: int) -> bool:
        """Whether the version is in memory, or being loaded."""
        return (model, version) in self._models

    def __len__(self) -> int:
        return len(self._models)

    def _get(self, model: str, version: int, load: Callable[[], ServedModel], tries: int, remember: bool) -> ServedModel:
        for attempt in range(tries):
            until, error = self._failed.get((model, version), (0.0, None))
            if error is not None and time.monotonic() < until:
                raise error
            try:
                return self._models.get((model, version), load)
            except ModelError as failure:
                if attempt + 1 == tries:
                    if remember:
                        self._failed[model, version] = time.monotonic() + _TRIED_AGAIN_AFTER_S, failure
                    raise
                time.sleep(_FIRST_PAUSE_S * 2**attempt)
        raise AssertionError("at least one try")

    def _load(self, model: str, version: int, make_graph: Callable[[str, Manifest, str], Graph]) -> ServedModel:
        try:
            manifest, path = self.registry.trusted(model, version, graph=False)
            digests = manifest.digests
            graph = self._graphs.get(
                digests.graph, lambda: make_graph(model, *self.registry.trusted(model, version, graph=True))
            )
            if not graph.shareable:
                graph = self._graphs.get(digests.version, lambda: self._load_graph(model, manifest, path))
            return ServedModel(graph, manifest, path)
        except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
            raise ModelError(f"version {version} of {model} cannot be loaded: {error}") from error

    def _load_graph(self, model: str, manifest: Manifest, path: str) -> Graph:
        self.registry.trusted(model, manifest.version, graph=True)
        return LoadedGraph(path, self.block_rows)


_caches: dict[tuple[str, int, int], ModelCache] = {}
_caches_lock = threading.Lock()


def shared_cache(
    registry_root: str, *, block_rows: int = DEFAULT_BLOCK_ROWS, max_versions: int = DEFAULT_MAX_VERSIONS
) -> ModelCache:
    """The process's cache for a registry: kept from one micro-batch to the next where the worker is the driver's process."""
    key = (registry_root, block_rows, max_versions)
    with _caches_lock:
        if key not in _caches:
            _caches[key] = ModelCache(shared_registry(registry_root), block_rows=block_rows, max_versions=max_versions)
        return _caches[key]
