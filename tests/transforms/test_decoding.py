import gzip
import io
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batches import DEAD_LETTER_SCHEMA, ROW_BITS
from transforms.decoding import records as decoding_records
from transforms.decoding import tfrecord as decoding_tfrecord
from transforms.decoding.files import batch_schema, decode, join
from transforms.schema import Schema, TimeSpec

SCHEMA = Schema.parse("price:float64,units:int64?,name:string,part:float32?")
TIME = TimeSpec("time", "ms")
DEAD_COLUMNS = ("row", "reason", "record")


def read(path, schema=SCHEMA, time=TIME, format="auto", **options):
    pieces = list(decode(str(path), path.name, 2, format, schema, time, **options))
    for piece in pieces:
        assert piece.batch.schema == batch_schema(schema)
        assert piece.dead.schema == DEAD_LETTER_SCHEMA
        assert piece.rows == piece.batch.num_rows + piece.dead.num_rows - piece.dead.column("row").null_count
        piece.batch.validate(full=True)
    return pieces


def rows_of(pieces):
    return [row for piece in pieces for row in piece.batch.to_pylist()]


def dead_of(pieces):
    return [row for piece in pieces for row in piece.dead.to_pylist()]


def reasons(pieces):
    return [(row["row"], row["reason"]) for row in dead_of(pieces)]


# --- any file: good and dead records partition its records, whatever the blocks, batches and place of resumption ------------

GOOD_CELLS = {
    "price": ["1.5", " 2 ", "-0", "1e5", ".5", "+3", '"4.25"'],
    "units": ["", "7", "-12", "NA", " 9", '"3"'],
    "name": ["a", "", '"x,y"', '"say ""hi"""', '5" pipe', " padded ", "é", '"two\nlines"', '"a\r\nb"', '"ab"cd', "\x00"],
    "part": ["", "nan", "NaN", "0.1", "1e-3"],
    "time": ["0", "1700000000000", "1700000000000.5", "-5"],
}
BAD_CELLS = {
    "price": [("", "null_value"), ("nan", "not_finite"), ("inf", "not_finite"), ("1e400", "not_finite"), ("1,5", "unparsable")],
    "units": [("1.0", "unparsable"), ("x", "unparsable"), ("99999999999999999999", "unparsable")],
    "name": [("\udcff", "unparsable"), ("a\rb", "unparsable"), ('"x', "unparsable")],
    "part": [("-inf", "not_finite"), ("0.1.2", "unparsable")],
    "time": [("", "bad_time"), ("soon", "bad_time"), ("nan", "bad_time"), ("1e300", "bad_time")],
}
COLUMNS = list(GOOD_CELLS)


@st.composite
def csv_records(draw):
    """(text, reason or None) of each record; the unclosed quote ends in a line of its own."""
    records = []
    for _ in range(draw(st.integers(0, 30))):
        cells = {name: draw(st.sampled_from(values)) for name, values in GOOD_CELLS.items()}
        reason = None
        if draw(st.integers(0, 3)) == 0:
            name = draw(st.sampled_from(COLUMNS))
            cells[name], reason = draw(st.sampled_from(BAD_CELLS[name]))
            if reason == "unparsable" and cells[name] == '"x':
                # What follows must not by chance complete the field that the quote opens.
                cells = dict.fromkeys(COLUMNS, "1") | {"name": '"x'}
            elif cells["price"] == "1,5":
                cells["name"] = "a"  # of a record with too many fields each line is one dead letter
        records.append((",".join(cells.values()), reason))
    return records


@settings(max_examples=100, deadline=None)
@given(
    csv_records(), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.integers(1, 40), st.integers(1, 300), st.integers(0, 35)
)
def test_csv_records_are_good_or_dead_however_the_file_is_cut(records, end, blanks, batch_rows, chunk_bytes, start_row):
    opened = any('"x' in text and reason for text, reason in records)
    body = "".join(text + end + (end if blanks and not opened else "") for text, _ in records)
    data = (",".join(COLUMNS) + end + body).encode("utf-8", "surrogateescape")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_bytes(data)
        whole = read(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoding_records, "CHUNK_BYTES", chunk_bytes)
            cut = read(path, batch_rows=batch_rows)
            tail = read(path, batch_rows=batch_rows, start_row=start_row)
    assert all(piece.rows == batch_rows for piece in cut[:-1])
    assert rows_of(cut) == rows_of(whole)
    assert dead_of(cut) == dead_of(whole)
    assert rows_of(tail) == [row for row in rows_of(whole) if row["row"] >= start_row]
    assert dead_of(tail) == [row for row in dead_of(whole) if row["row"] >= start_row]
    numbers = sorted([row["row"] for row in rows_of(whole)] + [row["row"] for row in dead_of(whole)])
    assert numbers == list(range(sum(piece.rows for piece in whole)))
    if not opened:
        assert reasons(whole) == [(row, reason) for row, (_, reason) in enumerate(records) if reason]
        assert len(numbers) == len(records)


