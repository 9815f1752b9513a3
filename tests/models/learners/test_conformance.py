"""What holds of every learner in `models.learners`: a module there with a `LEARNER` is tested here without another word."""

import importlib
import pkgutil
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest

import models.learners
from models.digest import variables_digest, version_digest
from models.learning import LearningModel, save_learner
from models.registry import Registry
from models.serving import ModelCache, ModelError
from models.signature import Signature

FEATURES = ("price", "unit price", "Class")
SMALL = {  # so that the tests are quick
    "mlp_classifier": {"hidden": (16,), "steps": 2},
    "feature_selector": {"hidden": (16,), "steps": 2},
    "clusters": {"max_clusters": 12, "compiled": False},
    "keyed_classifier": {"max_keys": 8},
    "ensemble_classifier": {"memory_rows": 512, "trees": 6, "depth": 3},
    "ensemble_regressor": {"memory_rows": 512, "trees": 6, "depth": 3},
}
DRAWS_NOTHING = {"keyed_classifier", "clusters"}  # a seed makes no difference
MODULES = [importlib.import_module(f"models.learners.{found.name}") for found in pkgutil.iter_modules(models.learners.__path__)]
LEARNERS = {module.__name__.rpartition(".")[2]: module.LEARNER for module in MODULES if hasattr(module, "LEARNER")}
LABELLED = {name for name, (_, config) in LEARNERS.items() if any(field.name == "label" for field in fields(config))}
CLASSIFIERS = {name for name, (_, config) in LEARNERS.items() if any(field.name == "classes" for field in fields(config))}
only_labelled = pytest.mark.parametrize("build", sorted(LABELLED), indirect=True)


@pytest.fixture(params=LEARNERS)
def build(request):
    """Builds a fresh learner: build(option=...); a label is named only to those that want one."""
    learner, config = LEARNERS[request.param]
    usual = {"features": FEATURES, "label": "is it", "seed": 1} | SMALL.get(request.param, {})

    def make(**options):
        given = usual | options
        return learner(config(**{name: given[name] for name in given if name != "label" or request.param in LABELLED}))

    return make


@pytest.fixture
def labelled(request, build):
    """Whether the learner learns from labels."""
    return request.node.callspec.params["build"] in LABELLED


@pytest.fixture(scope="module")
def saved_seeds():
    return {}


@pytest.fixture
def seed(request, build, saved_seeds, tmp_path_factory):
    """The folder of a fresh learner."""
    name = request.node.callspec.params["build"]
    if name not in saved_seeds:
        saved_seeds[name] = str(tmp_path_factory.mktemp(name) / "seed")
        save_learner(build(), saved_seeds[name])
    return saved_seeds[name]


def window(number, rows=48, **columns):
    """Labelled rows; the label follows from the first column."""
    rng = np.random.default_rng([11, number])
    drawn = {name: rng.normal(3.0, 2.0, rows) for name in FEATURES}
    drawn["is it"] = (drawn["price"] > 3.0).astype(np.int64)
    drawn["key"] = rng.choice(["north", "south", "ost"], rows)  # for learners with a model for each key
    return pa.RecordBatch.from_pydict(drawn | columns)


@pytest.fixture
def state(tmp_path):
    """The digest of a learner's variables: state(learner)."""
    made = iter(range(100))

    def digest(learner):
        folder = tmp_path / f"state{next(made)}"
        learner.write_variables(str(folder / "variables"))
        return variables_digest(str(folder))

    return digest


def predictions(path, batch, tmp_path):
    registry = Registry(str(tmp_path / "served"))
    version = registry.publish("m", path).version
    return {
        name: column.to_numpy(zero_copy_only=False)
        for name, column in ModelCache(registry, block_rows=64).get("m", version).predict(batch).items()
    }


def saved_now(learner, registry, parent, **options):
    return registry.publish_variables("m", parent, learner.write_variables, **options)


