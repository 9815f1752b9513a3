"""The alarm over labelled rows: it hears a concept that changes within a few labels, and is still where nothing does."""

import numpy as np
import pyarrow as pa
import pytest

from models.learners.experts.inputs import CONTEXT, KnownLabels
from transforms.error_alarm import LEAST_LABELS, ErrorAlarm

ROWS = 20_000


def labelled(wrong, classes=2, vocabulary=()):
    """Rows at which the experts are wrong, (rows, experts)."""
    known = KnownLabels.of(1, classes)
    rng = np.random.default_rng([7, classes])
    labels = rng.integers(0, classes, len(wrong))
    said = np.where(wrong, (labels[:, None] + 1) % classes, labels[:, None])
    answers = said[:, :, None] * 2.0 - 1.0 if classes == 2 else (said[:, :, None] == np.arange(classes)) * 1.0
    context = np.zeros((len(wrong), known.width), np.float32)
    context[:, known.labels : known.labels + known.answers] = answers.reshape(len(wrong), -1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(context.reshape(-1)), known.width)
    own = pa.array([vocabulary[label] for label in labels]) if vocabulary else pa.array(labels)
    return pa.table({"y": own, CONTEXT: column}), ErrorAlarm("y", known, vocabulary)


def errors(seed, share, classes=2, streak=1):
    """Experts that err with this probability, the first one least, each time for so many labels."""
    rng = np.random.default_rng([11, seed])
    experts = KnownLabels.of(1, classes).online.experts
    each = rng.random((ROWS // streak, experts)) < share + 0.05 * np.arange(experts)
    return np.repeat(each, streak, axis=0)


def sounded(table, alarm, cuts=()):
    """Where it sounds; it is asked again behind each place."""
    places, state, start = [], alarm.begin(), 0
    for stop in [*cuts, table.num_rows]:
        while start < stop:
            jump, state = alarm.first(table.slice(start, stop - start), state)
            start = stop if jump is None else start + jump.place + 1
            places += [] if jump is None else [start - 1]
            assert jump is None or jump.after > jump.before + (0.1 if alarm.known.online.classes else 0.0)
    return places


@pytest.mark.parametrize(("classes", "vocabulary"), [(2, ()), (3, ()), (3, ("a", "b", "c"))])
@pytest.mark.parametrize("share", [0.02, 0.2])
def test_a_change_is_heard_within_forty_labels(share, classes, vocabulary):
    wrong = errors(1, share, classes)
    wrong[10_000:] = ~wrong[10_000:]
    places = sounded(*labelled(wrong, classes, vocabulary))
    assert len(places) == 1 and 10_000 < places[0] < 10_040


@pytest.mark.parametrize("streak", [1, 8])
def test_it_is_still_where_nothing_changes(streak):
    """Errors that come in streaks, as those of late labels do, are nothing new either."""
    false = [len(sounded(*labelled(errors(seed, 0.2, streak=streak)))) for seed in range(10)]
    assert sum(false) <= 4, f"{false} in 10 streams of {ROWS:,} labels"


def test_after_an_alarm_it_learns_anew_what_is_usual():
    wrong = errors(2, 0.05)
    wrong[5_000:5_100] = True
    (place, *others) = sounded(*labelled(wrong))
    assert 5_000 < place < 5_040 and all(other > place + LEAST_LABELS for other in others)


def test_it_does_not_matter_how_the_rows_are_cut():
    wrong = errors(3, 0.1)
    wrong[4_000:4_300] = ~wrong[4_000:4_300]
    table, alarm = labelled(wrong)
    places = sounded(table, alarm)
    assert places and all(sounded(table, alarm, cuts) == places for cuts in ([1, 2, 4_004], range(37, ROWS, 37)))


def off(seed, jump=None, heavy=False):
    """Numbers of which the experts know all but noise, the first expert least; from `jump` on they are off thrice as far."""
    known = KnownLabels.of(1, 0)
    rng = np.random.default_rng([13, seed])
    noise = rng.standard_t(3, (ROWS, known.online.experts)) if heavy else rng.normal(size=(ROWS, known.online.experts))
    noise *= 1e-3 * (1.0 + 0.1 * np.arange(known.online.experts)[::-1])
    if jump is not None:
        noise[jump:] *= 3.0
    labels = rng.normal(size=ROWS)
    context = np.zeros((ROWS, known.width), np.float32)
    context[:, known.labels : known.labels + known.answers] = labels[:, None] + noise
    column = pa.FixedSizeListArray.from_arrays(pa.array(context.reshape(-1)), known.width)
    return pa.table({"y": labels, CONTEXT: column}), ErrorAlarm("y", known)


def test_numbers_that_are_off_farther_are_heard_within_forty_labels_however_they_are_cut():
    table, alarm = off(1, jump=10_000)
    (place,) = sounded(table, alarm)
    assert 10_000 < place < 10_040
    jump, _ = alarm.first(table.slice(0, place + 1), alarm.begin())
    assert jump.place == place and 0.0005 < jump.before < 0.001 < 1.5 * jump.before < jump.after
    assert sounded(table, alarm, range(37, ROWS, 37)) == [place]


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy tails"])
def test_it_is_still_where_numbers_are_off_as_usual(heavy):
    false = [len(sounded(*off(seed, heavy=heavy))) for seed in range(10)]
    assert sum(false) <= (20 if heavy else 2), f"{false} in 10 streams of {ROWS:,} labels"
