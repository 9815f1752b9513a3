"""The detector as a step: against a slow oracle, cut anywhere, for many keys, and on streams without anomalies."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bench import nab
from models.activation_log import ActivationLog
from models.anomaly.clock import phases
from models.registry import Registry
from tests.models.anomaly.oracle import Oracle
from tests.pipelines.detections import swapped
from transforms.batches import EVENT_TIME, NAME_TYPE, ROW, SEQUENCE, SOURCE, TIME_TYPE, event_time_us
from transforms.detection import ALARM, ALARMS, IN, OUT, P_VALUE, SCORE, SERIES, Detect, DetectorVersion

STEP_US = 300_000_000  # five minutes
SERIES_FOLDER = Path(__file__).parents[2] / "bench" / "nab_series"


def rows(columns: dict[str, object], *, source: str = "one.csv", first: int = 0) -> pa.Table:
    number = np.arange(len(next(iter(columns.values()))))  # type: ignore[arg-type]
    own = {
        EVENT_TIME: pa.array((number + first) * STEP_US).cast(TIME_TYPE),
        SOURCE: pa.array([source] * len(number), NAME_TYPE),
        ROW: number + first,
        SEQUENCE: number + first,
    }
    return pa.table(columns | own)


def usual(count: int, seed: int = 1) -> np.ndarray:
    """A day's rhythm and noise."""
    return 20 + 8 * np.sin(np.arange(count) / 288 * 2 * np.pi) + np.random.default_rng(seed).normal(0, 0.7, count)


def daily(count: int) -> np.ndarray:
    """The same with a shift and some spikes."""
    x = usual(count) + 6 * (np.arange(count) > count * 0.8)
    x[np.random.default_rng(2).integers(0, count, 5)] += 15
    return x


def run(step: Detect, table: pa.Table, rows_a_cut: int | None = None) -> tuple[pa.Table, pa.Table]:
    """What comes out, and the table of states at the end."""
    state, out = {}, []
    for first in range(0, table.num_rows, rows_a_cut or table.num_rows):
        state, given = step.advance(state, {IN: table.slice(first, rows_a_cut)}, 0)
        out.append(given[OUT])
    return pa.concat_tables(out).combine_chunks(), state[SERIES]


