import datetime
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.cutting import EVENTS, bits, events_stream, stream
from transforms.batches import EVENT_TIME, NAME_TYPE, RESERVED, TIME_TYPE
from transforms.expressions import Filter, Map, evaluate


def _batch():
    columns = {
        "price": pa.array([1.5, None, -2.0, 4.0]),
        "demand": pa.array([3, 2, 1, 0], pa.int32()),
        "word": pa.array(["a", "b", None, "a"]),
        "list": pa.array([[1, 2], [], None, [3]]),
        "odd name": pa.array([1, 2, 3, 4]),
    }
    return stream([0, 3_600_000_000, -1, 7], columns).combine_chunks().to_batches()[0]


def test_map_adds_and_replaces_and_leaves_the_rest():
    batch = _batch()
    result = Map({"gap": "price - demand", "demand": "demand * 2", "half": "0.5", "from_odd": '"odd name" + 1'})(batch)
    assert result.schema.names == [*batch.schema.names, "gap", "half", "from_odd"]
    assert result.column("gap").to_pylist() == [-1.5, None, -3.0, 4.0]  # of demand as it came
    assert result.column("demand").to_pylist() == [6, 4, 2, 0]
    assert result.column("half").to_pylist() == [0.5] * 4 and result.column("half").type == pa.float64()
    assert result.column("from_odd").to_pylist() == [2, 3, 4, 5]
    for name in (*RESERVED, "price", "word", "list"):
        assert result.column(name).equals(batch.column(name)) and result.schema.field(name) == batch.schema.field(name)
    assert result.schema.field(EVENT_TIME).type == TIME_TYPE and result.schema.field("source").type == NAME_TYPE


def test_filter_keeps_order_and_drops_where_null():
    batch = _batch()
    assert Filter("price > -3")(batch).column("price").to_pylist() == [1.5, -2.0, 4.0]
    kept = Filter("source <> 'file-1' and row = 0")(batch)
    assert kept.schema == batch.schema and kept.column("sequence").to_pylist() == [100, 102]


@settings(deadline=None, max_examples=50)
@given(EVENTS.filter(len), st.integers(0, 40))
def test_rows_do_not_depend_on_the_batch_they_are_in(events, cut):
    table = events_stream(events).combine_chunks()
    step = Map({"a": "value * 1.1 + ln(abs(value) + 1)", "b": "coalesce(key, 'none') || row"})
    keep = Filter("sin(value) > 0 or key = 'a'")
    whole = pa.Table.from_batches([keep(step(batch)) for batch in table.to_batches()])
    pieces = [piece for part in (table.slice(0, cut), table.slice(cut)) for piece in part.to_batches()]
    assert bits(pa.Table.from_batches([keep(step(piece)) for piece in pieces])) == bits(whole)


def test_order_is_kept_in_large_batches():
    rows = 300_000
    batch = pa.record_batch({"sequence": pa.array(range(rows)), "x": pa.array([float(i % 7) for i in range(rows)])})
    assert Map({"y": "sequence + 1"})(batch).column("y").to_pylist() == list(range(1, rows + 1))
    assert Filter("x = 3")(batch).column("sequence").to_pylist() == list(range(3, rows, 7))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("hour(event_time)", [0, 1, 23, 0]),
        ("strftime(event_time, '%Y-%m-%d %H')", ["1970-01-01 00", "1970-01-01 01", "1969-12-31 23", "1970-01-01 00"]),
        ("epoch_us(event_time)", [0, 3_600_000_000, -1, 7]),
        ("CASE WHEN demand > 1 THEN 'high' ELSE 'low' END", ["high", "high", "low", "low"]),
        ("word IN ('a', 'c')", [True, False, None, True]),
        ("list_transform(list, lambda q: q + 1)", [[2, 3], [], None, [4]]),
        ("list_sum(list)", [3, None, None, 3]),
        ("try_cast(word AS integer)", [None] * 4),
        ("nullif(demand, 2)", [3, None, 1, 0]),
        ("if(demand > 1, 1, 0)", [1, 1, 0, 0]),
        ("split_part(source, '-', 2)", ["0", "1", "2", "0"]),
        ("DEMAND -- in capitals", [3, 2, 1, 0]),
        ("greatest(demand, row)", [3, 2, 1, 1]),
        ("7", [7] * 4),
    ],
)
def test_expressions(expression, expected):
    (result,) = evaluate(_batch(), [expression])
    assert result.to_pylist() == expected


