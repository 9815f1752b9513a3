import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.aggregates import Aggregate

NUMBERS = st.none() | st.floats(-1e6, 1e6) | st.just(float("nan")) | st.just(float("inf"))
NUMPY = {
    "count": len,
    "sum": np.sum,
    "mean": np.mean,
    "std": np.std,
    "min": np.min,
    "max": np.max,
    "distinct": lambda values: len({"nan" if np.isnan(v) else v for v in values}),
}


def _of(text, column, groups=None, number=1):
    column = column if isinstance(column, pa.Array) else pa.array(column)
    groups = np.zeros(len(column), dtype=np.int64) if groups is None else np.array(groups)
    return Aggregate.parse(text).of(column, groups, number).to_pylist()


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 4), NUMBERS), max_size=40),
    st.floats(0, 1),
    st.sampled_from([*NUMPY, "std_sample", "quantile"]),
)
def test_against_numpy(rows, q, function):
    rows.sort(key=lambda row: row[0])
    groups, values = zip(*rows, strict=True) if rows else ((), ())
    text = f"quantile(x, {q!r})" if function == "quantile" else f"{function}(x)"
    ours = _of(text, pa.array(values, pa.float64(), from_pandas=False), np.array(groups, dtype=np.int64), 6)
    with np.errstate(invalid="ignore"):
        for group, result in enumerate(ours):
            own = np.array([value for g, value in rows if g == group and value is not None])
            if function in ("count", "distinct"):
                expected = NUMPY[function](own)
            elif not len(own) or (function == "std_sample" and len(own) == 1):
                expected = None
            elif function == "quantile":
                expected = np.quantile(own, q)
                if not np.isfinite(own).all():
                    # Between a number and infinity NumPy says NaN or infinity, by the side; ours says infinity.
                    expected = np.nan if np.isnan(own).any() else result
            else:
                expected = np.std(own, ddof=1) if function == "std_sample" else NUMPY[function](own)
            if expected is None:
                assert result is None
            else:
                assert np.allclose(result, expected, rtol=1e-9, atol=1e-6, equal_nan=True)


def test_quantiles_at_infinity():
    assert _of("quantile(x, 0.5)", [1.0, float("inf"), float("inf")]) == [float("inf")]
    assert _of("quantile(x, 0)", [1.0, float("inf")]) == [1.0]


def test_types():
    day, later = datetime.date(2024, 1, 1), datetime.date(2024, 3, 1)
    moment = datetime.datetime(1969, 1, 1, tzinfo=datetime.UTC)
    assert _of("max(x)", [day, later]) == [later]
    assert _of("min(x)", pa.array([moment, None], pa.timestamp("us", tz="UTC"))) == [moment]
    assert _of("max(x)", pa.array([3, 5], pa.int8())) == [5]
    assert Aggregate.parse("max(x)").of(pa.array([3.0], pa.float32()), np.array([0]), 1).type == pa.float32()
    assert _of("sum(x)", [True, False, True]) == [2]
    assert _of("mean(x)", [True, False]) == [0.5]
    assert _of("min(x)", [True, False]) == [False]
    assert _of("mean(x)", [decimal.Decimal("1.5"), decimal.Decimal("2.5")]) == [2.0]
    assert _of("sum(x)", [2**53 + 1, 1]) == [2**53 + 2]
    assert _of("distinct(x)", ["a", "b", "a", None]) == [2]
    assert _of("distinct(x)", [0.0, -0.0]) == [1]
    assert _of("count(x)", ["a", None]) == [1]
    assert Aggregate.parse("count()").of(None, np.array([0, 0, 2]), 3).to_pylist() == [2, 0, 1]


def test_bits_do_not_depend_on_the_groups_beside():
    values = np.random.default_rng(7).normal(size=100_003) * 10.0 ** np.random.default_rng(8).integers(-8, 8, 100_003)
    groups = np.sort(np.random.default_rng(9).integers(0, 7, 100_003))
    for text in ("sum(x)", "mean(x)", "std(x)"):
        beside = _of(text, values, groups, 7)
        for group in range(7):
            assert _of(text, values[groups == group].copy())[0].hex() == beside[group].hex()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("median(x)", "one of count, sum, mean"),
        ("price", "expected an aggregate such as"),
        ("mean()", "mean wants a column"),
        ("quantile(x)", "q from 0 to 1"),
        ("quantile(x, 2)", "q from 0 to 1"),
        ("quantile(x, high)", "q from 0 to 1"),
        (7, "expected an aggregate such as"),
    ],
)
def test_parse_says_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        Aggregate.parse(text)


def test_parse():
    assert Aggregate.parse(' quantile("a, b" , 0.5) ') == Aggregate("quantile", "a, b", 0.5)
    assert Aggregate.parse("count( )") == Aggregate("count")
    assert Aggregate.parse("max( the price )") == Aggregate("max", "the price")


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        ("mean(x)", ["a"], r"mean\(x\) wants numbers; the column is string"),
        ("max(x)", ["a"], r"max\(x\) wants numbers, dates or times"),
        ("sum(x)", [datetime.date(2024, 1, 1)], "wants numbers"),
        ("sum(x)", [2**62, 2**62], "leaves the range of int64"),
    ],
)
def test_what_does_not_fit_is_refused(text, values, message):
    with pytest.raises(ValueError, match=message):
        _of(text, values)
