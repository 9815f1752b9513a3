"""Streams for tests, and every way of cutting them into calls of `advance`.

`run` feeds an operator the way a micro-batch runner would: pieces in order of arrival, the watermark after each, the state
written and read between calls, words in another dictionary in every piece.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from transforms.batches import (
    EVENT_TIME,
    MAX_WATERMARK_US,
    MIN_WATERMARK_US,
    NAME_TYPE,
    ROW,
    SEQUENCE,
    SOURCE,
    TIME_TYPE,
    WATERMARK,
)

# Sums of these differ in the last bits with every order of adding.
VALUES = st.none() | st.floats(-1e3, 1e3).map(lambda x: x + 1 / 3) | st.sampled_from([0.0, -0.0, 1e16, -1e16, 0.1])
KEYS = st.sampled_from(["a", "b", "c", None])
TIMES = st.integers(-40, 60)
CUTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=8)  # each taken modulo the number of rows


def sized_lists(elements: st.SearchStrategy) -> st.SearchStrategy:
    """Lists of 0 to 40; hypothesis alone draws mostly very short ones, in which windows and cuts hardly meet."""
    return st.sampled_from([0, 1, 3, 8, 15, 25, 40]).flatmap(lambda n: st.lists(elements, min_size=n, max_size=n))


EVENTS = sized_lists(st.tuples(TIMES, KEYS, VALUES))


def stamps(times: Sequence[int], out_of_orderness: int) -> list[int]:
    """The watermark just before each row arrived."""
    before, result = MIN_WATERMARK_US, []
    for time in times:
        result.append(before)
        before = max(before, time - out_of_orderness)
    return result


def stream(
    times: Sequence[int], columns: Mapping[str, pa.Array], out_of_orderness: int = 0, stamped: bool = True, first: int = 100
) -> pa.Table:
    """A stream of rows in order of arrival, with the reserved columns; `first` is the sequence of row 0."""
    rows = np.arange(len(times))
    table = pa.table(
        {
            EVENT_TIME: pa.array(times, pa.int64()).cast(TIME_TYPE),
            SOURCE: pa.array([f"file-{row % 3}" for row in rows], pa.string()).cast(NAME_TYPE),
            ROW: pa.array(rows // 3, pa.int64()),
            SEQUENCE: pa.array(rows + first, pa.int64()),
            **columns,
        }
    )
    if not stamped:
        return table
    return table.append_column(WATERMARK, pa.array(stamps(times, out_of_orderness), pa.int64()))


def events_stream(events: Sequence[tuple[int, str | None, float | None]], out_of_orderness: int = 0) -> pa.Table:
    """The stream of drawn `EVENTS`: columns `key` and `value`."""
    times, keys, values = zip(*events, strict=True) if events else ((), (), ())
    columns = {"key": pa.array(keys, pa.string()), "value": pa.array(values, pa.float64())}
    return stream(times, columns, out_of_orderness)


def round_trip(state: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """A state after it was written to Arrow IPC and read again."""
    result = {}
    for name, table in state.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        result[name] = pa.ipc.open_stream(sink.getvalue()).read_all()
    return result


def run(
    operator: Any,
    inputs: pa.Table | Mapping[str, pa.Table],
    cuts: Sequence[int] = (),
    out_of_orderness: int = 0,
    clock: Sequence[str] | None = None,
) -> dict[str, pa.Table]:
    """Runs an operator over a whole stream, cut at these numbers of rows.

    Args:
        operator: what to run.
        inputs: the stream, or several by tag that share one order of arrival, `sequence`.
        cuts: how many sequences, over all inputs, came before each new call; repeated ones give calls without rows.
        out_of_orderness: of the watermark.
        clock: the inputs whose event times move the watermark; all of them unless told.

    Returns:
        All rows given, by output tag.
    """
    tables = {"in": inputs} if isinstance(inputs, pa.Table) else dict(inputs)
    sequences = np.unique(np.concatenate([table[SEQUENCE].to_numpy() for table in tables.values()]))
    edges = [0, *sorted(cut % (len(sequences) + 1) for cut in cuts), len(sequences)]
    state: dict[str, pa.Table] = {}
    given: dict[str, list[pa.Table]] = {}
    watermark = MIN_WATERMARK_US
    for place, (start, end) in enumerate(itertools.pairwise(edges)):
        pieces = {}
        for tag, table in tables.items():
            piece = table.filter(np.isin(table[SEQUENCE].to_numpy(), sequences[start:end]))
            if clock is None or tag in clock:
                times = piece[EVENT_TIME].cast(pa.int64()).to_pylist()
                watermark = max([watermark, *(time - out_of_orderness for time in times)])
            # A dictionary of its own, as every piece read from a file has.
            words = piece[SOURCE].cast(pa.string()).combine_chunks().cast(NAME_TYPE)
            if piece.num_rows or place % 2 == 0:
                pieces[tag] = piece.set_column(piece.schema.get_field_index(SOURCE), SOURCE, words)
        if place == len(edges) - 2:
            watermark = MAX_WATERMARK_US
        state, outputs = operator.advance(round_trip(state), pieces, watermark)
        assert set(outputs) <= set(operator.outputs)
        for tag, table in outputs.items():
            given.setdefault(tag, []).append(table)
    return {tag: pa.concat_tables(pieces).unify_dictionaries().combine_chunks() for tag, pieces in given.items()}


def bits(table: pa.Table | None) -> list[dict[str, object]]:
    """The rows as Python values that compare equal only if every bit does."""
    rows = table.to_pylist() if table is not None else []
    return [{name: value.hex() if isinstance(value, float) else value for name, value in row.items()} for row in rows]


def assert_same(ours: Mapping[str, pa.Table], theirs: Mapping[str, pa.Table]) -> None:
    """The same rows, in the same order, with the same bits, at every output."""
    for tag in {*ours, *theirs}:
        assert bits(ours.get(tag)) == bits(theirs.get(tag)), tag
        if tag in ours and tag in theirs:
            assert ours[tag].schema == theirs[tag].schema
