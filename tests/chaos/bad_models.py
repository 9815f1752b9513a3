"""SavedModels that must never serve, each with one fault. All are variants of one good model: score = slope * a + b."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from models.gate.golden import write_golden

Body = Callable[[Any, tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]
MB = 1 << 20


def line(self: Any, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
    score = self.slope * a + b
    return {"score": score, "prediction": tf.cast(score > 0, tf.int64)}


def save(folder: Path, body: Body = line, slope: float = 1.0, names: str = "ab", dtype: Any = tf.float32, **more: Any) -> Path:
    """A module with one signature, saved; `more` are attributes of the module."""

    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = tf.Variable(slope, dtype=tf.float32)
            for name, value in more.items():
                setattr(self, name, value() if callable(value) else value)

        @tf.function(input_signature=[tf.TensorSpec([None], dtype, name) for name in names])
        def predict(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
            return body(self, a, b)

    module = Module()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.predict})
    return folder


def plus(effect: Callable[[Any, tf.Tensor], Any]) -> Body:
    """The good model with something beside: the effect's result times zero is added, so that nothing prunes it."""

    def body(self: Any, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        given = effect(self, a)
        with tf.control_dependencies([] if given is None else [given]):
            return line(self, tf.identity(a), b)

    return body


def golden(folder: Path, *, swapped: bool = False) -> Path:
    """Golden records of the good model; `swapped` as if the columns had been in another order in training."""
    draw = np.random.default_rng(5)
    a, b = draw.normal(size=(2, 50)).astype(np.float32)
    score = 3 * b + a if swapped else 3 * a + b
    write_golden(
        str(folder), pa.record_batch({"a": a, "b": b}), {"score": pa.array(score), "prediction": pa.array((score > 0) * 1)}
    )
    return folder


def edit_graph(folder: Path, change: Callable[[Any], None]) -> Path:
    """Changes `saved_model.pb` by hand."""
    file = folder / "saved_model.pb"
    graph = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(graph)
    file.write_bytes(graph.SerializeToString())
    return folder


def data_file(folder: Path) -> Path:
    return next(folder.glob("variables/variables.data-*"))


def flip(file: Path, at: float, bit: int = 4) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * at)] ^= 1 << bit
    file.write_bytes(content)


def _rename_op(old: str, new: str, **attributes: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        for function in graph.meta_graphs[0].graph_def.library.function:
            for node in function.node_def:
                if node.op == old:
                    node.op = new
                    for name, value in attributes.items():
                        node.attr[name].s = value.encode()
                    return

    return change


def _recursive(graph: Any) -> None:
    """Makes the function that is served call itself."""
    for function in graph.meta_graphs[0].graph_def.library.function:
        if "predict" in function.signature.name and "signature_wrapper" not in function.signature.name:
            for node in function.node_def:
                if node.op == "Identity":
                    node.op = "StatefulPartitionedCall"
                    node.attr["f"].func.name = function.signature.name
                    for name in ("Tin", "Tout"):
                        node.attr[name].list.type[:] = [1]
                    return


def _deep(graph: Any, depth: int = 4000) -> None:
    """Puts so many calls within calls behind the function that is served that the machine's stack does not hold them."""
    library = graph.meta_graphs[0].graph_def.library
    [served] = [f for f in library.function if "predict" in f.signature.name and "signature_wrapper" not in f.signature.name]
    node = next(node for node in served.node_def if node.op == "Identity")
    node.op = "StatefulPartitionedCall"
    node.attr["f"].func.name = "__inference_deep_0_900000"
    for name in ("Tin", "Tout"):
        node.attr[name].list.type[:] = [1]
    node.attr.pop("T", None)
    for level in range(depth):
        function = library.function.add()
        function.signature.name = f"__inference_deep_{level}_{900000 + level}"
        function.signature.input_arg.add(name="x", type=1)
        function.signature.output_arg.add(name="y", type=1)
        function.signature.is_stateful = True
        call = function.node_def.add(name="call", op="StatefulPartitionedCall", input=["x"])
        for name in ("Tin", "Tout"):
            call.attr[name].list.type[:] = [1]
        call.attr["f"].func.name = f"__inference_deep_{level + 1}_{900001 + level}"
        if level + 1 == depth:
            call.op = "Identity"
            call.attr.clear()
            call.attr["T"].type = 1
        function.ret["y"] = "call:output:0"


class HangsOnLoad(tf.saved_model.experimental.TrackableResource):
    """A resource whose initialisation, which loading runs, never ends."""

    def _create_resource(self) -> tf.Tensor:
        return tf.raw_ops.VarHandleOp(dtype=tf.int32, shape=[], shared_name="hangs")

    def _initialize(self) -> None:
        forever = tf.while_loop(lambda n: n >= 0, lambda n: (n + 1) % 1000, [tf.constant(0)])
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=forever[0])


