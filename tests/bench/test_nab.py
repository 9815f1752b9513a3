"""The scoring rule against cases computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from bench import nab

SERIES = Path(__file__).parents[2] / "bench" / "nab_series"


def sigmoid(position: float) -> float:
    return 2 / (1 + math.exp(5 * position)) - 1


BEST = sigmoid(-1.0)


def series(rows: int, windows: list[tuple[int, int]], name: str = "group/one.csv") -> nab.Series:
    return nab.Series(name, [str(row) for row in range(rows)], np.zeros(rows), windows)


def alarms(rows: int, *places: int) -> np.ndarray:
    scores = np.zeros(rows)
    scores[list(places)] = 0.9
    return scores


def raw(given: nab.Series, *places: int, profile: str = "standard") -> float:
    result = nab.score_corpus([given], {given.name: alarms(len(given.values), *places)}, nab.PROFILES[profile])
    return result.by_series[given.name][0]


def test_the_sigmoid_at_known_places() -> None:
    found = nab.scaled_sigmoid(np.array([-1.0, -0.5, 0.0, 1.0, 3.0, 100.0]))
    assert found == pytest.approx([0.98661, 0.84828, 0.0, -0.98661, -1.0, -1.0], abs=1e-5)


def test_an_alarm_on_the_first_row_of_the_window_is_perfect() -> None:
    given = series(100, [(50, 59)])
    result = nab.score_corpus([given], {given.name: alarms(100, 50)})
    assert result.score == pytest.approx(100.0)
    assert (result.threshold, result.hits, result.false_alarms) == (0.9, 1, 0)


def test_silence_is_worth_nothing() -> None:
    given = series(100, [(50, 59)])
    result = nab.score_corpus([given], {given.name: np.zeros(100)})
    assert result.score == 0.0
    assert result.by_series[given.name] == (-1.0, -1.0, 1.0)


def test_the_earliest_alarm_in_a_window_counts_and_later_ones_are_free() -> None:
    given = series(100, [(50, 59)])
    middle = sigmoid(-5 / 10) / BEST  # row 55 has 5 of 10 rows to go to the row behind the window
    assert raw(given, 55) == pytest.approx(middle)
    assert raw(given, 55, 56, 59) == pytest.approx(middle)
    assert raw(given, 59) == pytest.approx(sigmoid(-1 / 10) / BEST)


def test_a_false_alarm_before_any_window_costs_in_full() -> None:
    given = series(100, [(50, 59)])
    assert raw(given, 20, 50) == pytest.approx(1.0 - 0.11)
    assert raw(given, 20, 50, profile="low FP") == pytest.approx(1.0 - 0.22)


def test_a_false_alarm_costs_less_close_behind_a_window() -> None:
    given = series(200, [(50, 59)])
    assert raw(given, 50, 63) == pytest.approx(1.0 + 0.11 * sigmoid(4 / 9))
    assert raw(given, 50, 63) > raw(given, 50, 80) > raw(given, 50, 190) == pytest.approx(1.0 - 0.11)


def test_misses_cost_twice_under_low_fn() -> None:
    given = series(200, [(50, 59), (120, 139)])
    result = nab.score_corpus([given], {given.name: alarms(200, 50)}, nab.PROFILES["low FN"])
    # One of two windows: 1 - 2, between -4 (silence) and 2 (perfection).
    assert result.by_series[given.name] == pytest.approx((-1.0, -4.0, 2.0))
    assert result.score == pytest.approx(50.0)


def test_the_probationary_period_is_not_scored() -> None:
    given = series(100, [(50, 59)])
    assert raw(given, 0, 14, 50) == pytest.approx(1.0)  # 15 of 100 rows
    assert raw(given, 15, 50) == pytest.approx(0.89)
    assert [nab.probation_rows(rows) for rows in (99, 100, 4032, 5000, 22695)] == [14, 15, 604, 750, 750]


def test_one_threshold_serves_the_whole_corpus() -> None:
    first, second = series(100, [(50, 59)], "g/a.csv"), series(100, [(50, 59)], "g/b.csv")
    scores = {first.name: np.zeros(100), second.name: np.zeros(100)}
    scores[first.name][50] = 0.8
    scores[first.name][[20, 22, 24, 26]] = 0.5
    scores[second.name][50] = 0.4
    # At 0.4 both windows are found and four false alarms come along: 2 - 0.44 beats 1 - 1.
    result = nab.score_corpus([first, second], scores)
    assert (result.threshold, result.hits, result.false_alarms) == (0.4, 2, 4)
    assert result.score == pytest.approx(100 * (1.56 + 2) / 4)
    # Twenty of them do not pay: (2 - 2.2) against 0.
    scores[first.name][20:40] = 0.5
    result = nab.score_corpus([first, second], scores)
    assert (result.threshold, result.hits, result.false_alarms) == (0.8, 1, 0)
    assert result.score == pytest.approx(50.0)


def test_rows_with_the_same_score_are_alarms_together() -> None:
    given = series(100, [(50, 59)])
    scores = np.zeros(100)
    scores[[20, 21, 50]] = 0.7
    assert nab.score_corpus([given], {given.name: scores}).by_series[given.name][0] == pytest.approx(1 - 0.22)


@pytest.mark.parametrize("bad", [np.zeros(99), np.full(100, 1.5), np.full(100, np.nan)])
def test_scores_that_do_not_fit_are_refused(bad: np.ndarray) -> None:
    given = series(100, [])
    with pytest.raises(ValueError, match=r"group/one.csv: expected 100 scores from 0 to 1"):
        nab.score_corpus([given], {given.name: bad})


def test_the_eleven_series() -> None:
    corpus = nab.read_corpus(SERIES)
    assert len(corpus) == 11
    assert sum(len(given.windows) for given in corpus) == 26
    assert sum(len(given.values) for given in corpus) == 82_784
    # The detector of the first row of each window is perfect on them under every profile.
    scores = {given.name: alarms(len(given.values), *(first for first, _ in given.windows)) for given in corpus}
    assert [nab.score_corpus(corpus, scores, profile).score for profile in nab.PROFILES.values()] == pytest.approx([100.0] * 3)
