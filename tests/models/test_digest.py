import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from models.digest import DigestError, Digests, graph_digest, variables_digest, version_digest
from tests.models import saved


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    saved.save(saved.Small(), folder / "small")
    saved.save(saved.Rich(folder), folder / "rich")
    return folder


def test_saving_again_gives_the_same_digest(folder, tmp_path):
    module, rich = saved.Small(), saved.Rich(tmp_path)
    for number in range(2):
        saved.save(module, tmp_path / f"small{number}")
        saved.save(rich, tmp_path / f"rich{number}")
        for kind in ("small", "rich"):
            came = Path(tmp_path, f"{kind}{number}")
            assert (came / "saved_model.pb").read_bytes() != (folder / kind / "saved_model.pb").read_bytes(), "tests nothing"
            assert version_digest(str(came)) == version_digest(str(folder / kind)), f"{kind} {number}"
    loaded = tf.saved_model.load(str(tmp_path / "small0"))
    module.w1.assign(loaded.w1)
    assert version_digest(saved.save(module, tmp_path / "again")) == version_digest(str(folder / "small"))


def test_saving_in_another_process_gives_the_same_digest(folder, tmp_path):
    environment = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, saved.__file__, str(tmp_path / "other")], check=True, env=environment, capture_output=True)
    for kind in ("small", "rich"):
        assert version_digest(str(tmp_path / "other" / kind)) == version_digest(str(folder / kind)), kind


def test_another_graph_or_asset_gives_another_digest(folder, tmp_path):
    digests = {graph_digest(str(folder / "small")), graph_digest(str(folder / "rich"))}
    digests.add(graph_digest(saved.save(saved.Small(gain=1.0000001), tmp_path / "gain")))
    digests.add(graph_digest(saved.save(saved.Rich(tmp_path, words=("a", "c")), tmp_path / "words")))

    class Swapped(saved.Small):
        def logits(self, x):
            return tf.matmul(tf.nn.relu(tf.matmul(x, self.w1 + self.slots[0])), self.w2) * self.gain

    class Tanh(saved.Small):
        def logits(self, x):
            return tf.matmul(tf.nn.tanh(tf.matmul(x, self.w1)), self.w2) * self.gain

    class Doubled(saved.Small):
        def logits(self, x):
            return tf.matmul(tf.nn.relu(tf.matmul(x, self.w1 + self.w1)), self.w2) * self.gain

    digests.update(graph_digest(saved.save(kind(), tmp_path / kind.__name__)) for kind in (Swapped, Tanh, Doubled))
    assert len(digests) == 7
    assert variables_digest(str(tmp_path / "Tanh")) == variables_digest(str(folder / "small"))


def test_every_change_deep_in_a_function_reaches_the_digest(folder, tmp_path):
    """Edits the stored graph: one constant, one wire, one attribute, one captured object at a time."""
    original = saved_model_pb2.SavedModel.FromString((folder / "rich" / "saved_model.pb").read_bytes())
    shutil.copytree(folder / "rich", tmp_path / "rich")
    known = graph_digest(str(folder / "rich"))

    def changed(edit):
        model = saved_model_pb2.SavedModel()
        model.CopyFrom(original)
        edit(model.meta_graphs[0])
        (tmp_path / "rich" / "saved_model.pb").write_bytes(model.SerializeToString())
        return graph_digest(str(tmp_path / "rich"))

    def node(graph, op, place=0):
        return [
            n
            for f in sorted(graph.graph_def.library.function, key=lambda f: f.signature.name)
            for n in f.node_def
            if n.op == op
        ][place]

    def swap(graph):
        inputs = node(graph, "MatMul").input
        inputs[0], inputs[1] = inputs[1], inputs[0]

    def unbind(graph):
        bound = [function for function in graph.object_graph_def.concrete_functions.values() if len(function.bound_inputs) > 1]
        bound[0].bound_inputs[:] = list(reversed(bound[0].bound_inputs))

    edits = [
        swap,
        unbind,
        lambda graph: node(graph, "MatMul").attr["transpose_b"].__setattr__("b", True),
        lambda graph: node(graph, "Const").attr["value"].tensor.__setattr__("version_number", 9),
        lambda graph: node(graph, "While").attr["parallel_iterations"].__setattr__("i", 3),
        lambda graph: node(graph, "MatMul").__setattr__("op", "BatchMatMulV2"),
        lambda graph: graph.signature_def["serving_default"].inputs["x"].__setattr__("name", "other:0"),
    ]
    assert changed(lambda graph: None) == known
    assert changed(lambda graph: graph.meta_info_def.__setattr__("tensorflow_version", "99")) == known
    digests = [changed(edit) for edit in edits]
    assert known not in digests and len(set(digests)) == len(edits)


