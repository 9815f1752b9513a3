"""Text columns of a learner: the first values have a column each, in the order in which they come, and it is in the version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import tensorflow as tf

from models.learners.ensemble_classifier import EnsembleClassifier, EnsembleClassifierConfig
from models.learners.experts.inputs import HASH_BUCKETS, KNOWN_VALUES, Inputs
from models.learning import LearningModel, save_learner


def encoded(inputs: Inputs, *texts: str) -> np.ndarray:
    return inputs.columns({"city": tf.constant(texts)}).numpy()


def observe(inputs: Inputs, texts: tf.Tensor) -> None:
    inputs.observed({"city": texts}, inputs.columns({"city": texts}))


def test_each_known_value_has_a_column_of_its_own() -> None:
    inputs = Inputs((), ("city",), "y", tf.int64, None)
    before = encoded(inputs, "Bern", "Rome")
    assert before[:, :KNOWN_VALUES].sum() == 0 and (before[:, KNOWN_VALUES:].sum(axis=1) == 1).all()
    observe(inputs, tf.constant(["Rome", "Bern", "", "Rome"]))
    observe(inputs, tf.constant(["Bern", "Oslo"]))
    given = encoded(inputs, "Rome", "Bern", "Oslo", "", "Lima")
    assert given[:3, :3].tolist() == np.eye(3).tolist() and given[:3].sum() == 3
    assert given[3:, :KNOWN_VALUES].sum() == 0 and (given[3:].sum(axis=1) == 1).all()


def test_what_comes_when_all_columns_are_taken_is_hashed() -> None:
    inputs = Inputs((), ("city",), "y", tf.int64, None)
    names = [f"city {number}" for number in range(KNOWN_VALUES + 5)]
    observe(inputs, tf.constant(names[:10]))
    observe(inputs, tf.constant(names))
    given = encoded(inputs, *names)
    assert given.shape == (KNOWN_VALUES + 5, KNOWN_VALUES + HASH_BUCKETS)
    assert given[:KNOWN_VALUES, :KNOWN_VALUES].tolist() == np.eye(KNOWN_VALUES).tolist()
    assert given[KNOWN_VALUES:, :KNOWN_VALUES].sum() == 0 and given.sum() == KNOWN_VALUES + 5


def test_the_vocabulary_is_of_the_version(tmp_path: Path) -> None:
    """Saved and loaded in mid-stream, it predicts and learns on to the same bits."""
    small = {"memory_rows": 64, "trees": 2, "depth": 2, "grown": 1, "hidden": 4, "steps": 1, "batch_rows": 16}
    save_learner(EnsembleClassifier(EnsembleClassifierConfig((), "y", text_features=("city",), **small)), str(tmp_path / "1"))
    draw = np.random.default_rng(3)
    cities = draw.choice([f"city {number}" for number in range(20)], 120)
    rows = pa.RecordBatch.from_pydict({"city": cities, "y": (np.char.str_len(cities) > 6).astype(np.int64)})
    through = LearningModel(str(tmp_path / "1"))
    through.learn(rows.slice(0, 60))
    through.write_variables(str(tmp_path / "2" / "variables"))
    (tmp_path / "2" / "saved_model.pb").write_bytes((tmp_path / "1" / "saved_model.pb").read_bytes())
    again = LearningModel(str(tmp_path / "2"))
    for learner in (through, again):
        learner.learn(rows.slice(60))
    given = [[column.to_pylist() for column in learner.predict(rows).values()] for learner in (through, again)]
    assert given[0] == given[1]
    for key, variable in through.variables.items():
        assert again.variables[key].numpy().tolist() == variable.numpy().tolist(), key
