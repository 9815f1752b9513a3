"""The summary of a job against slow oracles, on outputs written here."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluated import latest_known
from pipelines.summary import Summary, kappa_temporal, summarise
from transforms.batches import DEAD_LETTER_SCHEMA, TIME_TYPE

KEYS = [
    "records",
    "predictions",
    "lost",
    "duplicated",
    "dead_letters",
    "filtered",
    "cold_start",
    "versions",
    "swaps",
    "accuracy",
    "accuracy_frozen",
    "kappa_temporal",
    "evaluated",
    "seconds",
    "records_per_s",
    "rmse",
]


def times(values_us) -> pa.Array:
    return pa.array(np.asarray(values_us, np.int64)).cast(pa.timestamp("us")).cast(TIME_TYPE)


def write_parts(folder: Path, table: pa.Table, parts: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cuts = np.linspace(0, table.num_rows, parts + 1).astype(int)
    for number, (start, end) in enumerate(pairwise(cuts)):
        pq.write_table(table.slice(start, end - start), folder / f"part-{number:06d}-00000.parquet")


def predictions(times_us, sequence, versions) -> pa.Table:
    cold = np.asarray(versions) == 0
    return pa.table(
        {
            "event_time": times(times_us),
            "sequence": pa.array(sequence, pa.int64()),
            "prediction": pa.array(np.zeros(len(cold), np.int64), mask=cold),
            "version": pa.array(versions, pa.int64()),
        }
    )


def evaluations(times_us, label_us, sequence, labels, answers, frozen=None, versions=None) -> pa.Table:
    columns = {
        "sequence": pa.array(sequence, pa.int64()),
        "event_time": times(times_us),
        "label_time": times(label_us),
        "label": pa.array(labels),
        "prediction": pa.array(answers, pa.int64()),
        "version": pa.array(versions if versions is not None else [1] * len(times_us), pa.int64()),
    }
    return pa.table(columns | ({} if frozen is None else {"first_prediction": pa.array(frozen, pa.int64())}))


def letters(sequence, reasons) -> pa.Table:
    rows = len(sequence)
    columns = [["a.csv"] * rows, list(range(rows)), sequence, reasons, ["what was wrong"] * rows, ["{}"] * rows]
    return pa.table(
        [pa.array(c, field.type) for c, field in zip(columns, DEAD_LETTER_SCHEMA, strict=True)], schema=DEAD_LETTER_SCHEMA
    )


def known_before(times_us, label_us, sequence) -> list[int]:
    """The slow way: of all labels known to a record, the latest."""
    found = []
    for time, number in zip(times_us, sequence, strict=True):
        known = [(max(k, t), s, j) for j, (t, k, s) in enumerate(zip(times_us, label_us, sequence, strict=True))]
        known = [entry for entry in known if entry[:2] < (time, number)]
        found.append(max(known)[2] if known else -1)
    return found


rows = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), max_size=25)


@given(rows=rows, seed=st.integers(0, 99))
@settings(deadline=None)
def test_latest_known_is_that_of_the_slow_oracle(rows, seed):
    times_us = np.array([time for time, _ in rows], np.int64)
    label_us = times_us + np.array([delay for _, delay in rows], np.int64)
    sequence = np.random.default_rng(seed).permutation(len(rows)).astype(np.int64)
    assert latest_known(times_us, label_us, sequence).tolist() == known_before(times_us, label_us, sequence)


def test_latest_known_does_not_depend_on_its_blocks(monkeypatch):
    random = np.random.default_rng(3)
    times_us = random.integers(0, 50, 200)
    label_us, sequence = times_us + random.integers(0, 9, 200), random.permutation(200)
    whole = latest_known(times_us, label_us, sequence)
    monkeypatch.setattr("pipelines.evaluated._BLOCK_ROWS", 7)
    assert latest_known(times_us, label_us, sequence).tolist() == whole.tolist()


def test_with_labels_at_once_the_latest_known_is_the_record_before():
    times_us = np.array([10, 20, 20, 20, 30])
    assert latest_known(times_us, times_us, np.arange(5)).tolist() == [-1, 0, 1, 2, 3]


def test_a_record_never_knows_its_own_label_even_if_it_came_before_the_record():
    times_us = np.array([10, 20])
    assert latest_known(times_us, np.array([0, 0]), np.arange(2)).tolist() == [-1, 0]


records = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 15), st.integers(0, 3)), max_size=30
)  # event time, sequence, version


@given(
    records=records,
    dead=st.lists(
        st.tuples(st.one_of(st.none(), st.integers(0, 15)), st.sampled_from(["unparsable", "null_label"])), max_size=6
    ),
    filtered=st.integers(0, 3),
    parts=st.integers(1, 4),
)
@settings(deadline=None, max_examples=60)
def test_counts_are_those_of_the_slow_oracle(tmp_path_factory, records, dead, filtered, parts):
    output = tmp_path_factory.mktemp("job")
    columns = list(zip(*records, strict=True)) or [[], [], []]
    write_parts(output / "predictions", predictions(*columns), parts)
    if dead:
        write_parts(output / "dead_letters", letters(*zip(*dead, strict=True)))
    summary = summarise(str(output), 16, filtered, None, 1.0, [{"version": 1}])
    predicted = [sequence for _, sequence, _ in records]
    ended = {sequence for sequence, reason in dead if sequence is not None and reason == "unparsable"}
    served = [version for _, _, version in sorted(records, key=lambda record: record[:2])]
    assert summary.predictions == len(records)
    assert summary.dead_letters == len(dead)
    assert summary.lost == 16 - filtered - len(set(predicted) | ended)
    assert summary.duplicated == len(predicted) - len(set(predicted)) + len(set(predicted) & ended)
    assert summary.cold_start == served.count(0)
    if len({record[:2] for record in records}) == len(records):  # else the order of equals is open
        assert summary.swaps == sum(a != b and a != 0 for a, b in pairwise(served))
    assert bool(summary.problems()) == (summary.lost != 0 or summary.duplicated != 0)


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_accuracy_and_kappa_against_the_slow_oracle(tmp_path, kind):
    random = np.random.default_rng(11)
    rows = 400
    times_us = np.cumsum(random.integers(0, 4, rows)) * 1_000_000
    label_us = times_us + random.integers(0, 20, rows) * 1_000_000
    labels = (random.random(rows) < 0.5 + 0.4 * np.sin(np.arange(rows) / 30)).astype(int)
    answers = [
        None if number < 20 else int(x) for number, x in enumerate(np.where(random.random(rows) < 0.8, labels, 1 - labels))
    ]
    frozen = [None if number < 20 else 1 for number in range(rows)]
    versions = [0 if answer is None else 1 for answer in answers]
    shuffled = random.permutation(rows)
    table = evaluations(times_us, label_us, np.arange(rows), labels, answers, frozen, versions).take(pa.array(shuffled))
    place = table.schema.get_field_index("label")
    as_kind = table.column("label").cast(pa.string()) if kind not in (pa.int64(), pa.float64()) else table.column("label")
    table = table.set_column(
        place, "label", as_kind.cast(kind) if not pa.types.is_dictionary(kind) else as_kind.dictionary_encode()
    )
    write_parts(tmp_path / "predictions", predictions(times_us, range(rows), versions))
    write_parts(tmp_path / "evaluations", table, 3)
    summary = summarise(str(tmp_path), rows, 0, "label", 2.0, [])
    right = np.mean([answer == label for answer, label in zip(answers, labels, strict=True)])
    before = known_before(times_us.tolist(), label_us.tolist(), range(rows))
    persistent = np.mean([place >= 0 and labels[place] == label for place, label in zip(before, labels, strict=True)])
    assert summary.evaluated == rows
    assert summary.accuracy == pytest.approx(right)
    assert summary.accuracy_frozen == pytest.approx(
        np.mean([answer == label for answer, label in zip(frozen, labels, strict=True)])
    )
    assert summary.kappa_temporal == pytest.approx((right - persistent) / (1 - persistent))


def test_a_hand_computed_kappa_with_late_labels(tmp_path):
    # Labels two seconds late: record 2 knows label 0 (same moment, lower sequence), 3 knows 1, 4 knows 2.
    seconds = np.arange(5) * 1_000_000
    table = evaluations(seconds, seconds + 2_000_000, range(5), [1, 0, 1, 1, 0], [1, 0, 1, 0, 0])
    write_parts(tmp_path / "evaluations", table)
    write_parts(tmp_path / "predictions", predictions(seconds, range(5), [1] * 5))
    summary = summarise(str(tmp_path), 5, 0, "label", 1.0, [])
    assert summary.accuracy == pytest.approx(4 / 5)
    # No label known for 0 and 1: wrong. Then 1=1 right, 1 against 0 wrong, 0 against 1 wrong.
    assert summary.kappa_temporal == pytest.approx((4 / 5 - 1 / 5) / (1 - 1 / 5))
    assert summary.accuracy_frozen is None


def test_kappa_is_unknown_where_the_persistent_classifier_is_perfect():
    assert kappa_temporal(1.0, 1.0) is None
    assert kappa_temporal(0.5, 0.75) == pytest.approx(-1.0)


def test_json_is_one_line_with_the_keys_in_order(tmp_path):
    write_parts(tmp_path / "predictions", predictions([3, 1, 2], [2, 0, 1], [2, 0, 1]))
    line = summarise(str(tmp_path), 3, 0, None, 1.23456, [{"version": 1}, {"version": 2}]).to_json()
    assert "\n" not in line
    assert list(json.loads(line)) == KEYS
    assert json.loads(line) | {"seconds": 0} == dict(
        zip(KEYS, [3, 3, 0, 0, 0, 0, 1, 2, 1, None, None, None, 0, 0, None, None], strict=True)
    )


def test_problems_are_loud():
    base = dict.fromkeys(KEYS, 0) | {"accuracy": None, "accuracy_frozen": None, "kappa_temporal": None, "seconds": 1.0}
    assert Summary(**base).problems() == []
    assert "3 of 10 records are lost" in Summary(**base | {"records": 10, "lost": 3}).problems()[0]
    assert "2 more records came out" in Summary(**base | {"lost": -2}).problems()[0]
    assert "4 rows are duplicates" in Summary(**base | {"duplicated": 4}).problems()[0]


def test_an_empty_or_missing_output_loses_every_record(tmp_path):
    summary = summarise(str(tmp_path / "nothing"), 7, 2, "label", 0.0, [])
    assert (summary.predictions, summary.lost, summary.swaps, summary.accuracy) == (0, 5, 0, None)


def test_files_that_a_killed_run_left_are_not_counted(tmp_path):
    write_parts(tmp_path / "predictions", predictions([1], [0], [1]))
    pq.write_table(predictions([1, 2], [0, 1], [1, 1]), tmp_path / "predictions" / ".incoming-3f")
    assert summarise(str(tmp_path), 1, 0, None, 0.0, []).problems() == []


def test_a_wrong_label_column_is_named(tmp_path):
    write_parts(tmp_path / "predictions", predictions([1], [0], [1]))
    write_parts(tmp_path / "evaluations", evaluations([1], [1], [0], [1], [1]))
    with pytest.raises(ValueError, match=r"evaluations: expected the columns klass, found sequence, event_time"):
        summarise(str(tmp_path), 1, 0, "klass", 0.0, [])


def test_parts_may_have_columns_without_a_type_or_none(tmp_path):
    write_parts(tmp_path / "predictions", predictions([1, 2], [0, 1], [0, 1]))
    table = evaluations([1, 2], [1, 2], [0, 1], [1, 1], [None, 1])
    cold = table.slice(0, 1).drop_columns("prediction").append_column("prediction", pa.nulls(1))
    write_parts(tmp_path / "evaluations", cold)
    pq.write_table(
        table.slice(1).append_column("first_prediction", pa.array([0])), tmp_path / "evaluations/part-000001-00000.parquet"
    )
    summary = summarise(str(tmp_path), 2, 0, "label", 0.0, [])
    assert (summary.accuracy, summary.accuracy_frozen, summary.evaluated) == (0.5, 0.0, 2)
