import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.cutting import CUTS, assert_same, bits, events_stream, run, sized_lists, stamps, stream
from transforms.batches import MAX_WATERMARK_US, SEQUENCE, WATERMARK
from transforms.label_join import LABEL_TIME, LabelJoin, own_labels

# is it a label, time, key, label
ARRIVALS = sized_lists(
    st.tuples(st.booleans(), st.integers(-20, 40), st.sampled_from(["a", "b", None]), st.sampled_from([0, 1, None]))
)
CLOCKS = st.sampled_from([None, ("records",)])


def _inputs(arrivals, out_of_orderness, clock):
    """Both streams, with one order of arrival, and the watermark of both or of the records alone."""
    if clock is None:
        watermarks = stamps([time for _, time, _, _ in arrivals], out_of_orderness)
    else:
        low = min([time for _, time, _, _ in arrivals], default=0) - 1000  # moves nothing
        watermarks = stamps([low if is_label else time for is_label, time, _, _ in arrivals], out_of_orderness)
    tables = {}
    for tag, wanted in (("records", False), ("labels", True)):
        places = [place for place, arrival in enumerate(arrivals) if arrival[0] is wanted]
        rows = [arrivals[place] for place in places]
        columns = {"key": pa.array([key for _, _, key, _ in rows], pa.string())}
        if wanted:
            columns["label"] = pa.array([label for _, _, _, label in rows], pa.int64())
        else:
            columns["x"] = pa.array([float(place) for place in places], pa.float64())
        table = stream([time for _, time, _, _ in rows], columns, stamped=False)
        table = table.set_column(table.schema.get_field_index(SEQUENCE), SEQUENCE, pa.array(places, pa.int64()))
        tables[tag] = table.append_column(WATERMARK, pa.array([watermarks[place] for place in places], pa.int64()))
    return tables


def _micros(row):
    return int(pa.scalar(row["event_time"], pa.timestamp("us", tz="UTC")).cast(pa.int64()).as_py())


def _oracle(tables, horizon):
    """Label after label, record after record: (record, label, known), records left, (label, reason)."""
    records = [
        {"id": r["sequence"], "key": r["key"], "there": max(_micros(r), r["watermark_us"]), "until": _micros(r) + horizon}
        for r in tables["records"].to_pylist()
    ]
    labels = sorted(
        ({**r, "known": max(_micros(r), r["watermark_us"])} for r in tables["labels"].to_pylist()),
        key=lambda r: (r["known"], r["sequence"]),
    )
    pairs, unmatched, taken = [], [], set()
    for label in labels:
        fits = [r for r in records if r["key"] == label["key"] is not None and r["there"] <= label["known"] <= r["until"]]
        free = [r for r in fits if r["id"] not in taken]
        if label["label"] is None:
            unmatched.append((label["sequence"], "null_label"))
        elif free:
            record = min(free, key=lambda r: (r["there"], r["id"]))
            taken.add(record["id"])
            pairs.append((record["id"], label["label"], label["known"]))
        else:
            unmatched.append((label["sequence"], "duplicate_label" if fits else "no_record"))
    left = [r for r in records if r["id"] not in taken]
    return pairs, [r["id"] for r in sorted(left, key=lambda r: (max(r["there"], r["until"]), r["id"]))], unmatched


@settings(deadline=None, max_examples=120)
@given(ARRIVALS, st.integers(0, 30), st.integers(0, 25), CLOCKS)
def test_against_oracle(arrivals, horizon, out_of_orderness, clock):
    tables = _inputs(arrivals, out_of_orderness, clock)
    whole = run(LabelJoin(("key",), "label", horizon), tables, (), out_of_orderness, clock)
    pairs, left, unmatched = _oracle(tables, horizon)
    out = whole["labelled"]
    times = out[LABEL_TIME].cast(pa.int64()).to_pylist()
    assert list(zip(out["sequence"].to_pylist(), out["label"].to_pylist(), times, strict=True)) == pairs
    assert whole["unlabelled"]["sequence"].to_pylist() == left
    assert list(zip(*(whole["unmatched"][name].to_pylist() for name in ("sequence", "reason")), strict=True)) == unmatched
    # The rows themselves come out as they went in, each at one output.
    came_out = bits(out.drop_columns(["label", LABEL_TIME])) + bits(whole["unlabelled"])
    assert sorted(came_out, key=lambda row: row["sequence"]) == bits(tables["records"])


