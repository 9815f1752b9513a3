import math
import pickle
import statistics

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.cutting import CUTS, EVENTS, assert_same, bits, events_stream, run, stream
from transforms.aggregation import WindowedAggregation
from transforms.operators import Chain
from transforms.ordering import InOrder
from transforms.windowing import FixedWindows, SessionWindows, SlidingWindows

AGGREGATES = {
    "rows": "count()",
    "seen": "count(value)",
    "total": "sum(value)",
    "mean": "mean(value)",
    "spread": "std(value)",
    "low": "min(value)",
    "high": "quantile(value, 0.9)",
    "different": "distinct(value)",
}
WINDOWS = st.one_of(
    st.builds(FixedWindows, st.integers(1, 20), st.integers(-5, 5)),
    st.builds(lambda size, every: SlidingWindows(max(size, every), every), st.integers(1, 20), st.integers(1, 20)),
    st.builds(SessionWindows, st.integers(1, 15)),
)


def _windows_of(windows, time):
    if isinstance(windows, FixedWindows):
        start = (time - windows.offset_us) // windows.size_us * windows.size_us + windows.offset_us
        return [(start, start + windows.size_us)]
    if isinstance(windows, SlidingWindows):
        starts = [s for s in range(-200, 200) if s % windows.every_us == 0 and s <= time < s + windows.size_us]
        return [(s, s + windows.size_us) for s in starts]
    return [(time, time + windows.gap_us)]


def _oracle(rows, windows, keyed, lateness):
    """The groups (start, end, key) -> rows, and the late rows, one row after the other."""
    groups, late = {}, []
    for row in rows:
        time, stamp, key = row["time"], row["watermark_us"], row["key"] if keyed else None
        if isinstance(windows, SessionWindows):
            is_open = [w for w in _windows_of(windows, time) if time + lateness >= stamp]
        else:
            is_open = [w for w in _windows_of(windows, time) if w[1] + lateness > stamp]
        if not is_open:
            late.append(row["sequence"])
        for window in is_open:
            groups.setdefault((*window, key), []).append(row)
    if not isinstance(windows, SessionWindows):
        return groups, late
    merged = {}
    for (start, end, key), members in sorted(groups.items(), key=lambda item: (str(item[0][2]), item[0][0])):
        last = max((k for k in merged if k[2] == key), key=lambda k: k[1], default=None)
        if last is not None and start < last[1]:
            merged[(last[0], end, key)] = merged.pop(last) + members
        else:
            merged[(start, end, key)] = list(members)
    return merged, late


@settings(deadline=None, max_examples=120)
@given(EVENTS, WINDOWS, st.booleans(), st.integers(0, 20), st.integers(0, 20))
def test_groups_and_values_against_oracle(events, windows, keyed, lateness, out_of_orderness):
    table = events_stream(events, out_of_orderness)
    operator = WindowedAggregation(windows, ("key",) if keyed else (), AGGREGATES, lateness)
    whole = run(operator, table, (), out_of_orderness)
    rows = [{**row, "time": time} for row, (time, _, _) in zip(table.to_pylist(), events, strict=True)]
    groups, late = _oracle(rows, windows, keyed, lateness)
    assert whole["late"]["sequence"].to_pylist() == late
    assert bits(whole["late"]) == [row for row in bits(table) if row["sequence"] in late]
    out = whole["out"]
    starts, ends = (out[name].cast(pa.int64()).to_pylist() for name in ("window_start", "window_end"))
    assert out["event_time"].cast(pa.int64()).to_pylist() == [end - 1 for end in ends]
    assert len(set(out["sequence"].to_pylist())) == out.num_rows
    order = list(zip(ends, starts, out["sequence"].to_pylist(), strict=True))
    assert order == sorted(order)
    keys = out["key"].to_pylist() if keyed else [None] * out.num_rows
    assert len(keys) == len(groups)
    for result, start, end, key in zip(out.to_pylist(), starts, ends, keys, strict=True):
        members = groups[(start, end, key)]
        last = max(members, key=lambda row: row["sequence"])
        assert (result["source"], result["row"]) == (last["source"], last["row"])
        if windows.windows_per_row == 1:
            assert result["sequence"] == last["sequence"]
        values = [row["value"] for row in members if row["value"] is not None]
        assert (result["rows"], result["seen"], result["different"]) == (len(members), len(values), len(set(values)))
        if not values:
            assert [result[name] for name in ("total", "mean", "spread", "low", "high")] == [None] * 5
            continue
        assert result["low"] == min(values)
        assert math.isclose(result["total"], math.fsum(values), rel_tol=1e-9, abs_tol=100)
        assert math.isclose(result["mean"], math.fsum(values) / len(values), rel_tol=1e-9, abs_tol=100)
        assert math.isclose(result["spread"], statistics.pstdev(values), rel_tol=1e-6, abs_tol=100)
        assert math.isclose(result["high"], np.quantile(values, 0.9), rel_tol=1e-9, abs_tol=1e-9)