def test_the_same_seed_gives_the_same_version_and_another_seed_another(request, build, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        save_learner(build(seed=seed), str(tmp_path / name))
    a, b, c = (version_digest(str(tmp_path / name)) for name in "abc")
    assert a == b
    assert (a.variables == c.variables) == (request.node.callspec.params["build"] in DRAWS_NOTHING)


def test_the_same_rows_give_the_same_bytes(seed, state):
    first, second = LearningModel(seed), LearningModel(seed)
    for number in range(3):
        assert first.learn(window(number)) == second.learn(window(number))
        assert state(first) == state(second)
    second.learn(window(3))
    assert state(first) != state(second)


def test_saving_and_loading_in_mid_stream_changes_nothing(seed, state, tmp_path):
    registry = Registry(str(tmp_path / "registry"))
    version = registry.publish("m", seed).version
    through = LearningModel(seed)
    for number in range(4):
        reloaded = LearningModel(registry.path("m", version))
        assert reloaded.learn(window(number, rows=31 + number)) == through.learn(window(number, rows=31 + number))
        version = saved_now(reloaded, registry, version).version
        assert registry.manifest("m", version).digests.variables == state(through)


@only_labelled
def test_it_learns_what_is_there_to_learn(seed, tmp_path):
    registry = Registry(str(tmp_path / "registry"))
    registry.publish("m", seed)
    learner = LearningModel(seed)
    for number in range(40):
        learner.learn(window(number))
    version = saved_now(learner, registry, 1).version
    test = window(99, rows=500)
    given = ModelCache(registry).get("m", version).predict(test)["prediction"].to_numpy()
    assert np.mean(np.rint(given) == test.column("is it").to_numpy()) > 0.9


def test_a_fresh_learner_predicts(request, seed, tmp_path):
    given = predictions(seed, window(0), tmp_path)
    assert all(len(values) == 48 for values in given.values())
    assert all(np.isfinite(values).all() for values in given.values() if values.dtype != object)  # others are texts
    if request.node.callspec.params["build"] in CLASSIFIERS:
        assert set(np.unique(given["prediction"])) <= {0, 1} and np.isfinite(given["score"]).all()
    assert set(Signature.from_saved_model(seed).outputs) == set(given)


@pytest.mark.parametrize(
    "odd",
    [
        {"price": np.full(48, np.nan)},
        {"price": np.full(48, 7.25)},
        {"price": np.full(48, 1e30)},
        {"price": np.r_[np.full(47, 1.0), np.inf]},
        {"price": np.r_[np.full(24, np.nan), np.linspace(-1, 1, 24)]},
        {"price": pa.nulls(48, pa.float64()), "Class": np.zeros(48)},
    ],
    ids=["nan", "constant", "huge", "infinite", "half nan", "null and zero"],
)
def test_columns_that_say_nothing_do_no_harm(seed, tmp_path, odd):
    registry = Registry(str(tmp_path / "registry"))
    registry.publish("m", seed)
    learner = LearningModel(seed)
    label = {"is it": np.arange(48) % 2}
    for number in range(3):
        assert all(np.isfinite(value) for value in learner.learn(window(number, **odd, **label)).values())
    learner.learn(window(4))
    version = saved_now(learner, registry, 1).version
    for rows in (window(5, **odd), window(6)):
        given = ModelCache(registry).get("m", version).predict(rows)
        numbers = [column.to_numpy() for column in given.values() if not pa.types.is_string(column.type)]
        assert all(np.isfinite(values).all() for values in numbers)


@only_labelled
def test_one_class_only(seed, tmp_path):
    registry = Registry(str(tmp_path / "registry"))
    registry.publish("m", seed)
    learner = LearningModel(seed)
    for number in range(10):
        learner.learn(window(number, **{"is it": np.ones(48, np.int64)}))
    version = saved_now(learner, registry, 1).version
    assert ModelCache(registry).get("m", version).predict(window(11))["prediction"].to_numpy().all()


def test_a_single_row_and_windows_of_other_sizes(seed, state):
    learner = LearningModel(seed)
    for number, rows in enumerate((1, 2, 700, 1, 48)):
        assert all(np.isfinite(value) for value in learner.learn(window(number, rows=rows)).values())


OF_CLASSES = ("label too large", "label negative", "label not whole")
OF_LABELS = ("label too large", "label negative", "no label", "label not whole")


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (window(5).slice(0, 0), "at least one row"),
        (window(5, **{"is it": np.r_[np.zeros(47, np.int64), 2]}), "not below 2, the number of classes"),
        (window(5, **{"is it": np.r_[np.zeros(47, np.int64), -1]}), "negative"),
        (window(5, **{"is it": pa.array([None] + [1] * 47)}), "1 nulls|not finite"),
        (window(5, **{"is it": np.full(48, 0.5)}), "cast it"),
        (window(5, price=pa.array(["x"] * 48)), "'price' is string"),
        (window(5).drop_columns(["unit price"]), "wants a column 'unit_price'; the records have price, Class, is it"),
    ],
    ids=["empty", "label too large", "label negative", "no label", "label not whole", "text", "missing column"],
)
def test_what_cannot_be_learnt_is_refused_and_changes_nothing(request, seed, labelled, state, batch, says):
    case = request.node.callspec.id.rpartition("-")[2]
    if case in OF_LABELS and not labelled:
        pytest.skip("it learns without labels")
    if case in OF_CLASSES and request.node.callspec.params["build"] not in CLASSIFIERS:
        pytest.skip("its labels are numbers, of any size")
    learner = LearningModel(seed)
    learner.learn(window(0))
    before = state(learner)
    for _ in range(3):  # what is not ordered in the graph may go well the first time
        with pytest.raises(ModelError, match=says):
            learner.learn(batch)
        assert state(learner) == before


def test_columns_go_by_name(seed, state, tmp_path):
    batch = window(2)
    other = batch.select(["is it", "Class", "key", "unit price", "price"]).append_column("extra", pa.array(range(48)))
    learners = LearningModel(seed), LearningModel(seed)
    for learner, rows in zip(learners, (batch, other), strict=True):
        learner.learn(rows)
    assert state(learners[0]) == state(learners[1])
    given, turned = (predictions(seed, rows, tmp_path) for rows in (batch, other))
    assert all(np.array_equal(given[name], turned[name]) for name in given)


@pytest.mark.parametrize("features", [("class", "1st", "_x", "self", "given", "größe", "A.b"), ("names",)])
def test_any_column_name_will_do(build, tmp_path, features):
    save_learner(build(features=features, label="if"), str(tmp_path / "seed"))
    rng = np.random.default_rng(0)
    batch = pa.RecordBatch.from_pydict(
        {name: rng.normal(size=9) for name in features} | {"if": rng.integers(0, 2, 9), "key": ["a"] * 9}
    )
    LearningModel(str(tmp_path / "seed")).learn(batch)
    assert {len(values) for values in predictions(str(tmp_path / "seed"), batch, tmp_path).values()} == {9}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"features": ()}, "at least one feature"),
        ({"features": ("a", "A")}, "got a, A"),
        ({"features": ("a",), "label": "a"}, "got a, (key, )?a"),
    ],
)
def test_options_that_make_no_sense_are_refused(build, labelled, options, says):
    if not labelled and "label" in options:
        pytest.skip("it learns without labels")
    with pytest.raises(ValueError, match=says):
        build(**options)