@settings(deadline=None, max_examples=120)
@given(ARRIVALS, CUTS, st.integers(0, 30), st.integers(0, 25), CLOCKS)
def test_same_however_cut(arrivals, cuts, horizon, out_of_orderness, clock):
    tables = _inputs(arrivals, out_of_orderness, clock)
    operator = LabelJoin(("key",), "label", horizon)
    assert_same(run(operator, tables, cuts, out_of_orderness, clock), run(operator, tables, (), out_of_orderness, clock))


EVENTS = sized_lists(st.tuples(st.integers(-40, 60), st.just("k"), st.none() | st.sampled_from([0.0, 1.0])))


@settings(deadline=None, max_examples=120)
@given(EVENTS, CUTS, st.integers(0, 30), st.integers(0, 10), st.integers(0, 25))
def test_own_labels_find_their_records(events, cuts, delay, slack, out_of_orderness):
    table = events_stream(events, out_of_orderness)
    batches = table.combine_chunks().to_batches() or [
        pa.record_batch([pa.array([], f.type) for f in table.schema], table.schema)
    ]
    records, labels = (pa.Table.from_batches([part]) for part in own_labels(batches[0], "value", delay))
    operator = LabelJoin(("sequence",), "value", delay + slack)
    whole = run(operator, {"records": records, "labels": labels}, (), out_of_orderness, ("records",))
    assert_same(run(operator, {"records": records, "labels": labels}, cuts, out_of_orderness, ("records",)), whole)
    out = whole["labelled"]
    own = {row["sequence"]: row["value"] for row in table.to_pylist()}
    assert {row["sequence"]: row["value"] for row in out.to_pylist()} == {
        s: v for s, v in own.items() if v is not None and s not in whole["unmatched"]["sequence"].to_pylist()
    }
    delays = out[LABEL_TIME].cast(pa.int64()).to_numpy() - out["event_time"].cast(pa.int64()).to_numpy()
    on_time = out["event_time"].cast(pa.int64()).to_numpy() + delay >= out[WATERMARK].to_numpy()
    assert np.all(delays[on_time] == delay) and np.all(delays[~on_time] > delay)
    late = [time + delay + slack < mark for (time, _, _), mark in zip(events, table[WATERMARK].to_pylist(), strict=True)]
    assert whole["unmatched"].num_rows == sum(gone and v is not None for gone, (_, _, v) in zip(late, events, strict=True))


def test_a_label_waits_for_its_time_and_a_record_for_its_horizon():
    records = stream([0, 10], {"key": pa.array(["a", "b"])})
    labels = stream([5], {"key": pa.array(["a"]), "label": pa.array([1])}, first=200)
    operator = LabelJoin(("key",), "label", 20)
    state, given_rows = operator.advance({}, {"records": records, "labels": labels}, 4)
    assert {tag: table.num_rows for tag, table in given_rows.items()} == {"labelled": 0, "unlabelled": 0, "unmatched": 0}
    state, given_rows = operator.advance(state, {}, 5)
    assert given_rows["labelled"]["label"].to_pylist() == [1]
    assert (state["records"].num_rows, state["labels"].num_rows, state["done"].num_rows) == (1, 0, 1)
    state, given_rows = operator.advance(state, {}, 30)
    assert given_rows["unlabelled"].num_rows == 0
    assert state["done"].num_rows == 0
    _, given_rows = operator.advance(state, {}, 31)
    assert given_rows["unlabelled"]["key"].to_pylist() == ["b"]


