"""A graph made ready elsewhere: loaded and traced in a process of its own, taken into this one as plain functions.

`tf.saved_model.load` and tracing run in Python and hold its lock: a stream that predicts meanwhile stands still for hundreds of
milliseconds. What they come to in the end is a handful of functions. So a child process does both and writes the functions
down;
this process hands them to TensorFlow's runtime, a call each, reads the variables, and calls once to warm up, which TensorFlow
does without Python's lock. The functions are those that `LoadedGraph` would call, so the predictions have the same bits.

`add_function_def`, `remove_function` and `quick_execute` are TensorFlow's own way to keep and call functions; the version of
TensorFlow is pinned, and a test compares with `LoadedGraph`.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.python.eager import context, execute

from models.loaded_graph import LoadedGraph, ModelError, cut_into_blocks, join_blocks, read_variables

LIBRARY, ABOUT = "functions.pb", "about.json"
_OF_TRAINING = ("_forward_func_name", "forward_function_name", "backward_function_name")


class NotExportable(ModelError):
    """The graph needs more than functions and variables: lookup tables, say. It is loaded in place."""


class About(NamedTuple):
    """What is beside the functions."""

    function: str  # to call
    input_names: list[str]
    captures: list[str]  # the variables that it takes after its inputs, by checkpoint key
    outputs: list[str]  # in the order in which it gives them
    block_rows: int


def export(path: str, block_rows: int, tag: str, folder: str) -> None:
    """Loads and traces the SavedModel in a folder, and writes down its functions.

    Args:
        path: the SavedModel's folder.
        block_rows: rows TensorFlow is given at a time.
        tag: put behind the functions' names: names of two graphs must differ in the process that takes them.
        folder: where to write.

    Raises:
        NotExportable: see there.
        ModelError: it does not load.
    """
    graph = LoadedGraph(path, block_rows)
    if not graph.shareable or any(key is None for key, _ in graph.captures):
        raise NotExportable(f"{path} has tables or other state beside its variables")
    traced = graph.traced()
    if traced.captured_inputs:
        raise NotExportable(f"{path} has captures beside its variables")
    library = graph_pb2.GraphDef()
    top = _name(traced)
    names = _collect(top, library)
    for function in library.library.function:
        function.signature.name += tag
        for attribute in _OF_TRAINING:
            function.attr.pop(attribute, None)
        for node in function.node_def:
            node.op = node.op + tag if node.op in names else node.op
            for value in node.attr.values():
                for called in [value.func] if value.HasField("func") else value.list.func:
                    called.name += tag
    about = About(
        top + tag,
        graph.input_names,
        [key for key, _ in graph.captures if key is not None],
        # A function gives its outputs in the order of their names. The dict's own order is that of a map in the SavedModel's
        # protocol buffer, which has none: it differs from process to process.
        sorted(traced.structured_outputs),
        block_rows,
    )
    Path(folder, LIBRARY).write_bytes(library.SerializeToString())
    Path(folder, ABOUT).write_text(json.dumps(about._asdict()))


def _name(traced: Any) -> str:
    name = traced.name
    return str(name.decode() if isinstance(name, bytes) else name)


def _collect(top: str, library: Any) -> set[str]:
    """Adds a function and all that it calls; returns their names."""
    runtime, found, waiting = context.context(), set(), [top]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        function = library.library.function.add()
        function.CopyFrom(runtime.get_function_def(name))
        for node in function.node_def:
            for attribute in _OF_TRAINING:
                node.attr.pop(attribute, None)
            called = [value.func.name for value in node.attr.values() if value.HasField("func")]
            called += [func.name for value in node.attr.values() for func in value.list.func]
            waiting += called + ([node.op] if runtime.has_function(node.op) else [])
    return found


class ExportedGraph:
    """Functions from elsewhere, to be called with the variables of any version that shares them."""

    shareable = True

    def __init__(self, folder: str) -> None:
        """Takes the functions that `export` wrote into a folder; the folder is not needed afterwards."""
        self._about = About(**json.loads(Path(folder, ABOUT).read_text()))
        library = graph_pb2.GraphDef.FromString(Path(folder, LIBRARY).read_bytes())
        self.block_rows, self.input_names = self._about.block_rows, self._about.input_names
        runtime = context.context()
        runtime.ensure_initialized()
        names = [function.signature.name for function in library.library.function]
        for function in library.library.function:
            runtime.add_function_def(function)
        self._attributes = ("executor_type", "", "config_proto", runtime.function_call_options.config_proto_serialized)
        weakref.finalize(self, _forget, names)

    def variables(self, path: str, values: Mapping[str, tf.Tensor] | None = None) -> list[tf.Tensor]:
        """See `Graph`; as handles."""
        return read_variables(path, self._about.captures, values)

    def predict(self, columns: list[np.ndarray], rows: int, variables: list[tf.Tensor]) -> dict[str, np.ndarray]:
        """Calls the graph; see `LoadedGraph.predict`."""
        tensors, blocks = cut_into_blocks(columns, rows, self.block_rows)
        given = execute.quick_execute(
            self._about.function,
            len(self._about.outputs),
            inputs=[*tensors, *variables],
            attrs=self._attributes,
            ctx=context.context(),
        )
        return join_blocks(dict(zip(self._about.outputs, given, strict=True)), rows, blocks, self.block_rows)


def _forget(names: list[str]) -> None:
    runtime = context.context()
    for name in names:
        if runtime.has_function(name):
            runtime.remove_function(name)
