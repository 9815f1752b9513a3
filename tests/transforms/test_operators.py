import pickle
from dataclasses import dataclass

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.cutting import CUTS, EVENTS, assert_same, events_stream, run, stream
from transforms.aggregation import WindowedAggregation
from transforms.lags import Lags
from transforms.operators import Chain
from transforms.ordering import InOrder
from transforms.windowing import FixedWindows


@dataclass(frozen=True)
class _Count:
    """Adds how many rows came before, over all calls, and sets the odd ones aside."""

    name: str
    outputs: tuple[str, ...] = ("out", "odd")

    def advance(self, state, inputs, watermark_us):
        seen = state["seen"]["n"][0].as_py() if "seen" in state else 0
        if "in" not in inputs:
            return state, {}
        rows = inputs["in"]
        numbers = list(range(seen, seen + rows.num_rows))
        rows = rows.append_column(self.name, pa.array(numbers, pa.int64()))
        odd = pa.array([n % 2 == 1 for n in numbers], pa.bool_())
        even = pa.array([n % 2 == 0 for n in numbers], pa.bool_())
        new_state = {"seen": pa.table({"n": [seen + rows.num_rows]})}
        return new_state, {"out": rows.filter(even), "odd": rows.filter(odd)}


def test_each_keeps_its_own_state_and_side_outputs_come_together():
    given = run(Chain(_Count("first"), _Count("second")), stream([1, 2, 3, 4, 5], {}), (2, 3))
    assert given["out"].select(["first", "second"]).to_pydict() == {"first": [0, 4], "second": [0, 2]}
    # What the second operator set aside has its column, what the first did has not.
    odd = sorted(zip(given["odd"]["first"].to_pylist(), given["odd"]["second"].to_pylist(), strict=True))
    assert odd == [(1, None), (2, 1), (3, None)]


def test_more_than_ten_operators_do_not_share_state():
    chain = Chain(*[_Count(f"n{place}") for place in range(12)])
    state, given = chain.advance({}, {"in": stream(range(2**12), {})}, 0)
    assert sorted(state) == sorted(f"{place}/seen" for place in range(12))
    assert given["out"].num_rows == 1
    assert given["odd"].num_rows == 2**12 - 1


def test_outputs_are_the_last_ones_first():
    chain = Chain(InOrder(), Lags({"v": ("value", 1)}), WindowedAggregation(FixedWindows(10), (), {"n": "count()"}))
    assert chain.outputs == ("out", "late")


@settings(deadline=None, max_examples=60)
@given(EVENTS, CUTS, st.integers(0, 20))
def test_a_chain_gives_the_same_however_cut(events, cuts, out_of_orderness):
    chain = Chain(
        InOrder(),
        Lags({"before": ("value", 1)}, ("key",)),
        WindowedAggregation(FixedWindows(10), ("key",), {"mean": "mean(before)", "n": "count()"}),
        WindowedAggregation(FixedWindows(30), (), {"n": "sum(n)"}),
    )
    table = events_stream(events, out_of_orderness)
    whole = run(chain, table, (), out_of_orderness)
    assert sum(whole["out"]["n"].to_pylist()) + whole["late"].num_rows == len(events)
    assert_same(run(chain, table, cuts, out_of_orderness), whole)


def test_a_call_without_rows_reaches_every_operator():
    chain = Chain(InOrder(), WindowedAggregation(FixedWindows(10), (), {"n": "count()"}))
    state, _ = chain.advance({}, {"in": stream([1, 2, 25], {}, 20)}, 5)
    _, given = chain.advance(state, {}, 40)
    assert given["out"]["n"].to_pylist() == [2, 1]


def test_empty_chain_is_refused():
    with pytest.raises(ValueError, match="at least one operator"):
        Chain()


def test_pickles():
    chain = pickle.loads(pickle.dumps(Chain(InOrder(), Lags({"v": ("row", 1)}))))
    assert run(chain, stream([2, 1], {}))["out"]["v"].to_pylist() == [None]
    assert chain.outputs == ("out", "late")
