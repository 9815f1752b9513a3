import pickle
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.timeline import COLD_START, MIN_TIME_US, Change, Timeline

GRID_US = 10


@dataclass(frozen=True)
class Entry:
    sequence: int
    version: int
    effective_from_us: int
    kind: str = "activate"
    share: float = 1.0


def slow_as_of(entries, time_us):
    """The definition, word by word: floor to the grid, the greatest boundary at or before it, ties to the later entry."""
    floored = time_us // GRID_US * GRID_US
    best = None
    for entry in entries:
        if entry.effective_from_us <= floored and (
            best is None
            or entry.effective_from_us > best.effective_from_us
            or (entry.effective_from_us == best.effective_from_us and entry.sequence > best.sequence)
        ):
            best = entry
    return best.version if best else COLD_START


# Boundaries repeat (ties, rollbacks), come in any order, lie in the future of all records and before 1970.
boundaries = st.one_of(st.integers(-8, 8).map(lambda k: k * GRID_US), st.just(MIN_TIME_US), st.just(10**15))
logs = st.lists(st.tuples(st.integers(1, 4), boundaries), max_size=12).map(
    lambda rows: [Entry(place + 1, version, boundary) for place, (version, boundary) in enumerate(rows)]
)
times = st.lists(st.one_of(st.integers(-100, 100), st.integers(-(2**61), 2**61)), max_size=30)


@settings(max_examples=300, deadline=None)
@given(logs, times, st.randoms(use_true_random=False))
def test_as_of_is_the_definition_whatever_the_order(entries, event_times, random):
    shuffled = random.sample(entries, len(entries))
    timeline = pickle.loads(pickle.dumps(Timeline.of(shuffled)))
    came = timeline.as_of(np.array(event_times, dtype=np.int64))
    assert came.dtype == np.int64
    assert came.tolist() == [slow_as_of(entries, time) for time in event_times]


@settings(max_examples=200, deadline=None)
@given(logs, st.integers(0, 12))
def test_merging_parts_of_a_log_gives_the_timeline_of_the_whole(entries, cut):
    whole = Timeline.of(entries)
    one, other = Timeline.of(entries[:cut]), Timeline.of(entries[cut:])
    assert one.merge(other) == other.merge(one) == whole
    assert hash(one.merge(other)) == hash(whole)
    assert whole.merge(whole) == whole


@settings(max_examples=200, deadline=None)
@given(logs, st.integers(-100, 100), st.integers(0, 100))
def test_changes_are_where_the_version_differs_from_just_before(entries, low, length):
    timeline = Timeline.of(entries)
    expected = [t for t in range(low, low + length) if slow_as_of(entries, t) != slow_as_of(entries, t - 1)]
    changes = timeline.changes_between(low, low + length)
    assert [change.effective_from_us for change in changes] == expected
    assert [change.version for change in changes] == timeline.as_of(np.array(expected, dtype=np.int64)).tolist()


def test_nothing_is_live_before_the_first_activation():
    empty = Timeline.of([])
    assert empty.first() is None and empty.versions == () and len(empty) == 0 and empty.changes_between(-(10**18), 10**18) == []
    assert empty.as_of(np.array([0, -5], dtype=np.int64)).tolist() == [0, 0]
    timeline = Timeline.of([Entry(1, 7, 20), Entry(2, 3, -20)])
    assert timeline.first() == Change(-20, 3, 2) and timeline.versions == (3, 7)
    assert timeline.as_of(np.array([[-21, -20], [19, 20]])).tolist() == [[0, 3], [3, 7]]
