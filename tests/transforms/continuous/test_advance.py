"""Operators driven by Beam's timers give what they give in micro-batches, however the stream comes in."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from tests.transforms.cutting import CUTS, EVENTS, bits, events_stream, run
from transforms.aggregation import WindowedAggregation
from transforms.batches import EVENT_TIME, SEQUENCE
from transforms.continuous.advance import LAST_US, AdvanceLive, AdvanceShard
from transforms.label_join import LabelJoin
from transforms.lags import Lags
from transforms.operators import Chain, Operator
from transforms.ordering import InOrder
from transforms.windowing import FixedWindows, SessionWindows, SlidingWindows

OPERATORS = {
    "in order": InOrder(),
    "lags": Chain(InOrder(), Lags({"before": ("value", 1)}, ("key",), {"low": ("value", "min", 3)})),
    "fixed": WindowedAggregation(FixedWindows(10), ("key",), {"n": "count()", "total": "sum(value)"}),
    "sliding": WindowedAggregation(SlidingWindows(20, 5), ("key",), {"mean": "mean(value)"}, allowed_lateness_us=7),
    "session": WindowedAggregation(SessionWindows(9), ("key",), {"total": "sum(value)"}),
    "windows, then lags": Chain(
        WindowedAggregation(FixedWindows(10), ("key",), {"total": "sum(value)"}),
        InOrder(),
        Lags({"before": ("total", 1)}, ("key",)),
    ),
}


class _Value:
    """State of one value, and a timer, as Beam hands them to a DoFn; what a runner keeps of them is tested on the engines."""

    def __init__(self) -> None:
        self.bag: list[Any] = []
        self.time_us: int | None = None

    def read(self) -> Any:
        return self.bag[-1] if self.bag else None

    def write(self, value: Any) -> None:
        self.bag = [value]

    def add(self, value: Any) -> None:
        self.bag.append(value)

    def clear(self) -> None:
        self.bag = []

    def set(self, time: Timestamp) -> None:
        self.time_us = time.micros


class _Bag(_Value):
    def read(self) -> Any:
        return list(self.bag)


def run_live(
    operator: Operator, streams: Mapping[str, pa.Table], cuts: Sequence[int], lateness: int, tick_us: int
) -> dict[str, pa.Table]:
    """Runs an operator by its timers: batches cut at these sequences, and after each the watermark moves on."""
    step = AdvanceShard(operator, tick_us)
    came, state, clock, following, timer = _Bag(), _Value(), _Value(), _Value(), _Value()
    given: dict[str, list[pa.RecordBatch]] = {}

    def move_to(watermark_us: int) -> None:
        while timer.time_us is not None and timer.time_us <= watermark_us:
            fired, timer.time_us = Timestamp(micros=timer.time_us), None
            for batch in step.advance(fired, came, state, clock, following, timer):
                tagged = isinstance(batch, beam.pvalue.TaggedOutput)
                tag, rows = (batch.tag, batch.value) if tagged else (operator.outputs[0], batch)
                given.setdefault(tag, []).append(rows)

    last = max(table[SEQUENCE].to_numpy().max(initial=0) for table in streams.values()) + 1
    newest = -(2**40)
    for start, end in itertools.pairwise([0, *sorted(cut % last for cut in cuts), last]):
        for tag, table in streams.items():
            sequence = table[SEQUENCE].to_numpy()
            piece = table.filter((sequence >= start) & (sequence < end)).combine_chunks()
            for batch in piece.to_batches():
                step.process((0, (tag, batch)), came, clock, following, timer)
            if tag in ("in", "records"):
                newest = max([newest, *piece[EVENT_TIME].cast(pa.int64()).to_pylist()])
        move_to(newest - lateness)
    move_to(LAST_US)
    return {tag: pa.Table.from_batches(batches).unify_dictionaries().combine_chunks() for tag, batches in given.items()}


_EXAMPLES = settings(max_examples=100, deadline=None, derandomize=True)


@pytest.mark.parametrize("name", OPERATORS)
@_EXAMPLES
@drawn(events=EVENTS, cuts=CUTS, lateness=st.sampled_from([0, 5, 30]), tick_us=st.sampled_from([1, 8, 1000]))
def test_timers_give_what_micro_batches_give(name, events, cuts, lateness, tick_us) -> None:
    stream = events_stream(events, lateness)
    expected = run(OPERATORS[name], stream, cuts, lateness)
    ours = run_live(OPERATORS[name], {"in": stream}, cuts, lateness, tick_us)
    for tag in expected.keys() | ours.keys():
        assert bits(ours.get(tag)) == bits(expected.get(tag)), tag


@_EXAMPLES
@drawn(events=EVENTS, delay=st.integers(0, 20), cuts=CUTS, tick_us=st.sampled_from([1, 8]))
def test_late_labels_join_by_timers(events, delay, cuts, tick_us) -> None:
    records = events_stream(events, 5)
    times = records[EVENT_TIME].cast(pa.int64()).to_numpy() + delay
    labels = records.set_column(0, EVENT_TIME, pa.array(times).cast(pa.timestamp("us", "UTC"))).rename_columns(
        [{"value": "label"}.get(name, name) for name in records.schema.names]
    )
    streams = {"records": records.drop_columns(["value"]), "labels": labels.drop_columns(["key"])}
    join = LabelJoin((SEQUENCE,), "label", 20)
    expected = run(join, streams, cuts, 5, clock=["records"])
    ours = run_live(join, streams, cuts, 5, tick_us)
    for tag in expected.keys() | ours.keys():
        assert sorted(map(str, bits(ours.get(tag)))) == sorted(map(str, bits(expected.get(tag)))), tag


def test_a_tick_is_positive() -> None:
    with pytest.raises(ValueError, match="at least 1 microsecond"):
        AdvanceLive(InOrder(), "live", tick_us=0)
