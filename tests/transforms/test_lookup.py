import json
import pickle

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.cutting import stream
from transforms.batches import DEAD_LETTER_SCHEMA
from transforms.lookup import Lookup


def _batch(**columns):
    (rows,) = {len(column) for column in columns.values()}
    return stream(range(rows), columns).combine_chunks().to_batches()[0] if rows else None


@pytest.fixture
def stations(tmp_path):
    path = tmp_path / "stations.csv"
    path.write_text("station,height,name\n1,10.5,Hill\n3,,Lake\n2,0.5,Town\n")
    return str(path)


def test_order_is_kept_and_what_is_not_there_is_null(stations):
    batch = _batch(station=pa.array([3, 9, 1, None, 1]))
    joined, missed = Lookup(stations, ("station",))(batch)
    assert joined.select(batch.schema.names).equals(batch)
    assert joined.column("name").to_pylist() == ["Lake", None, "Hill", None, "Hill"]
    assert joined.column("height").to_pylist() == [None, None, 10.5, None, 10.5]
    assert missed.num_rows == 0 and missed.schema == DEAD_LETTER_SCHEMA


def test_dropped_rows_are_dead_letters(stations):
    batch = _batch(station=pa.array([3, 9, 1, None]))
    joined, missed = Lookup(stations, ("station",), ("name",), "drop")(batch)
    assert joined.column("name").to_pylist() == ["Lake", "Hill"]
    assert missed.column("sequence").to_pylist() == [101, 103]
    assert missed.column("reason").to_pylist() == ["no_match"] * 2
    assert missed.column("detail")[0].as_py() == "no row of stations.csv has this station"
    assert json.loads(missed.column("record")[0].as_py()) == {"station": 9}


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), st.integers(0, 99), max_size=8),
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.none() | st.integers(0, 4)), min_size=1, max_size=20),
)
def test_against_a_dictionary(tmp_path_factory, table, rows):
    path = str(tmp_path_factory.mktemp("lookup") / "t.parquet")
    words, numbers = zip(*table, strict=True) if table else ((), ())
    columns = [
        pa.array(words, pa.string()).dictionary_encode(),
        pa.array(numbers, pa.int32()),
        pa.array(list(table.values()), pa.int64()),
    ]
    pa.parquet.write_table(pa.table(columns, names=["word", "number", "value"]), path)
    words, numbers = zip(*rows, strict=True)
    batch = _batch(word=pa.array(words, pa.string()).dictionary_encode(), number=pa.array(numbers, pa.int64()))
    joined, _ = Lookup(path, ("word", "number"))(batch)
    assert joined.column("value").to_pylist() == [table.get(row) for row in rows]


def test_numbers_match_by_value_and_not_cut_to_whole_ones(stations):
    joined, _ = Lookup(stations, ("station",), ("name",))(_batch(station=pa.array([1.0, 1.5])))
    assert joined.column("name").to_pylist() == ["Hill", None]


def test_repeated_keys_are_named(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("a,b,c\n" + "".join(f"{n // 2},x,1\n" for n in range(15)))
    with pytest.raises(ValueError, match=r"repeated a, b: 0, x; 1, x; 2, x; 3, x; 4, x and 2 more"):
        Lookup(str(path), ("a", "b")).check(pa.schema([("a", pa.int64()), ("b", pa.string())]))


@pytest.mark.parametrize(
    ("text", "on", "columns", "message"),
    [
        ("a,b\n1,2\n", ("c",), None, "no column c; the columns are a, b"),
        ("a,b\n1,2\n", ("a",), ("z",), "no column z"),
        ("a,b\n,2\n", ("a",), None, "1 rows have no a"),
        ("a,row\n1,2\n", ("a",), None, "row is reserved"),
        ("a,key\n1,2\n", ("a",), None, "has a column key already"),
        ("a,b\nx,2\n", ("a",), None, "a is int64 in the stream and string in the table"),
        ("", ("a",), None, "cannot read"),
        ("a,b\n1\n", ("a",), None, "cannot read"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, text, on, columns, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Lookup(str(path), on, columns)(_batch(a=pa.array([1]), key=pa.array(["k"]), c=pa.array([1])))


def test_files_that_are_no_table(tmp_path):
    for name, message in (
        ("no.csv", "cannot read"),
        ("no.parquet", "cannot read"),
        ("no.txt", "expected a file that ends in .csv"),
    ):
        with pytest.raises(ValueError, match=message):
            Lookup(str(tmp_path / name), ("a",)).check(pa.schema([("a", pa.int64())]))


def test_the_table_is_read_once(stations, monkeypatch):
    batch = _batch(station=pa.array([3]))
    first, _ = Lookup(stations, ("station",))(batch)
    monkeypatch.setattr("transforms.lookup._read", None)
    second, _ = pickle.loads(pickle.dumps(Lookup(stations, ("station",))))(batch)
    assert second.equals(first)


def test_check_and_options(stations):
    lookup = Lookup(stations, ("station",), ("name",))
    schema = pa.schema([*stream([], {}).schema, pa.field("station", pa.int64())])
    assert lookup.check(schema) == schema.append(pa.field("name", pa.string()))
    for options, message in (
        ({"on": ()}, "at least one key"),
        ({"on": "station"}, "on is a tuple"),
        ({"on": ("station",), "columns": "name"}, "columns is a tuple"),
        ({"on": ("station",), "default": "keep"}, "null or drop; got 'keep'"),
    ):
        with pytest.raises(ValueError, match=message):
            Lookup(stations, **options)
