"""What a version *is*: a digest over its variables and one over its graph, not over its files.

TensorFlow writes other bytes each time it saves the same module: every function gets a number from a process-wide counter in
its name (`__inference_predict_111`, then `_419`), these numbers get into the names of arguments and nodes, and the functions
are stored in the order of their names' hashes. The graph's digest is over a canonical form that leaves all of that out. A
function is known by the digest of what it computes, and a call by the digest of what it calls, as in a Merkle tree; so a
function's name and place do not count, and any change inside a function reaches the digest of the graph. Left out besides:
debug information and the version of TensorFlow that saved.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from models import storage

# In a checkpoint, but not variables of the model: the shape of the object graph (saved_model.pb has it as well), and how often
# a `tf.train.Checkpoint` saved.
BOOKKEEPING = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE")
SAVED_MODEL = "saved_model.pb"

_NUMBER = re.compile(r"_(\d+)(?!\d)")
_INITIALIZER = re.compile(r"\bkey_value_init\d+")  # the scope of a table's initializer; the number is the process's as well
_TABLE = re.compile(r"(?:table_)?(\d+)")  # how TensorFlow calls a lookup table that was given no name
# A table made from a file is called by the path that the file had then; of that, the file's name counts.
_PATH = re.compile(r"(?<=tf\.Tensor\(b')[^']*/")


class DigestError(ValueError):
    """A SavedModel that cannot be read, or whose variables do not pass TensorFlow's own checksums."""


class Digests(NamedTuple):
    """sha256 in hex."""

    graph: str
    variables: str
    version: str  # over both

    @classmethod
    def of_parts(cls, graph: str, variables: str) -> Digests:
        """The digests of a version with these parts."""
        return cls(graph, variables, hashlib.sha256(f"{graph} {variables}".encode()).hexdigest())


def version_digest(path: str) -> Digests:
    """The digests of the SavedModel in this local folder.

    Raises:
        DigestError: it cannot be read or its variables are damaged.
    """
    return Digests.of_parts(graph_digest(path), variables_digest(path))


def checkpoint_reader(path: str) -> Any:
    """TensorFlow's reader of the variables of the SavedModel in this folder; None where it has no variables.

    Raises:
        DigestError: the index of the variables is damaged.
    """
    import tensorflow as tf

    prefix = f"{path}/variables/variables"
    if not tf.io.gfile.exists(prefix + ".index"):
        return None
    try:
        return tf.train.load_checkpoint(prefix)
    except (tf.errors.OpError, ValueError, RuntimeError, LookupError) as error:
        raise DigestError(f"the variables in {prefix}.* cannot be read: {error}. Save or copy the model again.") from error