def column(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy(zero_copy_only=False)


def test_the_oracle_agrees() -> None:
    x = daily(1600)
    table = rows({"value": x})
    out, _ = run(Detect(("value",)), table)
    oracle = Oracle()
    phase, kind = phases(event_time_us(table).to_numpy(), 86_400_000_000, True)
    expected = [oracle.row(*row) for row in zip(x.tolist(), phase.tolist(), kind.tolist(), strict=True)]
    score, p, fresh = map(np.array, zip(*expected, strict=True))
    assert score.max() > 0.35, "the series shows nothing to the oracle: the test would be empty"
    np.testing.assert_allclose(column(out, SCORE), score, atol=2e-4)
    np.testing.assert_allclose(column(out, P_VALUE), p, rtol=2e-3, atol=1e-6)
    np.testing.assert_array_equal(column(out, ALARM), fresh & (p <= 1e-3))


@pytest.mark.parametrize("rows_a_cut", [1, 97, 1000, 1025])
def test_cutting_changes_no_bit(rows_a_cut: int) -> None:
    table = rows({"value": daily(120 if rows_a_cut == 1 else 3000)})
    whole, state = run(Detect(("value",)), table)
    cut, cut_state = run(Detect(("value",)), table, rows_a_cut)
    assert cut.equals(whole)
    assert cut_state.equals(state)


def test_another_version_goes_on_with_the_states(tmp_path: Path) -> None:
    swap, count = 700, 1500
    root = str(swapped(tmp_path, "job", 0) / "registry")
    registry, log = Registry(root), ActivationLog(root, "anomalies")
    log.activate(2, swap * STEP_US, by="test", reason="repeat alarms sooner")
    first, second = (
        DetectorVersion(root, "anomalies", number, registry.manifest("anomalies", number).digests.version, "job")
        for number in (1, 2)
    )
    table = rows({"value": daily(count), "key": np.where(np.arange(count) % 3 == 0, "a", "b")})
    given, _ = run(Detect(("value",), ("key",), version=first), table)
    assert column(given, "version").tolist() == [1] * swap + [2] * (count - swap)
    assert set(zip(column(given, "version"), column(given, "digest"), strict=True)) == {(1, first.digest), (2, second.digest)}
    plain, _ = run(Detect(("value",), ("key",)), table)
    assert given[SCORE][:swap].equals(plain[SCORE][:swap]) and not given[SCORE].equals(plain[SCORE])
    # What is repeated counts otherwise, and all else, which rests on the states, is the same.
    assert given[P_VALUE].equals(plain[P_VALUE])
    cut, _ = run(Detect(("value",), ("key",), version=first), table, 97)
    assert cut.equals(given)


def test_thousands_of_keys_side_by_side_score_as_each_alone() -> None:
    keys, each = 1500, 130
    draw = np.random.default_rng(3)
    key = draw.permutation(np.repeat(np.arange(keys), each))
    x = draw.normal(size=len(key)) * (1 + key % 7) + key
    x[-500:] += 20 * (1 + key[-500:] % 7)
    table = rows({"key": pa.array([f"k{k}" for k in key]), "value": x})
    step = Detect(("value",), by=("key",))
    together, state = run(step, table, 50_000)
    assert state.num_rows == keys
    assert column(together, SCORE).max() > 0.3
    for number in (0, 1, 234, keys - 1):
        mine = pa.array(key == number)
        alone, _ = run(step, table.filter(mine))
        assert alone.equals(together.filter(mine).combine_chunks()), f"key {number}"


def test_the_state_of_a_key_without_new_rows_stays() -> None:
    step = Detect(("value",), by=("key",))
    state, _ = step.advance({}, {IN: rows({"key": pa.array(["a", "b"] * 50), "value": daily(100)})}, 0)
    after, _ = step.advance(state, {IN: rows({"key": pa.array(["c", "a"]), "value": [1.0, 2.0]}, first=100)}, 0)
    assert after[SERIES].column(SERIES).to_pylist() == ["a", "b", "c"]
    assert after[SERIES].slice(1, 1).equals(state[SERIES].slice(1, 1))
    assert not after[SERIES].slice(0, 1).equals(state[SERIES].slice(0, 1))


def test_a_missing_value_is_passed_over() -> None:
    x = daily(900)
    table = rows({"value": x})
    holes = np.zeros(900, bool)
    holes[[0, 150, 700, 899]] = True
    with_holes = table.set_column(0, "value", pa.array(x, mask=holes))
    out, _ = run(Detect(("value",)), with_holes)
    assert out.column(SCORE).null_count == out.column(P_VALUE).null_count == 4
    without, _ = run(Detect(("value",)), table.filter(pa.array(~holes)))
    assert out.filter(pa.array(~holes)).combine_chunks().equals(without)


@pytest.mark.parametrize(
    "x", [np.full(500, 45.0), np.zeros(500), np.full(500, 1e12), daily(99)], ids=["45", "0", "1e12", "99 rows"]
)
def test_a_constant_or_a_short_series_has_no_anomaly(x: np.ndarray) -> None:
    out, _ = run(Detect(("value",)), rows({"value": x}))
    assert column(out, SCORE).tolist() == [0.0] * len(x)
    assert not column(out, ALARM).any()


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_scores_do_not_depend_on_the_unit(scale: float) -> None:
    plain, _ = run(Detect(("value",)), rows({"value": daily(1500)}))
    scaled, _ = run(Detect(("value",)), rows({"value": daily(1500) * scale}))
    np.testing.assert_allclose(column(scaled, SCORE), column(plain, SCORE), atol=5e-3)


@pytest.mark.parametrize("change", ["spike", "drop", "shift", "silence of the season", "noise"])
def test_what_anybody_would_see_stands_out(change: str) -> None:
    x = usual(4000, seed=5)
    at = slice(3500, 3520)
    match change:
        case "spike":
            x[3500] += 40
        case "drop":
            x[3500] -= 40
        case "shift":
            x[3500:] += 12
        case "silence of the season":
            at = slice(3500, 3700)
            x[at] = 20.0
        case "noise":
            x[at] += np.random.default_rng(9).normal(0, 12, 20)
    score = column(run(Detect(("value",)), rows({"value": x}))[0], SCORE)
    before = score[1000:3500]
    assert score[at].max() > np.quantile(before, 0.999), (score[at].max(), np.sort(before)[-5:])
    if change != "silence of the season":
        assert score[at].max() > before.max()


@cache
def _quiet(noise: str) -> np.ndarray:
    draw = np.random.default_rng(11)
    shape = (64, 4000)
    x = {
        "normal": lambda: draw.normal(size=shape),
        "uniform": lambda: draw.uniform(size=shape),
        "exponential": lambda: draw.exponential(size=shape),
        "heavy tails": lambda: draw.standard_t(3, size=shape),
        "counts": lambda: draw.poisson(3.0, size=shape).astype(float),
        "daily": lambda: 5 * np.sin(np.arange(4000) / 288 * 2 * np.pi) + draw.normal(size=shape),
    }[noise]()
    table = rows({"key": pa.array(np.tile(np.arange(64), 4000)).cast(pa.string()), "value": x.T.ravel()})
    # The clock of each series runs at its own pace: 64 rows share a moment.
    table = table.set_column(2, EVENT_TIME, pa.array(np.repeat(np.arange(4000), 64) * STEP_US).cast(TIME_TYPE))
    return column(run(Detect(("value",), by=("key",), false_alarm_rate=1e-3), table)[0], P_VALUE)[64 * 1000 :]


@pytest.mark.parametrize("noise", ["normal", "uniform", "exponential", "heavy tails", "counts", "daily"])
@pytest.mark.parametrize("rate", [1e-2, 1e-3])
def test_the_false_alarm_rate_is_held_on_streams_without_anomalies(noise: str, rate: float) -> None:
    share = float(np.mean(_quiet(noise) <= rate))
    # Far fewer than were asked for would mean that anomalies are missed, too.
    assert 0.3 * rate <= share <= 1.25 * rate, f"{noise}: {share:.5f} of the rows have a p-value of at most {rate}"


def test_alarms_are_the_rows_with_small_p_values_that_do_not_repeat_one() -> None:
    x = daily(3000)
    x[2500:2510] += 60
    _, given = Detect(("value",), false_alarm_rate=1e-2).advance({}, {IN: rows({"value": x})}, 0)
    small = column(given[OUT], P_VALUE) <= 1e-2
    assert 1 <= given[ALARMS].num_rows < small.sum()
    assert small[column(given[ALARMS], ROW)].all()
    assert given[ALARMS].schema == given[OUT].schema
    assert 2500 in column(given[ALARMS], ROW)


def test_columns_that_no_longer_go_together_stand_out() -> None:
    draw = np.random.default_rng(2)
    common = draw.normal(size=3000)
    x = np.stack([common + 0.1 * draw.normal(size=3000) for _ in range(4)])
    x[0, 2500] = -x[0, 2500] - 1.5 * np.sign(x[0, 2500])  # as usual by itself
    out, _ = run(Detect(tuple("abcd")), rows(dict(zip("abcd", x, strict=True))))
    score = column(out, SCORE)
    assert abs(x[0, 2500]) < 3
    assert score[2500] > score[500:2500].max()
    cut, _ = run(Detect(tuple("abcd")), rows(dict(zip("abcd", x, strict=True))), 700)
    assert cut.equals(out)


def test_the_benchmark_is_held() -> None:
    """Some points below what was measured; a change that costs more than that has to say why."""
    corpus = nab.read_corpus(SERIES_FOLDER)
    tables = []
    for number, given in enumerate(corpus):
        table = rows({"value": given.values}, source=given.name, first=number << 40)
        times = np.array(given.timestamps, "datetime64[us]")
        tables.append(table.set_column(1, EVENT_TIME, pa.array(times).cast(TIME_TYPE)))
    out, _ = run(Detect(("value",)), pa.concat_tables(tables))
    names = out.column(SOURCE).to_pylist()
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    score = column(out, SCORE).astype(np.float64)
    result = nab.score_corpus(corpus, {name: score[taken] for name, taken in places.items()})
    assert result.score > 68, result
