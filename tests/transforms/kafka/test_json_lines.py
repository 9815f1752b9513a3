"""JSON put together by Arrow says what Python's own reader takes back, to the last bit."""

from __future__ import annotations

import datetime
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.kafka.json_lines import json_objects

COLUMNS = {
    "whole": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "double": (pa.float64(), st.floats(allow_nan=False, allow_infinity=False)),
    "float": (pa.float32(), st.floats(width=32, allow_nan=False, allow_infinity=False)),
    "yes": (pa.bool_(), st.booleans()),
    'a "name"\\': (pa.string(), st.text(st.characters(codec="utf-8"))),
    "pair": (pa.list_(pa.float64(), 2), st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=2)),
}


@settings(deadline=None)
@given(rows=st.lists(st.tuples(*(st.none() | values for _, values in COLUMNS.values())), max_size=8))
def test_what_is_written_is_read_back(rows) -> None:
    arrays = [pa.array([row[place] for row in rows], kind) for place, (kind, _) in enumerate(COLUMNS.values())]
    batch = pa.RecordBatch.from_arrays(arrays, list(COLUMNS))
    read = [json.loads(text) for text in json_objects(batch).to_pylist()]
    for place, (name, (kind, _)) in enumerate(COLUMNS.items()):
        real = pa.types.is_floating(kind)
        back = pa.array([float(row[name]) if real and row[name] is not None else row[name] for row in read], kind)
        assert back.equals(arrays[place]), name
        if real:
            ours, theirs = (np.signbit(array.fill_null(0.0).to_numpy()) for array in (back, arrays[place]))
            assert np.array_equal(ours, theirs)


def test_words_times_and_what_json_has_no_number_for() -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "word": pa.array(["a", None, "a"]).dictionary_encode(),
            "at": pa.array([0, 1, None], pa.timestamp("us", "UTC")),
            "day": pa.array([datetime.date(2026, 1, 2)] * 3),
            "x": pa.array([math.nan, math.inf, 1.0]),
            "nothing": pa.nulls(3),
        }
    )
    assert [json.loads(text) for text in json_objects(batch).to_pylist()] == [
        {"word": "a", "at": "1970-01-01T00:00:00.000000Z", "day": "2026-01-02", "x": None, "nothing": None},
        {"word": None, "at": "1970-01-01T00:00:00.000001Z", "day": "2026-01-02", "x": None, "nothing": None},
        {"word": "a", "at": None, "day": "2026-01-02", "x": 1.0, "nothing": None},
    ]


def test_a_slice_of_lists() -> None:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8.0)), 2)
    batch = pa.RecordBatch.from_arrays([lists], ["v"]).slice(1, 2)
    assert [json.loads(text)["v"] for text in json_objects(batch).to_pylist()] == [[2, 3], [4, 5]]


def test_a_type_without_a_form_in_json_is_named() -> None:
    with pytest.raises(ValueError, match="'blob' is binary"):
        json_objects(pa.RecordBatch.from_pydict({"blob": pa.array([b"x"])}))