@pytest.mark.parametrize(
    "expression",
    [
        "(SELECT 1)",
        "demand IN (SELECT 1)",
        "EXISTS (FROM batch)",
        "demand = ANY([1])",
        "lag(price) OVER ()",
        "row_number() OVER (ORDER BY price)",
        "sum(price)",
        "max(price)",
        "first(price)",
        "count(*)",
        "geomean(price)",
        "unnest(list)",
        "random()",
        "uuid()",
        "now()",
        "today()",
        "age(event_time)",
        "ago(INTERVAL 1 DAY)",
        "current_setting('threads')",
        "nextval('numbers')",
        "read_csv('/etc/hostname')",
        "read_text('/etc/hostname')",
        "read_parquet('x.parquet')",
        "getenv('HOME')",
        "glob('*')",
        "COPY batch TO 'x.csv'",
        "price; SELECT 1",
        "price; DROP TABLE batch",
        "price FROM batch",
        "price FROM '/etc/hostname'",
        "price) FROM batch --",
        "price, demand",
        "1) AS a, (2",
        "price AS other",
        "price ORDER BY 1",
        "1 UNION SELECT 2",
        "*",
        "COLUMNS('p.*')",
        "#1",
        "$1",
        "SET threads = 4",
        "",
        "   ",
        "-- nothing",
        None,
        7,
    ],
)
def test_what_is_no_expression_of_one_row_is_refused_when_built(expression):
    with pytest.raises(ValueError, match="expression"):
        Map({"x": expression})
    with pytest.raises(ValueError, match="expression"):
        Filter(expression)


@pytest.mark.parametrize("expression", ["current_timestamp", "current_date", "localtime", "user"])
def test_names_that_are_no_columns_but_mean_something_are_refused(expression):
    with pytest.raises(ValueError, match=f"{expression} is no column"):
        Map({"x": expression}).check(_batch().schema)
    batch = pa.record_batch({expression: pa.array([5])})
    assert Map({"x": expression})(batch).column("x").to_pylist() == [5]


def test_errors_name_the_expression_and_the_columns():
    step = Map({"fine": "price + 1", "wrong": "cost * 2"})
    with pytest.raises(
        ValueError, match=r"(?s)expression 'cost \* 2': DuckDB said: .*cost.* the columns are event_time, .*price"
    ):
        step.check(_batch().schema)
    with pytest.raises(ValueError, match=r"expression 'price \+ word'"):
        Filter("price + word").check(_batch().schema)
    with pytest.raises(ValueError, match=r"true or false; 'demand' gives int32"):
        Filter("demand").check(_batch().schema)
    with pytest.raises(ValueError, match=r"expression 'word::int': DuckDB said: Conversion Error.*'a'"):
        Map({"fine": "price + 1", "number": "word::int"})(_batch())
    # An error leaves the connection usable.
    assert Map({"x": "demand + 1"})(_batch()).column("x").to_pylist() == [4, 3, 2, 1]


@pytest.mark.parametrize("name", RESERVED)
def test_reserved_columns_can_be_read_and_not_replaced(name):
    with pytest.raises(ValueError, match=f"{name} is a reserved column"):
        Map({name: "1"})
    assert Map({"copy": name})(_batch()).num_rows == 4


def test_columns_that_differ_in_case_alone():
    batch = pa.record_batch({"x": pa.array([1]), "X": pa.array([2]), "y": pa.array([3])})
    assert Map({"z": "y + 1"})(batch).column("z").to_pylist() == [4]
    with pytest.raises(ValueError, match="differ in case"):
        Map({"z": "x + 1"})(batch)


def test_check_gives_the_schema():
    schema = _batch().schema
    assert Map({"gap": "price - demand", "when": "event_time + INTERVAL 1 HOUR"}).check(schema) == schema.append(
        pa.field("gap", pa.float64())
    ).append(pa.field("when", TIME_TYPE))
    assert Filter("price > 0").check(schema) == schema
    assert Map({}).check(schema) == schema


def test_time_zone_of_the_machine_plays_no_part(tmp_path):
    program = (
        "import pyarrow as pa\n"
        "from transforms.expressions import evaluate\n"
        "batch = pa.record_batch({'t': pa.array([0], pa.timestamp('us', tz='UTC'))})\n"
        "print([a.to_pylist()[0] for a in evaluate(batch, ['hour(t)', \"(TIMESTAMPTZ '1970-01-01 00:00:00' = t)::int\"])])\n"
    )
    environment = {**os.environ, "TZ": "Asia/Kathmandu", "PYTHONPATH": os.pathsep.join([".", *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[0, 1]", done.stderr


def test_threads_do_not_disturb_one_another():
    batch, step = _batch(), Map({"x": "demand + 1"})
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: step(batch).column("x").to_pylist(), range(40)))
    assert results == [[4, 3, 2, 1]] * 40


def test_pickles():
    for step in (Map({"x": "demand + 1"}), Filter("demand > 1")):
        again = pickle.loads(pickle.dumps(step))
        assert again == step and again(_batch()).equals(step(_batch()))


def test_timestamps_come_back_in_utc():
    (moment,) = evaluate(_batch().slice(0, 1), ["date_trunc('day', event_time)"])
    assert moment.type == TIME_TYPE
    assert moment[0].as_py() == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
