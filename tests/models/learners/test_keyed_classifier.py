"""Keys that appear over time: own models where they are better, the parent's before and instead, memory that is bounded."""

import numpy as np
import pyarrow as pa
import pytest

from models.learners.keyed_classifier import KeyedClassifier, KeyedClassifierConfig
from models.learning import LearningModel, save_learner
from models.registry import Registry
from models.serving import ModelCache


@pytest.fixture
def learner(tmp_path):
    """Builds a learner that was saved and loaded: learner(option=...)."""

    def build(**options):
        folder = tmp_path / f"seed{len(list(tmp_path.iterdir()))}"
        save_learner(KeyedClassifier(KeyedClassifierConfig(features=("x",), **options)), str(folder))
        return LearningModel(str(folder)), str(folder)

    return build


def rows(keys, seed, per_key=20):
    """Most keys' labels follow the sign of x; those of keys that begin with `-` are the other way round."""
    rng = np.random.default_rng([3, seed])
    key = np.repeat(keys, per_key)
    x = rng.normal(size=len(key))
    label = (x > 0) ^ np.char.startswith(key.astype(str), "-")
    return pa.RecordBatch.from_pydict({"x": x, "key": key.tolist(), "label": label.astype(np.int64)})


def predict(model, seed_folder, batch, tmp_path):
    registry = Registry(str(tmp_path / "registry"))
    first = registry.publish("m", seed_folder).version
    version = registry.publish_variables("m", first, model.write_variables).version
    given = ModelCache(registry).get("m", version).predict(batch)
    return {name: column.to_numpy(zero_copy_only=False) for name, column in given.items()}


def accuracy(given, batch):
    return float(np.mean(given["prediction"] == batch.column("label").to_numpy()))


def test_a_new_key_starts_on_the_parent_and_graduates(learner, tmp_path):
    model, folder = learner(graduate_rows=10)
    usual = [f"k{number}" for number in range(8)]
    for number in range(6):
        model.learn(rows(usual, number))
    stranger = rows(["-new"], 99)
    before = predict(model, folder, stranger, tmp_path)
    assert not before["graduated"].any() and accuracy(before, stranger) < 0.2, "the parent knows only the usual way round"
    for number in range(4):
        model.learn(rows(["-new"], 50 + number))
    after = predict(model, folder, stranger, tmp_path / "later")
    assert after["graduated"].all() and accuracy(after, stranger) > 0.8
    old = rows(usual, 77)
    assert accuracy(predict(model, folder, old, tmp_path / "old"), old) > 0.9


def test_keys_beyond_the_limit_stay_on_the_parent_and_are_counted(learner, tmp_path):
    model, folder = learner(max_keys=3, graduate_rows=1)
    told = model.learn(rows(["a", "b", "c", "d", "e"], 1))
    assert told["keys"] == 3 and told["rows_without_slot"] == 40
    given = predict(model, folder, rows(["d", "e"], 2), tmp_path)
    assert not given["graduated"].any() and set(given["key_age"]) == {"0 to 4"}


def test_one_key_does_not_change_what_another_ones_correction_says(learner, tmp_path):
    folders = []
    for order in (["a", "-b"], ["-b", "a"]):
        model, folder = learner()
        for number in range(5):
            model.learn(pa.Table.from_batches([rows([key], number) for key in order]).combine_chunks().to_batches()[0])
        folders.append(predict(model, folder, rows(["a", "-b"], 9), tmp_path / order[0]))
    np.testing.assert_allclose(folders[0]["score"], folders[1]["score"], atol=0.02)


def three_ways(keys, seed, per_key=40):
    """Labels of three classes, by the size of x; those of keys that begin with `-` are the other way round."""
    batch = rows(keys, seed, per_key)
    x = batch.column("x").to_numpy()
    code = np.digitize(x, [-0.5, 0.5])
    turned = np.char.startswith(np.array(batch.column("key").to_pylist()), "-")
    names = np.array(["low", "middle", "high"])
    return batch.drop_columns(["label"]).append_column("label", pa.array(names[np.where(turned, 2 - code, code)]))


def test_three_classes_with_names_and_whole_numbers_as_keys(learner, tmp_path):
    model, folder = learner(classes=3, vocabulary=("high", "low", "middle"), whole_keys=True)

    def numbered(batch):
        keys = pa.array([-1 if key == "-b" else 7 for key in batch.column("key").to_pylist()])
        return batch.set_column(batch.schema.get_field_index("key"), "key", keys)

    for number in range(12):
        model.learn(numbered(three_ways(["a", "-b"], number)))
    asked = numbered(three_ways(["a", "-b"], 99))
    given = predict(model, folder, asked, tmp_path)
    assert np.mean(given["prediction"] == np.array(asked.column("label").to_pylist())) > 0.8
    assert given["graduated"].all()


@pytest.mark.parametrize("new_keys", ["prior", "abstain"])
def test_who_speaks_for_a_new_key(learner, tmp_path, new_keys):
    model, folder = learner(new_keys=new_keys)
    known = rows(["a"], 1, per_key=60)
    ones = np.where(known.column("x").to_numpy() > -1.0, 1, 0)  # most labels are 1
    model.learn(known.set_column(2, "label", pa.array(ones)))
    given = predict(model, folder, rows(["new"], 2), tmp_path)
    if new_keys == "prior":
        assert (given["prediction"] == 1).all() and len(set(given["score"].tolist())) == 1
        assert given["score"][0] == pytest.approx((ones.sum() + 1) / 62, abs=0.01) and not given["abstain"].any()
    else:
        assert given["abstain"].all()
        assert not predict(model, folder, rows(["a"], 2), tmp_path / "known")["abstain"].any()


@pytest.mark.parametrize(
    ("options", "says"),
    [({"new_keys": "guess"}, "parent, prior or abstain"), ({"graduate_rows": 0}, "more than 0"), ({"classes": 1}, "2 or more")],
)
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        KeyedClassifier(KeyedClassifierConfig(features=("x",), **options))
