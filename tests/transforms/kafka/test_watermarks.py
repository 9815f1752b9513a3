"""The result does not depend on how the partitions were interleaved, nor on how the stream was cut into micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.cutting import KEYS, VALUES, assert_same, round_trip
from transforms.aggregation import WindowedAggregation
from transforms.batches import (
    EVENT_TIME,
    MAX_WATERMARK_US,
    MIN_WATERMARK_US,
    NAME_TYPE,
    ROW,
    ROW_BITS,
    SEQUENCE,
    SOURCE,
    TIME_TYPE,
)
from transforms.kafka.watermarks import Progress, holders, stream_watermark_us
from transforms.label_join import LabelJoin
from transforms.lags import Lags
from transforms.operators import Chain
from transforms.ordering import InOrder
from transforms.sources import stamp_watermark
from transforms.windowing import FixedWindows, SessionWindows, SlidingWindows

Partition = Sequence[tuple[int, str | None, float | None]]
# Times that mostly go on, so that rows are late now and then and not always.
PARTITION = st.sampled_from([0, 2, 6, 14]).flatmap(
    lambda n: st.lists(st.tuples(st.integers(-6, 14), KEYS, VALUES), min_size=n, max_size=n)
)
STREAM = st.lists(PARTITION, min_size=1, max_size=3)
# For each micro-batch how many rows it takes of each partition.
CUTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), max_size=6)


def events(partition: Partition) -> Partition:
    """Drawn steps made into event times."""
    times = np.cumsum([0, *(step for step, _, _ in partition)])[1:]
    return [(int(time), key, value) for time, (_, key, value) in zip(times, partition, strict=True)]


def rows_of(number: int, partition: Partition, columns: Sequence[str] = ("key", "value")) -> pa.RecordBatch:
    times, keys, values = zip(*partition, strict=True) if partition else ((), (), ())
    offsets = 3 * np.arange(len(times))  # with gaps
    return pa.record_batch(
        {
            columns[0]: pa.array(keys, pa.string()),
            columns[1]: pa.array(values, pa.float64()),
            EVENT_TIME: pa.array(times, pa.int64()).cast(TIME_TYPE),
            SOURCE: pa.array([f"topic/{number}"] * len(times), pa.string()).cast(NAME_TYPE),
            ROW: pa.array(offsets),
            SEQUENCE: pa.array((number << ROW_BITS) + offsets),
        }
    )


class Cutter:
    """Gives a stream of partitions piece by piece, stamped by the rules, with the watermark after each piece."""

    def __init__(
        self, partitions: Sequence[Partition], out_of_orderness: int, columns: Sequence[str] = ("key", "value")
    ) -> None:
        self._rows = [rows_of(number, events(partition), columns) for number, partition in enumerate(partitions)]
        self._out_of_orderness = out_of_orderness
        self.progress = [Progress(0) for _ in partitions]
        self.watermark_us = MIN_WATERMARK_US

    def take(self, counts: Sequence[int]) -> pa.Table | None:
        pieces = []
        for number, count in enumerate(counts[: len(self._rows)]):
            at = self.progress[number]
            piece, newest = stamp_watermark(self._rows[number].slice(at.offset, count), at.newest_us, self._out_of_orderness)
            pieces.append(piece)
            self.progress[number] = Progress(at.offset + piece.num_rows, newest, at.idle and not piece.num_rows)
        self.watermark_us = stream_watermark_us(self.progress, self._out_of_orderness, self.watermark_us)
        rows = [piece for piece in pieces if piece.num_rows]
        return pa.Table.from_batches(rows).unify_dictionaries().combine_chunks() if rows else None

    def rest(self) -> list[int]:
        return [rows.num_rows for rows in self._rows]


def run(operator: Any, streams: Mapping[str, Cutter], cuts: Sequence[Sequence[int]]) -> dict[str, pa.Table]:
    state: dict[str, pa.Table] = {}
    given: dict[str, list[pa.Table]] = {}
    for counts in [*cuts, None]:
        inputs = {}
        for tag, stream in streams.items():
            rows = stream.take(stream.rest() if counts is None else counts)
            if rows is not None:
                inputs[tag] = rows
        watermark_us = MAX_WATERMARK_US if counts is None else min(stream.watermark_us for stream in streams.values())
        state, outputs = operator.advance(round_trip(state), inputs, watermark_us)
        for tag, table in outputs.items():
            given.setdefault(tag, []).append(table)
    return {tag: pa.concat_tables(tables).unify_dictionaries().combine_chunks() for tag, tables in given.items()}


def without_order_of_arrival(given: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Late rows come as they are found; in which order is not promised over several partitions."""
    return {tag: table.sort_by(SEQUENCE) if tag == "late" else table for tag, table in given.items() if table.num_rows}


