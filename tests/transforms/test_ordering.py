import pickle

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.cutting import CUTS, EVENTS, assert_same, bits, events_stream, run, stream
from transforms.ordering import InOrder


@settings(deadline=None, max_examples=120)
@given(EVENTS, CUTS, st.integers(0, 25))
def test_order_and_lateness_against_oracle_however_cut(events, cuts, out_of_orderness):
    table = events_stream(events, out_of_orderness)
    rows = bits(table)
    late = [row for row, (time, _, _) in zip(rows, events, strict=True) if time < row["watermark_us"]]
    given_rows = sorted((row for row in rows if row not in late), key=lambda row: (row["event_time"], row["sequence"]))
    whole = run(InOrder(), table, (), out_of_orderness)
    assert bits(whole["out"]) == given_rows
    assert bits(whole["late"]) == late
    assert_same(run(InOrder(), table, cuts, out_of_orderness), whole)


def test_rows_are_given_as_soon_as_the_watermark_is_there():
    table = stream([5, 3, 9], {}, out_of_orderness=4)
    state, given_rows = InOrder().advance({}, {"in": table}, 5)
    assert given_rows["out"]["sequence"].to_pylist() == [101, 100]
    assert state["rows"]["sequence"].to_pylist() == [102]
    state, given_rows = InOrder().advance(state, {}, 9)
    assert given_rows["out"]["sequence"].to_pylist() == [102]


def test_without_stamps_nothing_is_late():
    table = stream([5, 3, 9, 1], {}, stamped=False)
    whole = run(InOrder(), table)
    assert whole["out"]["sequence"].to_pylist() == [103, 101, 100, 102]
    assert "late" not in whole


def test_nothing_gives_nothing():
    assert InOrder().advance({}, {}, 0) == ({}, {})


def test_pickles():
    assert pickle.loads(pickle.dumps(InOrder())) == InOrder()
