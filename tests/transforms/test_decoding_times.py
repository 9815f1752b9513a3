"""The times of records, as files of all formats write them."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.decoding.files import decode
from transforms.schema import Schema, TimeSpec


def read(path, schema, time, **options):
    return list(decode(str(path), path.name, 2, "auto", schema, time, **options))


def rows_of(pieces):
    return [row for piece in pieces for row in piece.batch.to_pylist()]


def reasons(pieces):
    return [(row["row"], row["reason"]) for piece in pieces for row in piece.dead.to_pylist()]


@pytest.mark.parametrize(
    ("unit", "written"), [("s", 1_700_000_000.25), ("ms", 1_700_000_000_250), ("us", 1_700_000_000_250_000)]
)
def test_time_units(tmp_path, unit, written):
    moment = datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)
    (tmp_path / "a.csv").write_text(f"p,t\n1,{written}\n")
    (tmp_path / "a.jsonl").write_text(f'{{"p":1,"t":{written}}}\n')
    pq.write_table(pa.table({"p": [1.0], "t": [written]}), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert rows_of(read(path, Schema.parse("p:float64"), TimeSpec("t", unit)))[0]["event_time"] == moment
        declared = Schema.parse(f"p:float64,t:{'float64' if unit == 's' else 'int64'}")
        row = rows_of(read(path, declared, TimeSpec("t", unit)))[0]
        assert (row["event_time"], row["t"]) == (moment, written)


def test_iso_times_of_all_kinds(tmp_path):
    given = [
        "2020-01-01",
        "2020-01-01T01:00Z",
        "2020-01-01 02:00:00+01:00",
        "2020-01-01T00:00:00.1234567",
        "",
        "1/2/2020",
        " 2020-01-01",
    ]
    (tmp_path / "a.csv").write_text("p,t\n" + "".join(f"1,{text}\n" for text in given))
    day = datetime(2020, 1, 1, tzinfo=UTC)
    hour = timedelta(hours=1)
    for schema in ("p:float64", "p:float64,t:string", "p:float64,t:timestamp", "p:float64,t:string?"):
        for batch_rows in (1, 100):
            pieces = read(tmp_path / "a.csv", Schema.parse(schema), TimeSpec("t"), batch_rows=batch_rows)
            times = {row["row"]: row["event_time"] for row in rows_of(pieces)}
            assert reasons(pieces)[:2] == [(4, "bad_time"), (5, "bad_time")]
            assert [times[row] for row in range(4)] == [day, day + hour, day + hour, day + timedelta(microseconds=123456)]
    native = pa.array([day.replace(tzinfo=None)] * 2, pa.timestamp("ns"))
    pq.write_table(pa.table({"p": [1.0, 2.0], "t": native}), tmp_path / "a.parquet")
    assert [row["event_time"] for row in rows_of(read(tmp_path / "a.parquet", Schema.parse("p:float64"), TimeSpec("t")))] == [
        day
    ] * 2


def test_rows_are_the_time_without_a_time_column(tmp_path):
    (tmp_path / "a.csv").write_text("p\n1\nx\n3\n")
    time = TimeSpec(start=datetime(2020, 1, 1), step=timedelta(minutes=30))
    times = [row["event_time"] for row in rows_of(read(tmp_path / "a.csv", Schema.parse("p:float64"), time))]
    assert times == [datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, 1, tzinfo=UTC)]