JSON_GOOD = {
    "price": ["1.5", "2", "-0", "1e5", "-3.25E-2"],
    "units": ["null", "7", "-12"],
    "name": ['"a"', '""', '"{}null"', '"}n"', '"\\u00e9\\n"', '"é"'],
    "part": ["null", "NaN", "0.1"],
    "time": ["0", "1700000000000", "1700000000000.5"],
}
JSON_BAD = {
    "price": [
        ("null", "null_value"),
        ("NaN", "not_finite"),
        ("Infinity", "not_finite"),
        ('"1.5"', "unparsable"),
        ("1e400", "unparsable"),
    ],
    "units": [("1.0", "unparsable"), ("true", "unparsable"), ("99999999999999999999", "unparsable"), ("01", "unparsable")],
    "name": [("3", "unparsable"), ('"\udcff"', "unparsable"), ('["a"]', "unparsable"), ('"\\ud800"', "unparsable")],
    "part": [("-Infinity", "not_finite"), ("{}", "unparsable")],
    "time": [("null", "bad_time"), ("1e300", "bad_time")],
}
JSON_LINES = ["null", "3", "[]", "{", '{"price":1} null', "true false", '"x"', '{"price":1}{"price":2}', "\ufeffx", "{" * 2000]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(20, 600), st.integers(0, 35))
def test_json_records_are_good_or_dead_however_the_file_is_cut(data, batch_rows, chunk_bytes, start_row):
    records = []
    for _ in range(data.draw(st.integers(0, 30))):
        cells = {name: data.draw(st.sampled_from(values)) for name, values in JSON_GOOD.items()}
        kind, reason = data.draw(st.integers(0, 7)), None
        if kind == 0:
            name = data.draw(st.sampled_from(COLUMNS))
            cells[name], reason = data.draw(st.sampled_from(JSON_BAD[name]))
        line = "{" + ", ".join(f'"{name}": {text}' for name, text in cells.items()) + ', "other": [{"q": null}]}'
        if kind == 1:
            line, reason = data.draw(st.sampled_from(JSON_LINES)), "unparsable"
        records.append((line, reason))
    blank = data.draw(st.sampled_from(["", "\n", " \r\n"]))
    text = "".join(line + "\n" + blank for line, _ in records).encode("utf-8", "surrogateescape")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(text)
        whole = read(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoding_records, "CHUNK_BYTES", chunk_bytes)
            cut = read(path, batch_rows=batch_rows)
            tail = read(path, batch_rows=batch_rows, start_row=start_row)
    assert reasons(whole) == [(row, reason) for row, (_, reason) in enumerate(records) if reason]
    assert [row["row"] for row in rows_of(whole)] == [row for row, (_, reason) in enumerate(records) if not reason]
    assert (rows_of(cut), [row["row"] for row in dead_of(cut)]) == (rows_of(whole), [row["row"] for row in dead_of(whole)])
    assert rows_of(tail) == [row for row in rows_of(whole) if row["row"] >= start_row]
    assert reasons(tail) == [pair for pair in reasons(whole) if pair[0] >= start_row]


# --- the same records in every format ---------------------------------------------------------------------------------------

ALL_TYPES = Schema.parse("b:bool,i:int32,j:int64?,f:float32,d:float64?,s:string,t:timestamp,v:float32[2]")


def sample(n=50, seed=3):
    """Records with all types; those with number 7 and 20 have faults."""
    draws = np.random.default_rng(seed)
    records = []
    for row in range(n):
        records.append(
            {
                "b": bool(draws.integers(2)),
                "i": int(draws.integers(-1000, 1000)),
                "j": None if row % 5 == 0 else int(draws.integers(2**40)),
                "f": float(np.float32(draws.normal())),
                "d": None if row % 7 == 3 else float(np.float32(draws.normal())),
                "s": f"name {row}",
                "t": "2020-02-03T04:05:06.789Z" if row % 2 else "2020-02-03 04:05:06",
                "v": [float(np.float32(x)) for x in draws.normal(size=2 if row != 7 else 3)],
                "when": 1_700_000_000 + row if row != 20 else 10**15,
            }
        )
    return records