def test_variables_count_by_key_dtype_shape_and_bytes(tmp_path):
    def digest(**variables):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}" / "variables"
        folder.mkdir(parents=True)
        names = list(variables)
        tensors = [tf.constant(value) for value in variables.values()]
        tf.raw_ops.SaveV2(prefix=f"{folder}/variables", tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
        return variables_digest(str(folder.parent))

    one = np.arange(6, dtype=np.float32)
    base = digest(a=one, b=one)
    assert digest(b=one, a=one, _CHECKPOINTABLE_OBJECT_GRAPH=b"x") == base, "neither order nor bookkeeping counts"
    others = [
        digest(a=one),
        digest(a=one, c=one),
        digest(a=one.reshape(2, 3), b=one),
        digest(a=one.view(np.int32), b=one),
        digest(a=one, b=np.nextafter(one, np.float32(9))),
        digest(a=one, b=-one),
        digest(a=[b"ab", b"c"]),
        digest(a=[b"a", b"bc"]),
        digest(a=np.zeros(0, np.float32)),
        digest(a=b"ab"),
    ]
    assert len({base, *others}) == len(others) + 1


def test_no_flipped_byte_in_the_variables_goes_unnoticed(folder, tmp_path):
    seed = 5
    shutil.copytree(folder / "small", tmp_path / "m")
    expected = variables_digest(str(tmp_path / "m"))
    for file in sorted((tmp_path / "m" / "variables").iterdir()):
        content = file.read_bytes()
        places = random.Random(seed).sample(range(len(content)), min(len(content), 150))
        unnoticed = []
        for place in places:
            file.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
            try:
                if variables_digest(str(tmp_path / "m")) == expected:
                    unnoticed.append(place)
            except DigestError:
                pass
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(DigestError, match="Save or copy the model again"):
            variables_digest(str(tmp_path / "m"))
        file.write_bytes(content)
        if "data" in file.name:  # in the index only padding goes unnoticed
            # The object graph is no variable, so a change there is none of the variables'.
            reader = tf.train.load_checkpoint(str(tmp_path / "m" / "variables" / "variables"))
            graph = reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
            start = content.index(graph) - 16
            assert not [place for place in unnoticed if not start <= place < start + 16 + len(graph)], f"seed {seed}"


def test_what_is_no_saved_model_is_named(tmp_path):
    with pytest.raises(DigestError, match="no such folder"):
        graph_digest(str(tmp_path / "nowhere"))
    (tmp_path / "weights.h5").touch()
    with pytest.raises(DigestError, match=r"holds weights\.h5.*tf\.saved_model\.save"):
        graph_digest(str(tmp_path))
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(DigestError, match="damaged"):
        graph_digest(str(tmp_path))
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(DigestError, match="empty"):
        graph_digest(str(tmp_path))


def test_the_version_is_both_parts():
    digests = {Digests.of_parts("a", "b"), Digests.of_parts("a", "c"), Digests.of_parts("b", "a")}
    assert len({digest.version for digest in digests}) == 3 and all(len(digest.version) == 64 for digest in digests)
