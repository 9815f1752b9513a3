"""Linear experts between versions: what they learn, how soon, and that their answers do not depend on how a stream is cut."""

import numpy as np
import pytest

from models.learners.experts.online import OnlineExperts, Rows

ROWS, WIDTH = 1200, 3


def stream(classes, seed=11, turn=None):
    """Rows, and labels by a plane through them, which is turned round at `turn`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, WIDTH)) * [1.0, 50.0, 0.01] + [0.0, 1000.0, 0.0]
    score = (x[:, 0] + (x[:, 1] - 1000.0) / 50.0) * np.where(np.arange(ROWS) < (turn or ROWS), 1.0, -1.0)
    y = np.digitize(score, [-0.6, 0.6]) if classes == 3 else (score > 0) if classes else 5.0 + score
    return x, np.asarray(y, float)


def answers(classes, x, y, cuts=(), delay=1):
    """What is answered to each row, which knows the labels of all rows `delay` and more before it."""
    experts = OnlineExperts(WIDTH, 3 * (classes or 1), classes)
    state, given, learnt = experts.begin(), [], 0
    for start, stop in zip([0, *cuts], [*cuts, len(x)], strict=True):
        due = max(stop - delay, 0)
        zeros = np.zeros((len(x), experts.labels))
        rows = Rows(x, zeros, np.full_like(x, np.nan))
        known = np.maximum(np.arange(start, stop) - delay + 1, 0) - learnt
        asked, known = rows.part(start, stop), np.minimum(known, due - learnt)
        state, out = experts.advance(state, rows.part(learnt, due), y[learnt:due], asked, known)
        given.append(out)
        learnt = due
    return np.concatenate(given)


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_answers_have_the_same_bits_however_the_stream_is_cut(classes):
    x, y = stream(classes)
    whole = answers(classes, x, y)
    for seed in range(3):
        cuts = sorted(np.random.default_rng(seed).choice(np.arange(1, ROWS), 40, replace=False).tolist())
        assert answers(classes, x, y, cuts).tobytes() == whole.tobytes(), f"cut at {cuts}"


def test_a_boundary_is_learnt_from_few_labels_and_found_again_when_it_turns_round():
    x, y = stream(2, turn=600)
    right = (answers(2, x, y) > 0) == (y[:, None] == 1)
    assert right[100:600].mean(axis=0).min() > 0.95
    assert right[600:640].mean(axis=0).max() < 0.5, "it has turned round, and nobody can know"
    assert right[1000:].mean(axis=0).max() > 0.9, "the expert with the short memory"


def test_three_classes_and_numbers():
    x, y = stream(3)
    odds = answers(3, x, y).reshape(ROWS, -1, 3)
    assert (odds.argmax(axis=2)[300:] == y[300:, None]).mean(axis=0).min() > 0.85
    x, y = stream(0)
    off = answers(0, x, y) - y[:, None]
    assert np.sqrt((off[300:] ** 2).mean(axis=0)).max() < 0.05


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_missing_infinite_and_constant_columns_and_strange_labels_spoil_nothing(classes):
    x, y = stream(classes)
    x[::7, 0], x[3::11, 1], x[:, 2] = np.nan, np.inf, 4.0
    y[::13] = -1.0 if classes else 1e300
    given = answers(classes, x, y)
    assert np.isfinite(given).all()
    if classes == 2:
        good = np.isfinite(x).all(axis=1) & (y >= 0)
        assert (((given > 0) == (y[:, None] == 1))[good][300:]).mean(axis=0).min() > 0.9
