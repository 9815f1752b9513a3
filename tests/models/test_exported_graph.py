"""A graph that was made ready in another process predicts as the one that is loaded in place, output by output."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from models import exported_graph
from models.serving import LoadedGraph

# So many that an order which is not theirs is met: dicts of a SavedModel have another one in every process.
NAMES = ["zeta", "score", "prediction", "alpha", "margin", "beta", "omega", "kind"]


class Many(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "a")])
    def predict(self, a):
        given = {name: self.weight * a + place for place, name in enumerate(NAMES)}
        return given | {"prediction": tf.cast(given["prediction"], tf.int64), "kind": tf.strings.as_string(given["kind"])}


def test_every_output_has_its_name(tmp_path) -> None:
    module = Many()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": module.predict})
    (tmp_path / "functions").mkdir()
    exported_graph.export(str(tmp_path / "saved"), 16, "-test", str(tmp_path / "functions"))
    columns = [np.arange(40, dtype=np.float32)]
    loaded, exported = LoadedGraph(str(tmp_path / "saved"), 16), exported_graph.ExportedGraph(str(tmp_path / "functions"))
    expected = loaded.predict(columns, 40, loaded.variables(str(tmp_path / "saved")))
    given = exported.predict(columns, 40, exported.variables(str(tmp_path / "saved")))
    assert given.keys() == expected.keys() == set(NAMES)
    for name in NAMES:
        assert given[name].dtype == expected[name].dtype, name
        assert given[name].tolist() == expected[name].tolist(), name
