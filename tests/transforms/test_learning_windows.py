"""Windows of so many rows: every row in one window, the same ones however the rows come."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.batches import MAX_WATERMARK_US, SEQUENCE
from transforms.learning_windows import FIRST_ROWS, full_at_us, rows_of_window, windows_of_rows


def rows(count):
    times = np.arange(count) // 3 * 10  # three labels at a time
    return pa.table({"time": times, SEQUENCE: np.arange(count)})


def keys(windows):
    return [(window.key, window.start_us, window.end_us, window.rows.column(SEQUENCE).to_pylist()) for window in windows]


def test_they_grow_until_they_have_all_their_rows():
    windows, waiting = windows_of_rows(rows(200), "time", 40, 0, MAX_WATERMARK_US)
    assert [window.rows.num_rows for window in windows] == [8, 12, 19, 30, 40, 40, 40]
    assert waiting.num_rows == 200 - sum(window.rows.num_rows for window in windows)
    assert np.concatenate([window.rows.column(SEQUENCE) for window in windows]).tolist() == list(range(189))


def test_a_window_ends_behind_its_last_row():
    for window in windows_of_rows(rows(200), "time", 40, 0, MAX_WATERMARK_US)[0]:
        assert window.end_us == window.rows.column("time")[-1].as_py() + 1


def test_rows_beyond_the_watermark_wait():
    windows, waiting = windows_of_rows(rows(30), "time", 8, 0, 40)
    assert [window.rows.num_rows for window in windows] == [8] and waiting.num_rows == 22
    assert full_at_us(waiting, "time", 8, 8) == 50
    assert full_at_us(waiting.slice(0, 7), "time", 8, 8) is None


@given(st.lists(st.integers(1, 60), max_size=20), st.integers(1, 50))
def test_it_does_not_matter_how_the_rows_come(parts, every_rows):
    table = rows(sum(parts))
    whole, rest = windows_of_rows(table, "time", every_rows, 0, MAX_WATERMARK_US)
    pending, came, found, start = table.slice(0, 0), 0, [], 0
    for part in parts:
        pending = pa.concat_tables([pending, table.slice(start, part)])
        start += part
        watermark = int(table.column("time")[start - 1].as_py())
        windows, pending = windows_of_rows(pending, "time", every_rows, came, watermark)
        came += sum(window.rows.num_rows for window in windows)
        found += windows
    assert keys(found) == keys(whole) and pending.num_rows == rest.num_rows


@pytest.mark.parametrize(("came", "size"), [(0, FIRST_ROWS), (8, 12), (20, 19), (39, 30), (69, 40), (109, 40)])
def test_the_next_size_follows_from_how_many_came(came, size):
    assert rows_of_window(came, 40) == size