@settings(deadline=None, max_examples=120)
@given(EVENTS, CUTS, WINDOWS, st.booleans(), st.integers(0, 20), st.integers(0, 20))
def test_same_bits_however_cut(events, cuts, windows, keyed, lateness, out_of_orderness):
    table = events_stream(events, out_of_orderness)
    operator = WindowedAggregation(windows, ("key",) if keyed else (), AGGREGATES, lateness)
    assert_same(run(operator, table, cuts, out_of_orderness), run(operator, table, (), out_of_orderness))


@settings(deadline=None, max_examples=60)
@given(EVENTS, CUTS, WINDOWS, st.integers(0, 20))
def test_after_ordering_too(events, cuts, windows, out_of_orderness):
    table = events_stream(events, out_of_orderness)
    operator = Chain(InOrder(), WindowedAggregation(windows, ("key",), AGGREGATES))
    whole = run(operator, table, (), out_of_orderness)
    assert_same(run(operator, table, cuts, out_of_orderness), whole)
    late = [time < stamp for (time, _, _), stamp in zip(events, table["watermark_us"].to_pylist(), strict=True)]
    assert whole["late"].num_rows == sum(late)  # all of them from the first operator
    assert sum(whole["out"]["rows"].to_pylist()) >= len(events) - sum(late)


def test_a_window_is_given_once_and_when_it_is_complete():
    operator = WindowedAggregation(FixedWindows(10), (), {"n": "count()"}, allowed_lateness_us=5)
    table = stream([1, 12, 14], {})
    state, tables = operator.advance({}, {"in": table}, 14)
    assert tables["out"].num_rows == 0
    state, tables = operator.advance(state, {}, 15)
    assert tables["out"]["n"].to_pylist() == [1]
    assert state["rows"].num_rows == 2
    state, tables = operator.advance(state, {}, 24)
    assert tables["out"].num_rows == 0
    _, tables = operator.advance(state, {}, 25)
    assert tables["out"]["n"].to_pylist() == [2]


def test_a_row_late_for_some_of_its_windows_counts_in_the_others():
    operator = WindowedAggregation(SlidingWindows(10, 5), (), {"n": "count()"})
    # Row 4 has the windows [-5, 5) and [0, 10); at its watermark, 6, only the second one is open.
    whole = run(operator, stream([6, 4], {}), (1,))
    assert whole["late"].num_rows == 0
    assert whole["out"]["window_start"].cast(pa.int64()).to_pylist() == [0, 5]
    assert whole["out"]["n"].to_pylist() == [2, 1]


def test_a_row_held_for_its_later_windows_is_not_given_again_in_the_earlier_ones():
    operator = WindowedAggregation(SlidingWindows(10, 5), (), {"n": "count()"})
    out = run(operator, stream([6, 12, 18], {}), (1, 2))["out"]
    assert out["window_start"].cast(pa.int64()).to_pylist() == [0, 5, 10, 15]
    assert out["n"].to_pylist() == [1, 2, 2, 1]