class DiesOnLoad(HangsOnLoad):
    """A resource whose initialisation ends the process by itself: TensorFlow throws what nobody catches."""

    def _initialize(self) -> None:
        many = tf.raw_ops.TensorListReserve(element_shape=-1, num_elements=2**31 - 1, element_dtype=tf.float32)
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=tf.raw_ops.TensorListLength(input_handle=many))


def _forever(self: Any, a: tf.Tensor) -> tf.Tensor:
    return tf.while_loop(lambda n: n >= 0, lambda n: (n + 1) % 1000, [tf.cast(tf.size(a) * 0, tf.int32)])[0]


def _slow(self: Any, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
    x = tf.ones([400, 400]) * a[0]
    _, x = tf.while_loop(lambda n, x: n < 100, lambda n, x: (n + 1, tf.tanh(tf.matmul(x, x))), [tf.constant(0), x])
    return line(self, a + 0 * x[0, 0], b)


def _memory(self: Any, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
    many = tf.random.stateless_uniform([tf.size(a) * 0 + (1 << 30), 8], [1, tf.cast(a[0], tf.int32)])
    return line(self, a + 0 * tf.reduce_max(tf.sort(many, axis=0)), b)


def _count(self: Any, a: tf.Tensor) -> tf.Tensor:
    return self.slope.assign_add(0.5)


def _dataset(self: Any, a: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.TextLineDataset(filenames=["/etc/hostname"], compression_type="", buffer_size=1)


def _restore(self: Any, a: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.RestoreV2(prefix="/tmp/x", tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32])[0]


# Each takes the folder to write and gives the folder to publish.
MODELS: dict[str, Callable[[Path], Path]] = {
    "no such folder": lambda f: f / "nowhere",
    "empty folder": lambda f: (f.mkdir(), f)[1],
    "no graph": lambda f: _without(save(f), "saved_model.pb"),
    "half-copied: no data of the variables": lambda f: _without(save(f), "variables/variables.data-00000-of-00001"),
    "graph cut off": lambda f: _cut(save(f), "saved_model.pb", 0.7),
    "variables cut off": lambda f: _cut(save(f), "variables/variables.data-00000-of-00001", 0.5),
    "index of the variables cut off": lambda f: _cut(save(f), "variables/variables.index", 0.5),
    "a bit of the variables flipped": lambda f: (flip(data_file(save(f)), 0.0), f)[1],
    "a bit of the index flipped": lambda f: (flip(save(f) / "variables" / "variables.index", 0.3), f)[1],
    "graph is noise": lambda f: _noise(save(f)),
    "no serving signature": lambda f: edit_graph(
        save(f), lambda graph: graph.meta_graphs[0].signature_def.pop("serving_default") and None
    ),
    "input of another name": lambda f: save(f, names="ac"),
    "input of another dtype": lambda f: save(
        f, lambda self, a, b: line(self, tf.cast(a, tf.float32), tf.cast(b, tf.float32)), dtype=tf.int64
    ),
    "an output missing": lambda f: save(f, lambda self, a, b: {"score": line(self, a, b)["score"]}),
    "an output of another dtype": lambda f: save(
        f, lambda self, a, b: {"score": line(self, a, b)["score"], "prediction": line(self, a, b)["score"]}
    ),
    "an output of another shape": lambda f: save(f, lambda self, a, b: {**line(self, a, b), "score": tf.stack([a, b], axis=1)}),
    "columns in another order than in training": lambda f: golden(save(f, slope=3.0), swapped=True),
    "golden records that cannot be read": lambda f: _write(golden(save(f)), "assets.extra/golden.parquet", b"no parquet"),
    "weights are NaN": lambda f: save(f, slope=math.nan),
    "weights are infinite": lambda f: save(f, slope=math.inf),
    "outputs are NaN": lambda f: save(f, lambda self, a, b: {**line(self, a, b), "score": tf.math.log(self.slope * a + b)}),
    "huge": lambda f: _sparse(save(f), 3000 * MB),
    "very many files": lambda f: _many(save(f), 10_001),
    "slow": lambda f: save(f, _slow),
    "hangs when it is loaded": lambda f: save(f, resource=HangsOnLoad),
    "ends the process when it is loaded": lambda f: save(f, resource=DiesOnLoad),
    "hangs when it predicts": lambda f: save(f, plus(_forever)),
    "calls itself": lambda f: edit_graph(save(f), _recursive),
    "calls nested without end": lambda f: edit_graph(save(f), _deep),
    "takes 32 GB when it predicts": lambda f: save(f, _memory),
    "op that nobody knows": lambda f: edit_graph(save(f), _rename_op("Mul", "FancyMul9")),
    "ends the process": lambda f: edit_graph(save(f, plus(lambda s, a: tf.no_op())), _rename_op("NoOp", "Abort")),
    "calls Python (PyFunc)": lambda f: save(f, plus(lambda s, a: tf.numpy_function(lambda x: x, [a], tf.float32))),
    "calls Python (EagerPyFunc)": lambda f: save(f, plus(lambda s, a: tf.py_function(lambda x: x, [a], tf.float32))),
    "reads a file": lambda f: save(f, plus(lambda s, a: tf.io.read_file("/etc/hostname"))),
    "writes a file": lambda f: save(f, plus(lambda s, a: tf.io.write_file("/tmp/midstream-owned", "x"))),
    "lists files": lambda f: save(f, plus(lambda s, a: tf.io.matching_files("/etc/*"))),
    "prints into a file": lambda f: save(f, plus(lambda s, a: tf.print(a, output_stream="file:///tmp/midstream-owned"))),
    "reads lines of a file": lambda f: save(f, plus(_dataset)),
    "reads a table from a file of the machine": lambda f: _table_from_file(f),
    "restores variables from elsewhere": lambda f: save(f, plus(_restore)),
    "waits for another machine": lambda f: edit_graph(
        save(f, plus(lambda s, a: tf.random.uniform([]))), _rename_op("RandomUniform", "RpcClient")
    ),
    "random": lambda f: save(f, lambda self, a, b: line(self, a + tf.random.normal(tf.shape(a)), b)),
    "changes itself when it predicts": lambda f: save(f, plus(_count)),
    "looks at the rows beside": lambda f: save(f, lambda self, a, b: line(self, a - tf.reduce_mean(a), b)),
    "gives one row for all": lambda f: save(f, lambda self, a, b: line(self, tf.reduce_mean(a, keepdims=True), b[:1])),
    "a link out of the folder": lambda f: _link(save(f), "assets/words.txt", "/etc/hostname"),
    "variables are a link": lambda f: _linked_folder(save(f)),
    "a pipe among the files": lambda f: (os.mkfifo(save(f) / "assets" / "pipe"), f)[1],
    "a pickle beside": lambda f: _write(save(f), "model.pkl", b"cos\nsystem\n(S'touch /tmp/midstream-owned'\ntR."),
    "Python beside": lambda f: _write(save(f), "custom_layers/__init__.py", b"raise SystemExit\n"),
    "worse on the holdout": lambda f: save(f, slope=-1.0),
}
IN_A_CHILD = {
    "hangs when it is loaded",
    "ends the process when it is loaded",
    "hangs when it predicts",
    "calls itself",
    "calls nested without end",
    "takes 32 GB when it predicts",
}  # these would take the caller along


def _without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def _cut(folder: Path, name: str, share: float) -> Path:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    return folder


def _noise(folder: Path) -> Path:
    (folder / "saved_model.pb").write_bytes(np.random.default_rng(1).bytes(5000))
    return folder


def _write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


def _sparse(folder: Path, size: int) -> Path:
    with (folder / "assets" / "big.bin").open("wb") as file:
        file.truncate(size)  # takes no room on the disk
    return folder


def _many(folder: Path, count: int) -> Path:
    for number in range(count):
        (folder / "assets" / f"{number}").touch()
    return folder


def _link(folder: Path, name: str, target: str) -> Path:
    (folder / name).symlink_to(target)
    return folder


def _linked_folder(folder: Path) -> Path:
    elsewhere = folder.parent / f"{folder.name}-elsewhere"
    shutil.move(folder / "variables", elsewhere)
    (folder / "variables").symlink_to(elsewhere)
    return folder


def _table_from_file(folder: Path) -> Path:
    whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    (folder.parent / "words.txt").write_text("a\nb\n")

    def table() -> Any:
        return tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(str(folder.parent / "words.txt"), tf.string, whole, tf.int64, number), -1
        )

    save(folder, plus(lambda self, a: self.table.lookup(tf.constant(["a"]))), table=table)

    def elsewhere(graph: Any) -> None:
        """As TensorFlow turns such a file into an asset, the path is put into the graph by hand."""
        for function in graph.meta_graphs[0].graph_def.library.function:
            for node in function.node_def:
                if node.op == "InitializeTableFromTextFileV2":
                    path = function.node_def.add(name="path", op="Const")
                    path.attr["dtype"].type = 7
                    path.attr["value"].tensor.dtype = 7
                    path.attr["value"].tensor.string_val.append(b"/etc/passwd")
                    node.input[1] = "path:output:0"
                    return

    return edit_graph(folder, elsewhere)