OPERATORS = {
    "in order": InOrder(),
    "lags": Chain(InOrder(), Lags({"before": ("value", 1)}, ("key",), {"mean": ("value", "mean", 3)})),
    "fixed": WindowedAggregation(FixedWindows(10), ("key",), {"n": "count()", "total": "sum(value)"}, 3),
    "sliding": WindowedAggregation(SlidingWindows(20, 10), (), {"total": "sum(value)", "top": "max(value)"}),
    "session": WindowedAggregation(SessionWindows(5), ("key",), {"total": "sum(value)"}, 2),
}


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=60, deadline=None)
@given(STREAM, CUTS, st.sampled_from([0, 4]))
def test_cuts_and_interleaving_change_nothing(
    name: str, partitions: list[Partition], cuts: list[tuple[int, ...]], out_of_orderness: int
) -> None:
    operator = OPERATORS[name]
    whole = run(operator, {"in": Cutter(partitions, out_of_orderness)}, [])
    cut = run(operator, {"in": Cutter(partitions, out_of_orderness)}, cuts)
    assert_same(without_order_of_arrival(cut), without_order_of_arrival(whole))


@settings(max_examples=100, deadline=None)
@given(STREAM, STREAM, CUTS, st.sampled_from([0, 4]), st.sampled_from([0, 10, 40]))
def test_labels_join_the_same_records(
    records: list[Partition], labels: list[Partition], cuts: list[tuple[int, ...]], out_of_orderness: int, horizon: int
) -> None:
    operator = LabelJoin(("key",), "label", horizon)

    def streams() -> dict[str, Cutter]:
        return {"records": Cutter(records, out_of_orderness), "labels": Cutter(labels, 0, ("key", "label"))}

    # The order of unlabelled records and of labels that nothing has does not bear on a prediction: they become notes.
    def told(given: dict[str, pa.Table]) -> dict[str, pa.Table]:
        return {tag: table if tag == "labelled" else table.sort_by(SEQUENCE) for tag, table in given.items() if table.num_rows}

    assert_same(told(run(operator, streams(), cuts)), told(run(operator, streams(), [])))


@settings(max_examples=100, deadline=None)
@given(STREAM, CUTS, st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=6, max_size=6))
def test_an_idle_partition_never_puts_a_row_out_of_place(
    partitions: list[Partition], cuts: list[tuple[int, ...]], idle: list[tuple[bool, ...]]
) -> None:
    """Whatever is declared idle whenever: each row comes once, in order or as a late one, and the watermark never goes back."""
    stream, state, came, late, last_us = Cutter(partitions, 4), {}, [], [], MIN_WATERMARK_US
    for counts, silent in [*zip(cuts, idle, strict=False), (None, ())]:
        # Before a partition that was idle is read again, it is put behind what the stream has released.
        for number, at in enumerate(stream.progress):
            if at.idle:
                stream.progress[number] = at.behind(stream.watermark_us, 4)
        rows = stream.take(stream.rest() if counts is None else counts)
        for number, at in enumerate(stream.progress):
            # It stays idle until it is read again.
            stream.progress[number] = Progress(at.offset, at.newest_us, at.idle or bool(silent and silent[number]))
        stream.watermark_us = stream_watermark_us(stream.progress, 4, stream.watermark_us)
        assert stream.watermark_us >= last_us
        last_us = stream.watermark_us
        state, given_rows = InOrder().advance(
            state, {} if rows is None else {"in": rows}, MAX_WATERMARK_US if counts is None else stream.watermark_us
        )
        came += given_rows["out"].to_pylist() if "out" in given_rows else []
        late += given_rows["late"].to_pylist() if "late" in given_rows else []
    order = [(row[EVENT_TIME], row[SEQUENCE]) for row in came]
    assert order == sorted(order)
    numbers = [row[SEQUENCE] for row in came + late]
    assert sorted(numbers) == sorted(
        (number << ROW_BITS) + 3 * place for number, partition in enumerate(partitions) for place in range(len(partition))
    )


def test_what_holds_a_stream() -> None:
    parts = {0: Progress(5, 100), 1: Progress(9, 90), 2: Progress(0)}
    assert stream_watermark_us(parts.values(), 10) == MIN_WATERMARK_US, "a partition without a record holds it"
    assert holders(parts, 10) == [2]
    parts[2] = Progress(0, idle=True)
    assert stream_watermark_us(parts.values(), 10) == 79, "the least, less a microsecond"
    assert holders(parts, 10) == [1]
    assert stream_watermark_us([Progress(0, idle=True)], 10, before_us=55) == 55, "all silent: it stays"
    assert parts[2].behind(79, 10).watermark_us(10) == 80, "what comes in it later is late below what was released"
    assert stream_watermark_us([*list(parts.values())[:2], parts[2].behind(79, 10)], 10, 79) == 79
