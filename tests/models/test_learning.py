"""The model is its own checkpoint: learning on from a published version is learning on, bit for bit, in any process."""

import io
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from models.digest import variables_digest
from models.learners.mlp_classifier import MlpClassifier, MlpClassifierConfig
from models.learning import LearningModel, save_learner
from models.registry import Registry
from models.serving import ModelCache, ModelError
from tests.models import saved

FEATURES = ("price", "Demand", "class")
WINDOWS = 5


def window(number, rows=48):
    rng = np.random.default_rng([17, number])
    columns = {name: rng.normal(size=rows) for name in FEATURES}
    return pa.RecordBatch.from_pydict(columns | {"up": rng.integers(0, 2, rows)})


def make_seed(root):
    """Publishes version 1, and learns on to version 3."""
    save_learner(MlpClassifier(MlpClassifierConfig(FEATURES, "up", hidden=(8,), memory_rows=100)), f"{root}/seed")
    registry = Registry(f"{root}/registry")
    registry.publish("m", f"{root}/seed", publication="seed")
    learn_on(registry, LearningModel(registry.path("m", 1)), 1, 3)
    return registry


def learn_on(registry, learner, first, last):
    for version in range(first, last):
        learner.learn(window(version))
        registry.publish_variables("m", version, learner.write_variables, publication=f"window {version}")


def digests(registry):
    return [registry.verify("m", version).digests for version in registry.versions("m")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """All windows learnt by one object that is never loaded again."""
    registry = make_seed(tmp_path_factory.mktemp("straight"))
    learner = LearningModel(registry.path("m", 1))
    for version in (1, 2):
        learner.learn(window(version))
    learn_on(registry, learner, 3, WINDOWS)
    return registry


def test_learning_on_after_loading_is_learning_on(straight, tmp_path):
    registry = make_seed(tmp_path)
    for version in range(3, WINDOWS):
        learn_on(registry, LearningModel(registry.path("m", version)), version, version + 1)
    assert digests(registry) == digests(straight)
    assert len({digest.variables for digest in digests(registry)}) == WINDOWS


def test_the_seed_may_come_from_another_process(straight, tmp_path):
    program = "import sys; from tests.models.test_learning import make_seed; make_seed(sys.argv[1])"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, env=environment, capture_output=True, timeout=120
    )
    registry = Registry(str(tmp_path / "registry"))
    learn_on(registry, LearningModel(registry.path("m", 3)), 3, WINDOWS)
    assert digests(registry) == digests(straight)


def test_a_learnt_version_predicts_as_the_module_that_learnt_it(straight):
    module = MlpClassifier(MlpClassifierConfig(FEATURES, "up", hidden=(8,), memory_rows=100))
    learn = module.signatures()["learn"]
    for version in range(1, WINDOWS):
        batch = window(version)
        columns = {name: tf.constant(batch.column(name).to_numpy().astype(np.float32)) for name in FEATURES}
        learn(
            price=columns["price"],
            Demand=columns["Demand"],
            class_=columns["class"],
            up=tf.constant(batch.column("up").to_numpy()),
        )
    test = window(99)
    stacked = tf.constant(np.stack([test.column(name).to_numpy() for name in FEATURES], axis=1).astype(np.float32))
    given = ModelCache(straight, block_rows=64).get("m", WINDOWS).predict(test)
    np.testing.assert_allclose(given["score"].to_numpy(), module.predict(stacked)["score"], rtol=1e-4)