def test_a_row_of_a_session_at_its_watermark_is_not_late():
    operator = WindowedAggregation(SessionWindows(5), (), {"n": "count()"}, allowed_lateness_us=2)
    whole = run(operator, stream([10, 8, 7], {}), (1, 2))  # the watermark is 10 for both of the later rows
    assert whole["out"]["n"].to_pylist() == [2]
    assert whole["late"]["sequence"].to_pylist() == [102]


def test_rows_without_stamps_are_late_only_behind_windows_that_were_given():
    operator = WindowedAggregation(FixedWindows(10), (), {"n": "count()"})
    table = stream([1, 25, 2], {}, stamped=False)
    assert run(operator, table)["out"]["n"].to_pylist() == [2, 1]
    cut = run(operator, table, (2,))
    assert cut["out"]["n"].to_pylist() == [1, 1]
    assert cut["late"]["sequence"].to_pylist() == [102]


def test_state_has_only_the_columns_needed():
    operator = WindowedAggregation(FixedWindows(10), ("key",), {"top": "max(value)"})
    table = events_stream([(1, "a", 1.0)]).append_column("wide", pa.array(["x" * 1000]))
    state, _ = operator.advance({}, {"in": table}, 1)
    assert set(state["rows"].schema.names) == {"event_time", "source", "row", "sequence", "watermark_us", "key", "value"}


def test_key_by_source_and_reserved_columns():
    operator = WindowedAggregation(FixedWindows(100), ("source",), {"n": "count()"})
    whole = run(operator, stream([1, 2, 3, 4], {}), (2,))
    assert dict(zip(whole["out"]["source"].to_pylist(), whole["out"]["n"].to_pylist(), strict=True)) == {
        "file-0": 2,
        "file-1": 1,
        "file-2": 1,
    }


def test_check():
    schema = events_stream([]).schema
    operator = WindowedAggregation(FixedWindows(10), ("key",), {"top": "max(value)", "n": "count()"})
    assert operator.check(schema).names == [
        "key",
        "window_start",
        "window_end",
        "top",
        "n",
        "event_time",
        "source",
        "row",
        "sequence",
    ]
    with pytest.raises(ValueError, match="no column price; the columns are event_time"):
        WindowedAggregation(FixedWindows(10), (), {"top": "max(price)"}).check(schema)
    with pytest.raises(ValueError, match=r"mean\(key\) wants numbers; the column is string"):
        WindowedAggregation(FixedWindows(10), (), {"m": "mean(key)"}).check(schema)


@pytest.mark.parametrize(
    ("by", "aggregates", "lateness", "message"),
    [
        ("key", {}, 0, "by is a tuple"),
        (("row",), {}, 0, "row cannot be a key"),
        (("key", "key"), {}, 0, "named twice"),
        (("key",), {"key": "count()"}, 0, "has the name of a key"),
        ((), {"window_end": "count()"}, 0, "has the name of a key or a reserved column"),
        ((), {"m": "median(x)"}, 0, "aggregate m: expected an aggregate"),
        ((), {}, -1, "must not be negative"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_built(by, aggregates, lateness, message):
    with pytest.raises(ValueError, match=message):
        WindowedAggregation(FixedWindows(10), by, aggregates, lateness)


def test_sequences_that_would_overflow_are_refused():
    operator = WindowedAggregation(SlidingWindows(1000, 1), (), {"n": "count()"})
    with pytest.raises(ValueError, match="too large to number 1000 windows"):
        run(operator, stream([1], {}, first=2**60))


def test_pickles():
    operator = WindowedAggregation(SlidingWindows(10, 5), ("key",), AGGREGATES, 3)
    assert pickle.loads(pickle.dumps(operator)) == operator
