"""The learner as a step of the stream: versions and activations out of labelled rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.activation_log import Activation, ActivationInPast, ActivationLog
from models.gate.result import GateRefused, GateReport, refused
from models.learners.mlp_classifier import MlpClassifier, MlpClassifierConfig
from models.learning import save_learner
from models.registry import Manifest, PublicationConflict, Registry
from transforms.batches import EVENT_TIME, MAX_WATERMARK_US, NAME_TYPE, ROW, SEQUENCE, SOURCE, TIME_TYPE
from transforms.label_join import LABEL_TIME
from transforms.training import ACTIVATIONS, ActivateVersions, Train

WINDOW_US = 10_000_000


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seed") / "saved"
    save_learner(
        MlpClassifier(MlpClassifierConfig(features=("a", "b"), hidden=(4,), memory_rows=64, batch_rows=16)), str(folder)
    )
    return folder


def labelled(seconds: list[int], label: int | None = None) -> pa.Table:
    rows = len(seconds)
    draw = np.random.default_rng(rows)
    a, b = draw.normal(size=(2, rows))
    times = pa.array(np.array(seconds, np.int64) * 1_000_000).cast(TIME_TYPE)
    return pa.table(
        {
            "a": a,
            "b": b,
            EVENT_TIME: times,
            SOURCE: pa.array(["f"] * rows, pa.string()).dictionary_encode().cast(NAME_TYPE),
            ROW: pa.array(range(rows), pa.int64()),
            SEQUENCE: pa.array(range(rows), pa.int64()),
            "label": pa.array((a > 0).astype(np.int64) if label is None else np.full(rows, label)),
            LABEL_TIME: times,
        }
    )


def step(tmp_path: Path, seed: Path, name: str = "registry", warm_up_rows: int = 1) -> Train:
    registry = Registry(str(tmp_path / name))
    first = registry.publish("m", str(seed), publication="job/seed").version
    return Train(str(tmp_path / name), "m", first, LABEL_TIME, WINDOW_US, warm_up_rows, "job")


def digests(train: Train) -> list[str]:
    registry = Registry(train.registry)
    return [registry.manifest("m", version).digests.version for version in registry.versions("m")]


def test_a_version_for_each_window_live_from_its_end(tmp_path: Path, seed: Path) -> None:
    train = step(tmp_path, seed)
    state, given = train.advance({}, {"in": labelled([1, 5, 9, 10, 25])}, 20_000_000)
    rows = given["activations"].to_pylist()
    assert [(row["effective_from_us"], row["rows"]) for row in rows] == [(10_000_000, 3), (20_000_000, 1)]
    assert state["pending"].num_rows == 1
    _, given = train.advance(state, {}, MAX_WATERMARK_US)
    assert given["activations"].column("effective_from_us").to_pylist() == [30_000_000]
    registry = Registry(train.registry)
    assert [registry.manifest("m", v).parent for v in registry.versions("m")] == [None, 1, 2, 3]
    training = registry.manifest("m", 2).training
    assert training is not None
    assert (training.from_us, training.to_us, training.rows) == (0, 10_000_000, 3)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 99), max_size=4))
def test_cutting_changes_no_version(tmp_path: Path, seed: Path, cuts: list[int]) -> None:
    rows = labelled(list(range(0, 100)))
    name = "-".join(map(str, cuts))
    whole, cut = step(tmp_path, seed, f"whole-{name}"), step(tmp_path, seed, f"cut-{name}")
    _, expected = whole.advance({}, {"in": rows}, MAX_WATERMARK_US)
    state, came = {}, []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 100], strict=True):
        watermark_us = MAX_WATERMARK_US if end == 100 else (end - 1) * 1_000_000
        state, given = cut.advance(state, {"in": rows.slice(start, end - start)}, watermark_us)
        came.append(given["activations"])
    assert pa.concat_tables(came).equals(expected["activations"])
    assert digests(whole) == digests(cut)


def test_learning_a_window_again_finds_its_version(tmp_path: Path, seed: Path) -> None:
    train = step(tmp_path, seed)
    rows = labelled(list(range(30)))
    first = train.advance({}, {"in": rows}, MAX_WATERMARK_US)[1]["activations"]
    again = train.advance({}, {"in": rows}, MAX_WATERMARK_US)[1]["activations"]
    assert again.equals(first)
    assert len(Registry(train.registry).versions("m")) == 4
    # Other rows under the same publication are no repetition, and must not pass for one.
    with pytest.raises(PublicationConflict):
        train.advance({}, {"in": rows.slice(1)}, MAX_WATERMARK_US)


def test_what_was_learnt_on_from_a_refused_version_is_thrown_away(
    tmp_path: Path, seed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A version is published while the next window is learnt: by then that window has learnt from what is refused.
    rows = labelled(list(range(40)))
    without = pa.concat_tables([rows.slice(0, 10), rows.slice(20)])
    expected, train = step(tmp_path, seed, "without"), step(tmp_path, seed, "refusing")
    expected.advance({}, {"in": without}, MAX_WATERMARK_US)
    checks: list[int] = []

    def refuses_the_second(*_: object) -> Callable[[str, Manifest], str]:
        def check(folder: str, draft: Manifest) -> str:
            checks.append(len(checks))
            if len(checks) == 2:
                raise GateRefused("the second", GateReport((refused("weights", "not finite"),)))
            return GateReport(()).to_json()

        return check

    monkeypatch.setattr("transforms.learning_step.check_learnt", refuses_the_second)
    _, given = train.advance({}, {"in": rows}, MAX_WATERMARK_US)
    assert given["activations"].column("effective_from_us").to_pylist() == [10_000_000, 30_000_000, 40_000_000]
    assert given["refused"].column("sequence").to_pylist() == list(range(10, 20))
    assert digests(train) == digests(expected)
    registry = Registry(train.registry)
    assert [registry.manifest("m", version).parent for version in registry.versions("m")] == [None, 1, 2, 3]


def test_warm_up_publishes_candidates_and_activates_none(tmp_path: Path, seed: Path) -> None:
    train = step(tmp_path, seed, warm_up_rows=15)
    _, given = train.advance({}, {"in": labelled(list(range(30)))}, MAX_WATERMARK_US)
    assert given["activations"].column("version").to_pylist() == [3, 4]
    assert len(Registry(train.registry).versions("m")) == 4


def test_rows_that_the_learner_refuses_are_dead_letters_and_it_goes_on(tmp_path: Path, seed: Path) -> None:
    train, clean = step(tmp_path, seed), step(tmp_path, seed, "clean")
    good, bad, late = labelled(list(range(10))), labelled(list(range(10, 20)), label=7), labelled(list(range(20, 30)))
    _, given = train.advance({}, {"in": pa.concat_tables([good, bad, late])}, MAX_WATERMARK_US)
    assert given["refused"].num_rows == 10
    assert set(given["refused"].column("reason").to_pylist()) == {"learner_refused"}
    assert given["activations"].column("effective_from_us").to_pylist() == [10_000_000, 30_000_000]
    # The refused window left no trace: the versions are those of a stream without it.
    clean.advance({}, {"in": pa.concat_tables([good, late])}, MAX_WATERMARK_US)
    assert digests(train) == digests(clean)


def activate(train: Train, effective_from_us: int, *, strict: bool, version: int = 1) -> None:
    rows = pa.RecordBatch.from_pylist([{"version": version, "effective_from_us": effective_from_us, "rows": 5}], ACTIVATIONS)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        batches = pipeline | beam.Create([rows], reshuffle=False).with_output_types(pa.RecordBatch)
        batches | ActivateVersions(train.registry, "m", "job", strict=strict)


def test_activations_reach_the_log(tmp_path: Path, seed: Path) -> None:
    train = step(tmp_path, seed)
    train.advance({}, {"in": labelled([1])}, MAX_WATERMARK_US)
    log = ActivationLog(train.registry, "m")
    activate(train, WINDOW_US, strict=True)
    activate(train, WINDOW_US, strict=True)  # a bundle that Beam runs again
    assert [(e.version, e.effective_from_us) for e in log.entries() if isinstance(e, Activation)] == [(1, WINDOW_US)]
    # The job may write into the stretch that it has sealed itself; into what another job serves it may not.
    log.seal(5 * WINDOW_US, by="job")
    activate(train, 3 * WINDOW_US, strict=True)
    log.seal(9 * WINDOW_US, by="another job")
    with pytest.raises(Exception, match=r"(?s)sealed|serve") as error:
        activate(train, 7 * WINDOW_US, strict=True, version=2)
    assert ActivationInPast.__name__ in f"{error.type.__name__} {error.value}"
    activate(train, 7 * WINDOW_US, strict=False, version=2)
    times = [e.effective_from_us for e in log.entries() if isinstance(e, Activation)]
    assert times == [WINDOW_US, 3 * WINDOW_US, 9 * WINDOW_US]


class Highest(tf.Module):
    """Learns without labels: the highest value so far, and an event each time that it rises."""

    def __init__(self) -> None:
        super().__init__()
        self.highest = tf.Variable(0.0)

    def signatures(self) -> dict[str, object]:
        column = tf.TensorSpec([None], tf.float32, "a")

        @tf.function(input_signature=[column])
        def predict(a: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"above": a > self.highest}

        @tf.function(input_signature=[column])
        def learn(a: tf.Tensor) -> dict[str, tf.Tensor]:
            highest = tf.maximum(self.highest, tf.reduce_max(a))
            told = tf.boolean_mask([highest], [highest > self.highest])
            self.highest.assign(highest)
            return {"rows": tf.size(a), "event_highest": told, "event_kind": tf.fill(tf.shape(told), "rose")}

        return {"serving_default": predict, "learn": learn}


def test_rows_without_labels_go_by_their_own_time_and_events_tell_what_happened(tmp_path: Path) -> None:
    save_learner(Highest(), str(tmp_path / "saved"))
    rows = labelled([1, 2, 11, 12, 21, 22]).set_column(0, "a", pa.array([1.0, 2.0, 0.5, 0.5, 3.0, 2.5]))
    rows = rows.drop_columns(["label", LABEL_TIME])

    def learn(name: str, cuts: list[int]) -> pa.Table:
        registry = Registry(str(tmp_path / name))
        train = Train(
            registry.root, "m", registry.publish("m", str(tmp_path / "saved")).version, EVENT_TIME, WINDOW_US, 1, "job"
        )
        state, came = {}, []
        for start, end in zip([0, *cuts], [*cuts, 6], strict=True):
            upto_us = MAX_WATERMARK_US if end == 6 else rows.column(EVENT_TIME).cast(pa.int64())[end].as_py()
            state, given = train.advance(state, {"in": rows.slice(start, end - start)}, upto_us)
            came += [given["events"]] if "events" in given else []
        return pa.concat_tables(came)

    events = learn("whole", [])
    assert events.column(EVENT_TIME).cast(pa.int64()).to_pylist() == [WINDOW_US, 3 * WINDOW_US]
    assert events.drop_columns([EVENT_TIME]).to_pylist() == [
        {"sequence": 1, "version": 2, "highest": 2.0, "kind": "rose"},
        {"sequence": 5, "version": 4, "highest": 3.0, "kind": "rose"},
    ]
    for cuts in ([1], [3], [1, 2, 3, 4, 5]):
        assert learn("cut" + "-".join(map(str, cuts)), cuts).equals(events)


def test_a_missing_value_in_the_rows_that_a_learner_rehearses_is_no_reason_to_refuse_it(tmp_path, seed) -> None:
    rows = labelled(list(range(12)))
    values = rows.column("a").to_pylist()
    rows = rows.set_column(0, "a", pa.array([None, *values[1:]], pa.float64()))
    _, given = step(tmp_path, seed).advance({}, {"in": rows}, MAX_WATERMARK_US)
    assert given["activations"].num_rows == 2
    assert "refused" not in given
