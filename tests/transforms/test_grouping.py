import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.grouping import concat, group_codes, require_columns

WORDS = st.sampled_from(["a", "b", None])
FLOATS = st.sampled_from([0.0, -0.0, 1.5, float("nan"), None])


def _key(value):
    return "nan" if isinstance(value, float) and np.isnan(value) else value


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, FLOATS, st.integers(-2, 2)), max_size=30), st.integers(0, 30), st.integers(0, 3))
def test_codes_are_equal_where_rows_are(rows, cut, columns):
    def table(part):
        words, floats, numbers = zip(*part, strict=True) if part else ((), (), ())
        arrays = [
            pa.array(words, pa.string()).dictionary_encode(),
            pa.array(floats, pa.float64()),
            pa.array(numbers, pa.int64()),
        ]
        return pa.table(arrays, names=["word", "float", "number"])

    names = ["word", "float", "number"][:columns]
    codes = group_codes(concat([table(rows[:cut]), table(rows[cut:])]), names)
    keys = [tuple(map(_key, row[:columns])) for row in rows]
    assert len(codes) == len(rows)
    assert [[a == b for b in codes] for a in codes] == [[a == b for b in keys] for a in keys]


def test_no_columns_are_one_group():
    assert group_codes(pa.table({"x": [1, 2, 3]}), []).tolist() == [0, 0, 0]


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match=r"join: no column b, c; the columns are a"):
        require_columns("join", ["a", "b", "c"], pa.schema([("a", pa.int64())]))
