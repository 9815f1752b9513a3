"""A SavedModel's graph in memory, and its variables apart from it.

TensorFlow is given rows in blocks of one size, and the blocks are walked inside the graph; see `models.serving`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2
from tensorflow.python.eager.context import anonymous_name

from models.digest import BOOKKEEPING
from models.registry import OBJECT_GRAPH
from models.signature import SERVING_SIGNATURE


class ModelError(Exception):
    """A version that cannot be loaded or that refuses a batch; says which and why."""


def variables_prefix(path: str) -> str:
    """Where TensorFlow keeps the variables of the SavedModel in this folder."""
    return f"{path}/variables/variables"


def checkpointed_variables(root: Any, path: str) -> tuple[dict[str, Any], set[str]]:
    """What of a loaded SavedModel came from its checkpoint.

    Args:
        root: what `tf.saved_model.load(path)` gave.
        path: the SavedModel's folder.

    Returns:
        The variables by checkpoint key, and the keys of all else but bookkeeping, as the contents of a mutable lookup table.
    """
    prefix = variables_prefix(path)
    if not tf.io.gfile.exists(prefix + ".index"):
        return {}, set()  # a model without variables
    reader = tf.train.load_checkpoint(prefix)
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(reader.get_tensor(OBJECT_GRAPH))
    variables = {
        graph.nodes[node].attributes[0].checkpoint_key: trackable
        for node, trackable in tf.train.CheckpointView(prefix).match(root).items()
        if isinstance(trackable, tf.Variable) and graph.nodes[node].attributes
    }
    return variables, reader.get_variable_to_shape_map().keys() - variables.keys() - set(BOOKKEEPING)


def make_resource(value: np.ndarray | tf.Tensor) -> tf.Tensor:
    """A variable with this value as a bare handle, at a third of a `tf.Variable`'s cost; freed with its last reference."""
    tensor = tf.constant(value)
    handle = tf.raw_ops.VarHandleOp(dtype=tensor.dtype, shape=tensor.shape, shared_name=anonymous_name())
    tf.raw_ops.AssignVariableOp(resource=handle, value=tensor)
    return handle


def read_variables(path: str, keys: Sequence[str], values: Mapping[str, tf.Tensor] | None = None) -> list[tf.Tensor]:
    """Variables by checkpoint key, as handles, with the values of the version in this folder, or with these."""
    if not keys:
        return []
    if values is not None:
        return [make_resource(values[key]) for key in keys]
    reader = tf.train.load_checkpoint(variables_prefix(path))
    return [make_resource(reader.get_tensor(key)) for key in keys]