def checkpoint_layout(path: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of all that a checkpoint holds, the object graph included, by key; from the index alone."""
    if (reader := checkpoint_reader(path)) is None:
        return {}
    dtypes = reader.get_variable_to_dtype_map()
    return {key: (dtypes[key].name, tuple(shape)) for key, shape in reader.get_variable_to_shape_map().items()}


def variables_layout(path: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every variable by checkpoint key, from the index alone; what is bookkeeping is left out."""
    return {key: layout for key, layout in sorted(checkpoint_layout(path).items()) if key not in BOOKKEEPING}


def variables_digest(path: str) -> str:
    """sha256 over the variables of the SavedModel in this folder: (checkpoint key, dtype, shape, bytes), sorted by key.

    TensorFlow keeps a checksum of every tensor and of the index, and checks it when it reads.

    Raises:
        DigestError: a checksum is wrong, or a file is missing or cut off.
    """
    import tensorflow as tf

    reader = checkpoint_reader(path)

    def read(key: str) -> Any:
        try:
            return reader.get_tensor(key)
        except (tf.errors.OpError, ValueError, RuntimeError, LookupError) as error:
            raise DigestError(
                f"variable {key!r} in {path}/variables is damaged: {error}. Save or copy the model again."
            ) from error

    return _digest_of((key, *layout, read(key)) for key, layout in variables_layout(path).items())


def values_layout(values: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What `checkpoint_layout` will give of a checkpoint of these tensors."""
    return {key: (value.dtype.name, tuple(value.shape)) for key, value in values.items()}


def values_digest(values: Mapping[str, Any]) -> str:
    """What `variables_digest` will give of a checkpoint of these tensors, the bookkeeping among them."""
    layout = values_layout(values)
    return _digest_of((key, *layout[key], values[key].numpy()) for key in sorted(values) if key not in BOOKKEEPING)


def _digest_of(variables: Iterable[tuple[str, str, tuple[int, ...], Any]]) -> str:
    """Of (checkpoint key, dtype, shape, value), sorted by key."""
    digest = hashlib.sha256()
    for key, dtype, shape, value in variables:
        if dtype == "string":
            strings = value.ravel().tolist() if shape else [value]
            content = b"".join(len(text).to_bytes(8, "little") + text for text in strings)
        else:
            content = value.tobytes()
        _add(digest, key.encode(), dtype.encode(), repr(shape).encode(), content)
    return digest.hexdigest()


def file_digests(path: str, notes: Container[str]) -> dict[str, str]:
    """sha256 of the files in a local folder but the variables, which have a digest of their own, and our own notes."""
    digests = {}
    for name in storage.files(path):
        if name not in notes and not name.startswith("variables/"):
            with Path(path, name).open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def graph_digest(path: str) -> str:
    """sha256 over the canonical form of `saved_model.pb` and over the assets by name and content.

    Raises:
        DigestError: there is no readable `saved_model.pb`.
    """
    saved_model = read_saved_model(path)
    digest = hashlib.sha256()
    try:
        for meta_graph in saved_model.meta_graphs:
            digest.update(_meta_graph(meta_graph))
    except RecursionError as error:
        raise DigestError(
            f"the functions of {path} call each other too deeply. Save the model with fewer layers of calls."
        ) from error
    assets = Path(path, "assets")
    for name in sorted(str(file.relative_to(assets)) for file in assets.rglob("*") if file.is_file()):
        with (assets / name).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        _add(digest, name.replace(os.sep, "/").encode(), content)
    return digest.hexdigest()


def read_saved_model(path: str) -> Any:
    """The SavedModel protobuf in this local folder; the model is not loaded.

    Raises:
        DigestError: there is none, or it is no protobuf of this kind.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.protobuf import saved_model_pb2

    file = Path(path, SAVED_MODEL)
    if not file.is_file():
        found = sorted(child.name for child in Path(path).iterdir()) if Path(path).is_dir() else None
        what = "there is no such folder" if found is None else f"the folder holds {', '.join(found[:8]) or 'nothing'}"
        raise DigestError(
            f"expected a SavedModel at {path}, but {what}. Write one with tf.saved_model.save or keras' model.export."
        )
    try:
        saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except DecodeError as error:
        raise DigestError(f"{file} is damaged or no SavedModel: {error}. Save or copy the model again.") from error
    if not saved_model.meta_graphs:
        raise DigestError(f"{file} is empty: it holds no graph. Save or copy the model again.")
    return saved_model


def _add(digest: Any, *parts: bytes) -> None:
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    _add(digest, *parts)
    return digest.hexdigest()


def _bytes(message: Any) -> bytes:
    return message.SerializeToString(deterministic=True)


def _meta_graph(meta_graph: Any) -> bytes:
    canonical = type(meta_graph)()
    canonical.CopyFrom(meta_graph)
    functions = _Functions(canonical.graph_def)
    info, graph, objects = canonical.meta_info_def, canonical.graph_def, canonical.object_graph_def
    parts = [f"{functions.reference(name)} {alias}" for name, alias in info.function_aliases.items()]
    for field in ("tensorflow_version", "tensorflow_git_version", "stripped_op_list", "function_aliases"):
        info.ClearField(field)

    parts += [functions.reference(name) for name in functions.by_name]
    parts += [
        functions.reference(gradient.function_name) + functions.text(gradient.gradient_func)
        for gradient in graph.library.gradient
    ]
    nodes = functions.nodes(graph.node, str)
    for field in ("node", "library", "debug_info"):
        graph.ClearField(field)

    # A concrete function of an object is what it computes and the objects it was bound to.
    concrete = {
        name: _hash(functions.reference(name).encode(), _bytes(bound)) for name, bound in objects.concrete_functions.items()
    }
    for node in objects.nodes:
        if node.HasField("function"):
            node.function.concrete_functions[:] = [concrete.get(name, name) for name in node.function.concrete_functions]
        elif node.HasField("bare_concrete_function"):
            bare = node.bare_concrete_function
            bare.concrete_function_name = concrete.get(bare.concrete_function_name, bare.concrete_function_name)
        elif node.HasField("captured_tensor"):
            captured = node.captured_tensor
            captured.concrete_function = concrete.get(captured.concrete_function, captured.concrete_function)
    objects.ClearField("concrete_functions")
    return _hash(_bytes(canonical), *nodes, *(part.encode() for part in sorted([*parts, *concrete.values()]))).encode()


class _Functions:
    """The functions of a graph by what they compute."""

    def __init__(self, graph: Any) -> None:
        library = graph.library
        self.by_name = {function.signature.name: function for function in library.function}
        # Custom gradients are found by a name with a number of this process in it: `CustomGradient-57`.
        self._gradients = {entry.registered_op_type: entry.gradient_func for entry in library.registered_gradients}
        self._references: dict[str, str] = {}
        # What of a function's name reaches other names, by the number it ends with: 46 -> {while_cond_46}.
        self._heads: dict[str, set[str]] = {}
        for name in self.by_name:
            for match in _NUMBER.finditer(name):
                self._heads.setdefault(match[1], set()).add(name[: match.end()])
        # Tables are shared by name, and a table without one is named by its number in the process: only the order counts.
        bodies = [graph.node, *(function.node_def for function in library.function)]
        shared = {node.attr["shared_name"].s.decode() for nodes in bodies for node in nodes if "shared_name" in node.attr}
        tables = sorted((int(found[1]), name) for name in shared if (found := _TABLE.fullmatch(name)))
        self._tables = {name: f"table_#{rank}" for rank, (_, name) in enumerate(tables)}

    def text(self, text: str) -> str:
        """A text without the numbers that come from function names."""

        def replaced(match: re.Match[str]) -> str:
            heads = self._heads.get(match[1], ())
            return "_#" if any(text.endswith(head, 0, match.end()) for head in heads) else match[0]

        return _INITIALIZER.sub("key_value_init#", _NUMBER.sub(replaced, text))

    def reference(self, name: str) -> str:
        """The digest of the function with this name; the text itself where it names no function."""
        if name not in self._references:
            if name not in self.by_name:
                return name
            self._references[name] = self.text(name)  # for a function that reaches itself
            self._references[name] = self._digest(self.by_name[name])
        return self._references[name]

    def _digest(self, function: Any) -> str:
        canonical = type(function)()
        canonical.CopyFrom(function)
        signature = canonical.signature
        # Arguments and results are known by their places: a captured one may have a number of this process for a name.
        places = {arg.name: f"argument#{place}" for place, arg in enumerate(signature.input_arg)}
        results = {arg.name: f"result#{place}" for place, arg in enumerate(signature.output_arg)}
        names = [node.name for node in function.node_def]
        # Should two names become one, the wiring would be lost: such a function keeps its names.
        by_text = self.text if len({self.text(name) for name in names}) == len(set(names)) else str

        def rename(text: str) -> str:
            head, colon, tail = text.partition(":")
            return places[head] + colon + tail if head in places else by_text(text)

        signature.name = ""
        for arg in signature.input_arg:
            arg.name = places[arg.name]
        for arg in signature.output_arg:
            arg.name = results[arg.name]
        nodes = self.nodes(canonical.node_def, rename)
        canonical.ClearField("node_def")
        for outputs in (canonical.ret, canonical.control_ret):
            renamed = {results.get(name) or rename(name): rename(value) for name, value in outputs.items()}
            outputs.clear()
            outputs.update(renamed)
        signature.control_output[:] = [rename(name) for name in signature.control_output]
        self._attributes(canonical.attr)
        for index in canonical.arg_attr:
            self._attributes(canonical.arg_attr[index].attr)
        return _hash(_bytes(canonical), *nodes)

    def nodes(self, nodes: Iterable[Any], rename: Any) -> list[bytes]:
        """The nodes, changed in place to their canonical form, as sorted bytes: their order in the file means nothing."""
        for node in nodes:
            node.name = rename(node.name)
            node.input[:] = [rename(name) for name in node.input]
            node.op = self.reference(node.op)
            node.ClearField("experimental_debug_info")
            self._attributes(node.attr)
        return sorted(_bytes(node) for node in nodes)

    def _attributes(self, attributes: Any) -> None:
        for key in attributes:
            value = attributes[key]
            if value.HasField("func"):
                self._call(value.func)
            elif value.HasField("list"):
                for func in value.list.func:
                    self._call(func)
            elif value.HasField("s"):
                value.s = self._string(key, value.s)

    def _call(self, func: Any) -> None:
        func.name = self.reference(func.name)
        self._attributes(func.attr)

    def _string(self, key: str, value: bytes) -> bytes:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            return value
        if key == "_user_specified_name" and text.isdigit():
            return b""  # a captured tensor without a name is called by its number in the process
        if key == "_gradient_op_type":
            return self.reference(self._gradients.get(text, re.sub(r"-\d+$", "", text))).encode()
        if key == "shared_name":
            return self._tables.get(text, _PATH.sub("", text)).encode()
        return self.text(text).encode()