def test_a_foreign_learner_is_brought_forward(tmp_path):
    """Vector inputs, int32 labels, slots in a list: nothing of ours."""
    registry = Registry(str(tmp_path / "registry"))
    registry.publish("m", saved.save(saved.Small(), tmp_path / "saved"))
    rng = np.random.default_rng(1)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=40 * 16)), 16)
    batch = pa.RecordBatch.from_pydict({"x": vectors, "y": rng.integers(0, 2, 40)})
    learner, expected = LearningModel(registry.path("m", 1)), saved.Small()
    assert sorted(learner.columns) == ["x", "y"]
    for version in (1, 2, 3):
        loss = learner.learn(batch)["loss"]
        x, y = (
            tf.constant(np.array(batch.column(name).to_pylist(), dtype)) for name, dtype in (("x", np.float32), ("y", np.int32))
        )
        assert loss == pytest.approx(float(expected.learn(x, y)["loss"]), rel=1e-4)
        registry.publish_variables("m", version, learner.write_variables)
    loaded = tf.saved_model.load(registry.path("m", 4))
    assert loaded.seen.numpy() == 3
    np.testing.assert_allclose(loaded.w1, expected.w1, rtol=1e-4)


def test_a_version_written_twice_is_the_same_and_learning_goes_on(straight, tmp_path):
    learner = LearningModel(straight.path("m", 2))
    learner.learn(window(2))
    for name in ("a", "b"):
        learner.write_variables(str(tmp_path / name / "variables"))
    wanted = straight.manifest("m", 3).digests.variables
    assert variables_digest(str(tmp_path / "a")) == variables_digest(str(tmp_path / "b")) == wanted


def saved_model_cli(*arguments):
    """TensorFlow's own command, in this process: to import TensorFlow once more would take longer than all else."""
    from absl import flags
    from tensorflow.python.tools import saved_model_cli as command

    parser, output = command.create_parser(), io.StringIO()
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["saved_model_cli", *arguments])
    with redirect_stdout(output), redirect_stderr(output):
        parser.parse_args(arguments[:1]).func()
    return output.getvalue()


def test_tensorflows_own_command_takes_a_published_version(straight, tmp_path):
    version = straight.path("m", WINDOWS)
    shown = saved_model_cli("show", f"--dir={version}", "--all")
    for part in (
        "signature_def['serving_default']",
        "signature_def['learn']",
        "inputs['Demand']",
        "inputs['class_']",
        "outputs['score']",
    ):
        assert part in shown
    batch = window(99)
    names = {"price": "price", "Demand": "Demand", "class": "class_"}
    np.savez(tmp_path / "given.npz", **{new: batch.column(old).to_numpy().astype(np.float32) for old, new in names.items()})
    inputs = ";".join(f"{name}={tmp_path}/given.npz[{name}]" for name in names.values())
    saved_model_cli(
        "run",
        f"--dir={version}",
        "--tag_set=serve",
        "--signature_def=serving_default",
        f"--inputs={inputs}",
        f"--outdir={tmp_path}",
    )
    ours = ModelCache(straight, block_rows=64).get("m", WINDOWS).predict(batch)
    np.testing.assert_allclose(np.load(tmp_path / "score.npy"), ours["score"].to_numpy(), rtol=1e-4)
    np.testing.assert_array_equal(np.load(tmp_path / "prediction.npy"), ours["prediction"].to_numpy())


def test_a_model_that_cannot_learn_is_refused(tmp_path):
    module = saved.Small()
    tf.saved_model.save(module, str(tmp_path / "serves"), signatures={"serving_default": module.predict})
    with pytest.raises(ModelError, match=r"cannot learn: it has the signatures serving_default, and 'learn' is wanted"):
        LearningModel(str(tmp_path / "serves"))
    for damage in ("nowhere", "serves"):
        shutil.rmtree(tmp_path / "serves" / "variables", ignore_errors=True)
        with pytest.raises(ModelError, match="does not load as a SavedModel"):
            LearningModel(str(tmp_path / damage))


def test_a_learner_with_state_that_is_no_variable_is_refused(tmp_path):
    module = tf.Module()
    module.counts = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, "x")])
    def learn(x):
        module.counts.insert(x, x)
        return {"rows": tf.size(x)}

    module.learn = learn
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"learn": learn})
    with pytest.raises(
        ModelError, match=r"holds counts.*which are no variables. Keep all that learning changes in `tf.Variable`s"
    ):
        LearningModel(str(tmp_path / "saved"))
