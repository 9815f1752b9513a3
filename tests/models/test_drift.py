"""The tests behind the drift monitor: seldom wrong without drift, whatever the rows are like, and soon right with one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from bench.drift import DRIFTS, KINDS, delay, false_alarms
from models.drift import QUANTILES, Reference, Summariser, autocorrelation_time
from models.drift_detectors import BLOCK_ROWS, block_means, rise


def summary(values):
    summariser = Summariser()
    summariser.add(pa.array(values))
    return summariser.summary()


@pytest.mark.parametrize("kind", KINDS)
def test_without_drift_few_windows_have_an_alarm(kind):
    assert false_alarms(KINDS[kind], streams=4) <= 0.02  # 0.01 is promised; of 80 windows one may be


@pytest.mark.parametrize("change", ["mean + 1 sd", "a tenth is missing"])
def test_a_drift_gives_an_alarm_by_the_first_whole_window_behind_it(change):
    rows, missed = delay(KINDS["independent"], DRIFTS[change], streams=10)
    assert missed == 0 and rows <= 2000


def test_the_distance_and_the_p_value_are_those_of_scipy():
    rng = np.random.default_rng(3)
    before, now = rng.normal(size=3000), rng.normal(0.1, 1.1, size=800)
    (found,) = summary(before).compare(pa.array(now))
    exact = stats.ks_2samp(before, now, method="asymp")
    assert found.statistic == "ks"
    assert abs(found.distance - exact.statistic) < 2 / QUANTILES
    assert 0.2 < np.log(found.p_value) / np.log(exact.pvalue) < 2.0


@pytest.mark.parametrize("values", [[0.0] * 60 + [1.0] * 40, [5.0] * 100, [-1.0, 1.0] * 50])
def test_columns_of_few_values_do_not_differ_from_themselves(values):
    (found,) = summary(values).compare(pa.array(values))
    assert found.distance <= 1 / QUANTILES and found.p_value > 0.99


def test_texts_are_compared_by_their_shares_and_new_ones_count():
    rng = np.random.default_rng(4)
    kept = summary(rng.choice(["a", "b"], 2000))
    (same,) = kept.compare(pa.array(rng.choice(["a", "b"], 1000)))
    (other,) = kept.compare(pa.array(rng.choice(["a", "b", "new"], 1000)))
    assert same.p_value > 0.01
    assert other.distance == pytest.approx(1 / 3, abs=0.05) and other.p_value < 1e-20


def test_missing_values_are_a_column_of_their_own():
    values = np.arange(1000.0)
    some = np.where(values % 4 == 0, np.nan, values)
    found = {finding.statistic: finding for finding in summary(values).compare(pa.array(some))}
    assert found["missing"].distance == pytest.approx(0.25) and found["missing"].p_value < 1e-20
    assert found["ks"].p_value > 0.5
    assert [f.statistic for f in summary(values).compare(pa.array([None] * 10, pa.float64()))] == ["missing"]


def test_a_reference_survives_its_file():
    table = pa.table({"number": [1.0, None, 3.5], "text": ["x", "y", None], "list": [[1.0], [2.0], [3.0]]})
    kept = Reference.of(table, table.column_names)
    assert set(kept.columns) == {"number", "text"}
    assert Reference.from_json(kept.to_json()) == kept
    with pytest.raises(ValueError, match="not a summary of training rows"):
        Reference.from_json('{"rows": 3}')


def test_a_summary_does_not_depend_on_how_its_rows_came():
    values = np.random.default_rng(5).normal(size=3000)
    whole, pieces = Summariser(), Summariser()
    whole.add(pa.array(values))
    for part in np.split(values, 3):
        pieces.add(pa.array(part))
    # The sketch is the same; how rows hang together is looked at in each piece.
    assert np.allclose(whole.summary().quantiles, pieces.summary().quantiles, atol=0.05)


def test_rows_that_hang_together_count_as_fewer():
    rng = np.random.default_rng(6)
    assert autocorrelation_time(rng.random(2000) > 0.5) < 1.3
    assert 5 < autocorrelation_time(np.repeat(rng.random(200) > 0.5, 10)) < 20
    assert autocorrelation_time(np.ones(100, bool)) == 1.0


@pytest.mark.parametrize("detector", ["page-hinkley", "adwin", "kswin"])
def test_rising_errors_are_found_and_steady_or_falling_ones_are_not(detector):
    rng = np.random.default_rng(7)

    def errors(rate, blocks=150):
        return (rng.random(blocks * BLOCK_ROWS) < rate).astype(float)

    steady = block_means(errors(0.1, 300))
    assert rise(steady, 0, detector) is None
    falling = block_means(np.concatenate([errors(0.4), errors(0.1)]))
    assert rise(falling, 0, detector) is None
    rising = block_means(np.concatenate([errors(0.1), errors(0.5)]))
    found = rise(rising, 0, detector)
    assert found is not None and 150 <= found.block < 190
    assert found.before == pytest.approx(0.1, abs=0.03) and found.after == pytest.approx(0.5, abs=0.1)
    assert rise(rising[:150], 0, detector) is None


def test_blocks_take_the_rest_along():
    assert block_means(np.arange(40.0)).tolist() == [7.5, (16 + 39) / 2]
    assert block_means(np.array([1.0, 0.0])).tolist() == [0.5]