def write(path, records):
    kind = path.name.split(".")[1]
    if kind == "csv":
        lines = [",".join(records[0])]
        for record in records:
            cells = {**record, "v": " ".join(map(repr, record["v"]))}
            lines.append(",".join("" if cell is None else str(cell) for cell in cells.values()))
        data = ("\n".join(lines) + "\n").encode()
    elif kind == "jsonl":
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
    elif kind == "parquet":
        columns = {name: [record[name] for record in records] for name in records[0]}
        types = {"f": pa.float32(), "v": pa.list_(pa.float32())}
        pq.write_table(pa.table({k: pa.array(v, types.get(k)) for k, v in columns.items()}), path, row_group_size=9)
        return
    else:
        options = tf.io.TFRecordOptions(compression_type="GZIP" if path.suffix == ".gz" else "")
        with tf.io.TFRecordWriter(str(path), options) as writer:
            for record in records:
                writer.write(example(record))
        return
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def example(record):
    features = {}
    for name, value in record.items():
        values = [] if value is None else value if isinstance(value, list) else [value]
        if name in ("f", "d", "v"):
            features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        elif name in ("s", "t"):
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode() for value in values]))
        else:
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value) for value in values]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz", "a.parquet", "a.tfrecord", "a.tfrecord.gz"])
def test_every_format_gives_the_same(tmp_path, name, monkeypatch):
    records = sample()
    write(tmp_path / name, records)
    time = TimeSpec("when", "s")
    pieces = read(tmp_path / name, ALL_TYPES, time)
    assert reasons(pieces) == [(7, "unparsable"), (20, "bad_time")]
    assert "name 7" in dead_of(pieces)[0]["record"] or "bmFtZSA3" in dead_of(pieces)[0]["record"]
    got = rows_of(pieces)
    for row, record in zip(got, [record for place, record in enumerate(records) if place not in (7, 20)], strict=True):
        moment = datetime(2020, 2, 3, 4, 5, 6, 789_000 if "Z" in record["t"] else 0, tzinfo=UTC)
        expected = {**record, "t": moment, "event_time": datetime.fromtimestamp(record["when"], UTC), "source": name}
        del expected["when"]
        assert row == {**expected, "row": row["row"], "sequence": (2 << ROW_BITS) + row["row"]}
    monkeypatch.setattr(decoding_tfrecord, "_ROWS", 4)
    for start_row in (0, 1, 8, 9, 21, 49, 50, 70):
        for batch_rows in (1, 6, 1000):
            tail = read(tmp_path / name, ALL_TYPES, time, start_row=start_row, batch_rows=batch_rows)
            assert rows_of(tail) == [row for row in got if row["row"] >= start_row]
            assert reasons(tail) == [pair for pair in reasons(pieces) if pair[0] >= start_row]


