"""Windows of so many rows: every row in one window, the same ones however the rows come."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.batches import MAX_WATERMARK_US, SEQUENCE
from transforms.error_alarm import Jump
from transforms.learning_windows import AFTER_ALARM, FIRST_ROWS, Grown, full_at_us, rows_of_window, windows_of_rows


def rows(count):
    times = np.arange(count) // 3 * 10  # three labels at a time
    return pa.table({"time": times, SEQUENCE: np.arange(count)})


def keys(windows):
    return [(window.key, window.start_us, window.end_us, window.rows.column(SEQUENCE).to_pylist()) for window in windows]


def test_they_grow_until_they_have_all_their_rows():
    windows, waiting, _ = windows_of_rows(rows(200), "time", 40, Grown(), MAX_WATERMARK_US)
    assert [window.rows.num_rows for window in windows] == [8, 12, 19, 30, 40, 40, 40]
    assert waiting.num_rows == 200 - sum(window.rows.num_rows for window in windows)
    assert np.concatenate([window.rows.column(SEQUENCE) for window in windows]).tolist() == list(range(189))


def test_a_window_ends_behind_its_last_row():
    for window in windows_of_rows(rows(200), "time", 40, Grown(), MAX_WATERMARK_US)[0]:
        assert window.end_us == window.rows.column("time")[-1].as_py() + 1


def test_rows_beyond_the_watermark_wait():
    windows, waiting, _ = windows_of_rows(rows(30), "time", 8, Grown(), 40)
    assert [window.rows.num_rows for window in windows] == [8] and waiting.num_rows == 22
    assert full_at_us(waiting, "time", 8, 8) == 50
    assert full_at_us(waiting.slice(0, 7), "time", 8, 8) is None


class Alarm:
    """Sounds at some sequences; its state is how many rows it has seen."""

    def __init__(self, at):
        self._at = at

    def begin(self):
        return np.zeros(1)

    def first(self, rows, state):
        found = np.flatnonzero(np.isin(rows.column(SEQUENCE).to_numpy(), self._at))
        return (Jump(int(found[0]), 0.1, 0.9), self.begin()) if len(found) else (None, state + rows.num_rows)


def test_an_alarm_ends_the_window_and_the_next_ones_are_short():
    windows, waiting, grown = windows_of_rows(rows(600), "time", 100, Grown(), MAX_WATERMARK_US, Alarm([250]))
    sizes = [window.rows.num_rows for window in windows]
    ended = np.cumsum(sizes).tolist().index(251)
    assert sizes[:ended] == [8, 12, 19, 30, 48, 76] and sizes[ended + 1 :] == [19, 30, 48, 76, 100]
    assert [window.jump for window in windows if window.jump] == [Jump(57, 0.1, 0.9)] and windows[ended].jump
    assert grown == (sum(sizes), AFTER_ALARM + 273, grown.heard) and grown.heard.tolist() == [273.0]
    assert waiting.num_rows == 600 - sum(sizes)


@given(st.lists(st.integers(1, 60), max_size=20), st.integers(1, 50), st.lists(st.integers(0, 600), max_size=5))
def test_it_does_not_matter_how_the_rows_come(parts, every_rows, alarms):
    table = rows(sum(parts))
    whole, rest, end = windows_of_rows(table, "time", every_rows, Grown(), MAX_WATERMARK_US, Alarm(alarms))
    pending, grown, found, start = table.slice(0, 0), Grown(), [], 0
    for part in parts:
        pending = pa.concat_tables([pending, table.slice(start, part)])
        start += part
        watermark = int(table.column("time")[start - 1].as_py())
        windows, pending, grown = windows_of_rows(pending, "time", every_rows, grown, watermark, Alarm(alarms))
        found += windows
    assert keys(found) == keys(whole) and pending.num_rows == rest.num_rows and grown[:2] == end[:2]


@pytest.mark.parametrize(("came", "size"), [(0, FIRST_ROWS), (8, 12), (20, 19), (39, 30), (69, 40), (109, 40)])
def test_the_next_size_follows_from_how_many_came(came, size):
    assert rows_of_window(came, 40) == rows_of_window(came, 40, watched=True) == size


@pytest.mark.parametrize(("came", "size"), [(799, 40), (1000, 50), (1600, 80), (10**9, 80)])
def test_where_the_alarm_is_silent_for_long_windows_become_twice_as_long(came, size):
    assert rows_of_window(came, 40, watched=True) == size and rows_of_window(came, 40) == 40