def cut_into_blocks(columns: list[np.ndarray], rows: int, block_rows: int) -> tuple[list[tf.Tensor], int]:
    """Columns of shape (rows, ...) as tensors of shape (blocks, block_rows, ...), and how many blocks.

    Padded with the last row: a value that the model takes, where a zero might not be one.
    """
    blocks = -(-rows // block_rows)
    tensors = []
    for column in columns:
        if padding := blocks * block_rows - rows:
            column = np.concatenate([column, np.repeat(column[-1:], padding, axis=0)])
        tensors.append(tf.constant(column.reshape(blocks, block_rows, *column.shape[1:])))
    return tensors, blocks


def join_blocks(given: Mapping[str, tf.Tensor], rows: int, blocks: int, block_rows: int) -> dict[str, np.ndarray]:
    """The inverse of `cut_into_blocks`, for outputs.

    Raises:
        ValueError: an output has not a row for every row of the input.
    """
    for name, value in given.items():
        if value.shape[:2] != (blocks, block_rows):
            raise ValueError(
                f"output {name!r} has the shape {value.shape[1:]} for {block_rows} rows; expected one row for each. "
                "Let the signature return nothing that is computed over a batch."
            )
    return {name: value.numpy().reshape(-1, *value.shape[2:])[:rows] for name, value in given.items()}


class Graph(Protocol):
    """What a version's variables are handed to: a `LoadedGraph`, or a `models.exported_graph.ExportedGraph`."""

    block_rows: int
    input_names: list[str]
    shareable: bool

    def variables(self, path: str, values: Mapping[str, tf.Tensor] | None = None) -> list[tf.Tensor]:
        """The variables that the graph reads, with the values of the version in this folder, or these by checkpoint key."""

    def predict(self, columns: list[np.ndarray], rows: int, variables: list[tf.Tensor]) -> dict[str, np.ndarray]:
        """Calls the graph."""


class LoadedGraph:
    """A SavedModel's graph in memory, to be called with the variables of any version that shares it."""

    def __init__(self, path: str, block_rows: int, root: Any = None) -> None:
        """Loads the SavedModel in this folder, or takes it from memory.

        Args:
            path: the folder.
            block_rows: rows that the graph is given at a time.
            root: what `tf.saved_model.load` gave for it. Its variables may change: each version's are handed to the graph.

        Raises:
            ModelError: it does not load, or has no such signature.
        """
        try:
            self._root = tf.saved_model.load(path) if root is None else root
            self._function = self._root.signatures[SERVING_SIGNATURE]
        except Exception as error:  # TensorFlow raises nearly anything here; the caller wants one kind
            raise ModelError(f"{path} does not load as a SavedModel with signature {SERVING_SIGNATURE!r}: {error}") from error
        self.block_rows = block_rows
        self.input_names: list[str] = list(self._function._arg_keywords)
        variables, others = checkpointed_variables(self._root, path)
        # What else the checkpoint holds, as a mutable lookup table, stays as it was loaded: then this serves one version only.
        self.shareable = not others
        keys = {id(variable.handle): key for key, variable in variables.items()}
        # A capture is a variable, of which every version has its own, or comes with the graph, as a constant lookup table.
        self.captures = [(keys.get(id(capture)), capture) for capture in self._function.captured_inputs]
        self.signatures = tuple(self._root.signatures)
        self._blocks = tf.function(self._run_blocks, autograph=False)
        self._traced: Any = None

    def variables(self, path: str, values: Mapping[str, tf.Tensor] | None = None) -> list[tf.Tensor]:
        """See `Graph`; as handles."""
        return read_variables(path, [key for key, _ in self.captures if key is not None], values)

    def predict(self, columns: list[np.ndarray], rows: int, variables: list[tf.Tensor]) -> dict[str, np.ndarray]:
        """Calls the graph.

        Args:
            columns: one array per name in `input_names`, each of shape (rows, ...) and of the signature's dtype.
            rows: number of rows, at least 1.
            variables: what `variables` gave for the version.

        Returns:
            An array of shape (rows, ...) per output.

        Raises:
            ValueError: an output has not a row for every row of the input.
            tf.errors.OpError: the graph failed.
        """
        tensors, blocks = cut_into_blocks(columns, rows, self.block_rows)
        own = iter(variables)
        captures = [capture if key is None else next(own) for key, capture in self.captures]
        traced = self.traced()
        given = traced._call_flat([*tensors, *captures], traced.captured_inputs)
        return join_blocks(given, rows, blocks, self.block_rows)

    def traced(self) -> Any:
        """The function that walks the blocks: for any number of them, and called without `tf.function`, which looks at every
        argument at every call."""
        if self._traced is None:
            (_, inputs), captures = self._function.structured_input_signature, [capture for _, capture in self.captures]
            specs = [
                tf.TensorSpec([None, self.block_rows, *inputs[name].shape[1:]], inputs[name].dtype) for name in self.input_names
            ]
            self._traced = self._blocks.get_concrete_function(specs, captures)
        return self._traced

    def _run_blocks(self, tensors: list[tf.Tensor], captures: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = self._function.structured_outputs
        # Not the number of rows: an output that has another one is refused by name, in `predict`.
        signature = {
            name: tf.TensorSpec(None if spec.shape.rank is None else [None, *spec.shape[1:]], spec.dtype)
            for name, spec in outputs.items()
        }
        # `_call_flat` is how a ConcreteFunction calls itself; there is no public way to hand it other captures.
        return tf.map_fn(
            lambda block: self._function._call_flat(list(block), captures), tuple(tensors), fn_output_signature=signature
        )