# --- files with faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.tfrecord.gz", "a.csv", "a.jsonl", "a.parquet", "a.tfrecord"])
def test_empty_files_have_no_records(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert read(tmp_path / name) == []
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(b""))
        assert read(tmp_path / name) == []
    for text in ("price,units,name,part,time", "price,units,name,part,time\r\n\r\n", "\ufeffprice,units,name,part,time\n"):
        (tmp_path / "header.csv").write_text(text, newline="")
        assert read(tmp_path / "header.csv") == []


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.tfrecord.gz"])
def test_truncated_gzip_gives_the_rows_before(tmp_path, name):
    records = [{**record, "v": [1.0, 2.0], "when": 5} for record in sample(400)]
    write(tmp_path / name, records)
    packed = (tmp_path / name).read_bytes()
    whole = rows_of(read(tmp_path / name, ALL_TYPES, TimeSpec("when", "s")))
    for size in (5, 40, len(packed) // 2, len(packed) - 4):
        (tmp_path / name).write_bytes(packed[:size])
        pieces = read(tmp_path / name, ALL_TYPES, TimeSpec("when", "s"), batch_rows=64)
        got = rows_of(pieces)
        assert got == whole[: len(got)]
        [letter] = dead_of(pieces)
        assert (letter["row"], letter["sequence"], letter["reason"]) == (None, None, "unreadable_file")
        assert "truncated" in letter["detail"]
    assert len(got) == 400


def test_files_that_are_something_else(tmp_path):
    for name in ("a.parquet", "a.csv.gz", "a.tfrecord"):
        (tmp_path / name).write_text("this is not what the name says it is, but a plain text of some length")
        assert reasons(read(tmp_path / name)) == [(None, "unreadable_file")]
    assert reasons(read(tmp_path / "absent.csv")) == [(None, "unreadable_file")]
    with pytest.raises(ValueError, match="cannot tell the format"):
        read(tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match="unknown format"):
        read(tmp_path / "a.csv", format="xlsx")


def test_broken_tfrecords(tmp_path):
    path = tmp_path / "a.tfrecord"
    buffer = io.BytesIO()
    write(path, [{**record, "v": [0.0, 1.0], "when": 1} for record in sample(5)])
    buffer.write(path.read_bytes())
    data = bytearray(buffer.getvalue())
    size = int.from_bytes(data[:8], "little") + 16
    data[size + 20] ^= 255  # in the bytes of record 1
    path.write_bytes(bytes(data[:-3]))
    pieces = read(path, ALL_TYPES, TimeSpec("when", "s"))
    assert [row["row"] for row in rows_of(pieces)] == [0, 2, 3]
    assert reasons(pieces) == [(1, "unparsable"), (None, "unreadable_file")]


def test_missing_column(tmp_path):
    (tmp_path / "a.csv").write_text('price,other,name\n1,2,x\n3,4,"y\nz"\n5\n')
    pq.write_table(pa.table({"price": [1.0, 2.0], "other": [1, 2]}), tmp_path / "a.parquet")
    dead = dead_of(read(tmp_path / "a.csv"))
    assert [(row["row"], row["reason"]) for row in dead] == [
        (0, "missing_column"),
        (1, "missing_column"),
        (2, "missing_column"),
    ]
    assert "'units'" in dead[0]["detail"] and "price, other, name" in dead[0]["detail"]
    assert [row["record"] for row in dead] == ["1,2,x", '3,4,"y\nz"', "5"]
    assert reasons(read(tmp_path / "a.parquet", start_row=1)) == [(1, "missing_column")]


def test_details_say_what_was_expected_and_what_came(tmp_path):
    (tmp_path / "a.csv").write_text("price,units,name,part,time,more\n1,2,x,1,5,\nabc,2,x,1,5,\n1,2,x,1\n")
    first, second = dead_of(read(tmp_path / "a.csv"))
    assert first["detail"] == "column 'price': expected float64, got 'abc'"
    assert first["source"] == "a.csv" and first["record"] == "abc,2,x,1,5," and first["sequence"] == (2 << ROW_BITS) + 1
    assert second["detail"] == "expected 6 fields, got 4"
    (tmp_path / "a.jsonl").write_text('{"price":"1","name":"x","time":1}\n')
    [letter] = dead_of(read(tmp_path / "a.jsonl"))
    assert letter["detail"] == "column 'price': expected float64, got a string '1'"


def test_a_forgotten_quote_costs_one_line(tmp_path):
    (tmp_path / "a.csv").write_text('s,n\n"open,1\n"fine, really",2\n"two\nlines",3\n')
    pieces = read(tmp_path / "a.csv", Schema.parse("s:string,n:int64"), TimeSpec())
    assert [row["s"] for row in rows_of(pieces)] == ["fine, really", "two\nlines"]
    assert reasons(pieces) == [(0, "unparsable")]


def test_faults_inside_vectors(tmp_path):
    vectors = ["[1, 2]", "1;2", "1", "1 x", "1 nan", "1 NA", ""]
    (tmp_path / "a.csv").write_text("v,p\n" + "".join(f'"{vector}",1\n' for vector in vectors))
    expected = [(2, "unparsable"), (3, "unparsable"), (4, "not_finite"), (5, "null_value")]
    assert reasons(read(tmp_path / "a.csv", Schema.parse("v:float32[2]"), TimeSpec())) == [*expected, (6, "null_value")]
    pieces = read(tmp_path / "a.csv", Schema.parse("v:float32[2]?"), TimeSpec())
    assert reasons(pieces) == expected
    assert [row["v"] for row in rows_of(pieces)] == [[1, 2], [1, 2], None]


def test_join_of_all_pieces_is_the_file(tmp_path):
    (tmp_path / "a.csv").write_text("p\n" + "".join(f"{row}\n" for row in range(100)))
    schema, time = Schema.parse("p:int64"), TimeSpec()
    whole = join(read(tmp_path / "a.csv", schema, time, batch_rows=7))
    assert whole.batch.column("p").to_pylist() == list(range(100))
    assert (whole.rows, whole.next_row) == (100, 100)
