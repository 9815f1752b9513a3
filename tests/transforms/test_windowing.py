import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.cutting import stream
from transforms.windowing import FixedWindows, SessionWindows, SlidingWindows, parse_windows

TIMES = st.lists(st.integers(-60, 60), max_size=20)


def _triples(assignment):
    return [tuple(map(int, triple)) for triple in zip(*assignment, strict=True)]


@given(TIMES, st.integers(1, 12), st.integers(-15, 15))
def test_fixed_against_oracle(times, size, offset):
    expected = [
        (row, start, start + size)
        for row, time in enumerate(times)
        for start in range(-100, 100)
        if (start - offset) % size == 0 and start <= time < start + size
    ]
    assert _triples(FixedWindows(size, offset).assign(stream(times, {}))) == expected


@given(TIMES, st.integers(1, 12), st.integers(1, 12))
def test_sliding_against_oracle(times, size, every):
    size = max(size, every)
    windows = SlidingWindows(size, every)
    expected = [
        (row, start, start + size)
        for row, time in enumerate(times)
        for start in range(-100, 100)
        if start % every == 0 and start <= time < start + size
    ]
    assert _triples(windows.assign(stream(times, {}))) == expected
    assert max(np.bincount([row for row, _, _ in expected]), default=0) <= windows.windows_per_row


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-60, 60), st.integers(0, 2)), max_size=25), st.integers(1, 12))
def test_sessions_against_oracle(rows, gap):
    times, keys = (np.array(column, dtype=np.int64) for column in (zip(*rows, strict=True) if rows else ((), ())))
    sessions = {key: [] for key in keys.tolist()}
    for time, key in sorted(rows):
        if sessions[key] and time < sessions[key][-1][1]:
            sessions[key][-1][1] = time + gap
        else:
            sessions[key].append([time, time + gap])
    starts, ends = SessionWindows(gap).merge(keys, times)
    for (time, key), start, end in zip(rows, starts, ends, strict=True):
        assert [start, end] in sessions[key] and start <= time < end
    assert _triples(SessionWindows(gap).assign(stream(times.tolist(), {}))) == [
        (i, t, t + gap) for i, (t, _) in enumerate(rows)
    ]


def test_days_before_1970():
    (day,) = [86_400_000_000]
    moment = int(datetime.datetime(1969, 7, 20, 20, 17, tzinfo=datetime.UTC).timestamp()) * 1_000_000
    _, starts, ends = FixedWindows(day).assign(stream([moment], {}))
    assert datetime.datetime.fromtimestamp(starts[0] / 1e6, datetime.UTC).isoformat() == "1969-07-20T00:00:00+00:00"
    assert ends[0] - starts[0] == day


def test_null_event_time_is_refused():
    table = pa.table({"event_time": pa.array([None, 1], pa.timestamp("us", tz="UTC"))})
    with pytest.raises(ValueError, match="1 of 2 rows have no event_time"):
        FixedWindows(10).assign(table)


def test_parse():
    assert parse_windows({"kind": "fixed", "size": "1d", "offset": "9h"}) == FixedWindows(86_400_000_000, 32_400_000_000)
    assert parse_windows({"kind": "fixed", "size": 60}) == FixedWindows(60_000_000)
    assert parse_windows({"kind": "sliding", "size": "1h", "every": "10m"}) == SlidingWindows(3_600_000_000, 600_000_000)
    assert parse_windows({"kind": "session", "gap": "30m"}) == SessionWindows(1_800_000_000)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "kind must be one of fixed, sliding, session; got None"),
        ({"kind": "hopping"}, "got 'hopping'"),
        ({"kind": ["fixed"]}, "kind must be one of"),
        ({"kind": "fixed"}, "need size"),
        ({"kind": "fixed", "size": "1h", "every": "1m"}, "have no option every; they have size, offset"),
        ({"kind": "sliding", "size": "1h"}, "need every"),
        ({"kind": "session", "gap": "soon"}, "session windows, gap: expected a duration"),
        ({"kind": "session", "gap": 0}, "gap must be longer than 0"),
        ({"kind": "sliding", "size": "1m", "every": "1h"}, "sliding windows of 1m every 1h leave rows out"),
    ],
)
def test_parse_says_what_is_wrong(config, message):
    with pytest.raises(ValueError, match=message):
        parse_windows(config)
