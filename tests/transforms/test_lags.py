import math
import pickle
import statistics

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.cutting import CUTS, EVENTS, assert_same, events_stream, run
from transforms.lags import Lags
from transforms.operators import Chain
from transforms.ordering import InOrder

LAGS = Lags(
    {"value_1": ("value", 1), "value_3": ("value", 3), "row_2": ("row", 2)},
    ("key",),
    {
        "mean_4": ("value", "mean", 4),
        "low_2": ("value", "min", 2),
        "high_3": ("value", "max", 3),
        "spread_5": ("value", "std", 5),
    },
)


@settings(deadline=None, max_examples=120)
@given(EVENTS)
def test_against_oracle(events):
    table = events_stream(events)
    out = run(LAGS, table)["out"].to_pylist()
    before = {}
    for ours, row in zip(out, table.to_pylist(), strict=True):
        assert {name: ours[name] for name in row} == row
        history = before.setdefault(row["key"], [])
        history.append(row)
        for name, column, lag in (("value_1", "value", 1), ("value_3", "value", 3), ("row_2", "row", 2)):
            assert ours[name] == (history[-1 - lag][column] if len(history) > lag else None)
        for name, function, records in (
            ("mean_4", statistics.fmean, 4),
            ("low_2", min, 2),
            ("high_3", max, 3),
            ("spread_5", statistics.pstdev, 5),
        ):
            values = [row["value"] for row in history[-records:] if row["value"] is not None]
            if not values:
                assert ours[name] is None
            elif function in (min, max):
                assert ours[name] == function(values)
            else:
                assert math.isclose(ours[name], function(values), rel_tol=1e-6, abs_tol=100)


@settings(deadline=None, max_examples=120)
@given(EVENTS, CUTS, st.sampled_from([(), ("key",), ("key", "source")]))
def test_same_bits_however_cut(events, cuts, by):
    operator = Lags(LAGS.columns, by, LAGS.rolling)
    table = events_stream(events)
    assert_same(run(operator, table, cuts), run(operator, table))


@settings(deadline=None, max_examples=60)
@given(EVENTS, CUTS, st.integers(0, 20))
def test_after_ordering(events, cuts, out_of_orderness):
    operator = Chain(InOrder(), LAGS)
    table = events_stream(events, out_of_orderness)
    assert_same(run(operator, table, cuts, out_of_orderness), run(operator, table, (), out_of_orderness))


def test_state_keeps_the_rows_that_can_be_asked_for_and_no_more():
    table = events_stream([(i, "ab"[i % 2], float(i)) for i in range(20)])
    state, _ = Lags({"v": ("value", 3)}, ("key",)).advance({}, {"in": table}, 0)
    assert state["rows"].to_pydict() == {"key": ["a", "b"] * 3, "value": [14.0, 15.0, 16.0, 17.0, 18.0, 19.0]}
    state, _ = Lags({}, ("key",), {"v": ("value", "mean", 3)}).advance({}, {"in": table}, 0)
    assert state["rows"]["value"].to_pylist() == [16.0, 17.0, 18.0, 19.0]


def test_no_lags_change_nothing():
    table = events_stream([(1, "a", 1.0), (2, "a", 2.0)])
    assert run(Lags({}), table, (1,))["out"].num_columns == table.num_columns


def test_check():
    schema = events_stream([]).schema
    added = LAGS.check(schema)
    assert added.names == [*schema.names, *LAGS.columns, *LAGS.rolling]
    assert added.field("row_2").type == pa.int64()
    with pytest.raises(ValueError, match="no column price"):
        Lags({"p": ("price", 1)}).check(schema)
    with pytest.raises(ValueError, match="have a column value already"):
        Lags({"value": ("value", 1)}).check(schema)
    with pytest.raises(ValueError, match="wants numbers; the column is string"):
        Lags({}, (), {"k": ("key", "mean", 2)}).check(schema)


@pytest.mark.parametrize(
    ("columns", "rolling", "message"),
    [
        ({"v": ("value", 0)}, {}, "whole number of records, 1 or more; got 0"),
        ({"v": ("value", 1.5)}, {}, "got 1.5"),
        ({"row": ("value", 1)}, {}, "row is a reserved column"),
        ({}, {"v": ("value", "sum", 2)}, "expected one of mean, min, max, std; got 'sum'"),
        ({"v": ("value", 1)}, {"v": ("value", "mean", 2)}, "both a lag and a rolling"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_built(columns, rolling, message):
    with pytest.raises(ValueError, match=message):
        Lags(columns, (), rolling)


def test_pickles():
    assert pickle.loads(pickle.dumps(LAGS)) == LAGS