def test_a_second_label_at_the_very_end_of_the_horizon_is_a_duplicate_however_late_it_is_read():
    records = stream([0], {"key": pa.array(["a"])})
    labels = stream([5, 20], {"key": pa.array(["a", "a"]), "label": pa.array([1, 2])}, first=200)
    operator = LabelJoin(("key",), "label", 20)
    state, _ = operator.advance({}, {"records": records, "labels": labels.slice(0, 1)}, 20)
    _, given_rows = operator.advance(state, {"labels": labels.slice(1)}, MAX_WATERMARK_US)
    assert given_rows["unmatched"]["reason"].to_pylist() == ["duplicate_label"]


def test_labels_before_any_record_and_records_before_any_label():
    labels = stream([5, 50], {"key": pa.array(["a", "b"]), "label": pa.array([1, 2])}, first=200)
    records = stream([40], {"key": pa.array(["b"])}, first=300)
    operator = LabelJoin(("key",), "label", 20)
    assert operator.advance({}, {}, 0) == ({}, {})
    state, given_rows = operator.advance({}, {"labels": labels}, 10)
    assert given_rows["unmatched"]["reason"].to_pylist() == ["no_record"]
    _, given_rows = operator.advance(state, {"records": records}, MAX_WATERMARK_US)
    assert given_rows["labelled"]["label"].to_pylist() == [2]
    state, _ = operator.advance({}, {"records": records}, 40)
    _, given_rows = operator.advance(state, {"labels": labels.slice(1)}, 50)
    assert given_rows["labelled"]["label"].to_pylist() == [2]


def test_many_rows_of_one_key_are_labelled_in_order():
    times = list(range(20_000))
    records = stream(times, {"key": pa.array(["k"] * len(times))})
    labels = stream([t + 5 for t in times], {"key": pa.array(["k"] * len(times)), "label": pa.array(times)})
    out = run(LabelJoin(("key",), "label", 10), {"records": records, "labels": labels}, (7, 300))["labelled"]
    assert out["label"].to_pylist() == times
    assert out["event_time"].cast(pa.int64()).to_pylist() == times


def test_check():
    records, labels = (
        stream([], {"key": pa.array([], pa.string())}).schema,
        stream([], {"key": pa.array([], pa.string())}).schema,
    )
    labels = labels.append(pa.field("label", pa.bool_()))
    operator = LabelJoin(("key",), "label", 1)
    joined = operator.check(records, labels)
    assert joined.names == [*records.names, "label", "label_time"]
    assert joined.field("label").type == pa.bool_()
    for bad_records, bad_labels, message in (
        (stream([], {}).schema, labels, "records: no column key"),
        (records, records, "labels: no column label"),
        (labels, labels, "records have a column label already"),
        (stream([], {"key": pa.array([], pa.int64())}).schema, labels, "key is int64 in the records and string in the labels"),
    ):
        with pytest.raises(ValueError, match=message):
            operator.check(bad_records, bad_labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("key", "label", 1), "on is a tuple"),
        (((), "label", 1), "on is a tuple of at least one"),
        ((("key",), "key", 1), "cannot be key"),
        ((("key",), "event_time", 1), "cannot be event_time"),
        ((("key",), "label", -1), "horizon must not be negative"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_built(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelJoin(*arguments)


def test_own_labels_refuses_what_cannot_be():
    batch = events_stream([(1, "a", 1.0)]).to_batches()[0]
    with pytest.raises(ValueError, match="no column class"):
        own_labels(batch, "class", 0)
    with pytest.raises(ValueError, match="cannot be known before its record"):
        own_labels(batch, "value", -1)


def test_pickles():
    operator = LabelJoin(("key",), "label", 5)
    assert pickle.loads(pickle.dumps(operator)) == operator
