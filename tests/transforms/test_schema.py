import pickle
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.schema import Schema, TimeSpec


def test_mapping_and_text_declare_the_same():
    declared = {"price": "float64", "name": "string?", "x": "float32[16]"}
    schema = Schema.parse(declared)
    assert schema == Schema.parse("price:float64, name:string?,x:float32[16]") == Schema.parse(str(schema))
    assert schema.names == ("price", "name", "x")
    assert schema.arrow.field("x").type == pa.list_(pa.float32(), 16)
    assert schema["name"].nullable and not schema["price"].nullable
    copy = pickle.loads(pickle.dumps(schema))
    assert copy == schema and hash(copy) == hash(schema)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"a": "double"}, "Known types: bool, int32, int64, float32, float64, string, timestamp"),
        ({"a": "string[3]"}, "unknown type"),
        ({"a": "float32[0]"}, "unknown type"),
        ({"event_time": "timestamp"}, "reserved"),
        ({"a": 3}, "expected a type as text"),
        ({"": "int32"}, "wants a name"),
        ({}, "at least one column"),
        ("a", "expected name:type"),
        ("a:int32,a:int64", "more than once: a"),
    ],
)
def test_faults_are_named(declared, said):
    with pytest.raises(ValueError, match=said):
        Schema.parse(declared)


def test_time_spec():
    assert TimeSpec(start=datetime(1970, 1, 2)).start_us == 86_400_000_000
    assert TimeSpec(start=datetime(1970, 1, 1, tzinfo=UTC), step=timedelta(minutes=30)).step_us == 1_800_000_000
    with pytest.raises(ValueError, match="iso, s, ms, us"):
        TimeSpec("t", "minutes")
    with pytest.raises(ValueError, match="wants it declared as int32 or int64 or float64"):
        TimeSpec("t", "ms").check(Schema.parse("t:string"))


def test_infer_from_each_format(tmp_path):
    (tmp_path / "a.csv").write_text("p, n,name,t,e,source\n1.5,2,x,2020-01-01 00:00:00,,s\n2,3,y,2020-01-02 00:00:00,,s\n")
    assert str(Schema.infer(str(tmp_path / "a.csv"))) == "p:float64,n:int64,name:string,t:timestamp,e:string?"
    (tmp_path / "a.jsonl").write_text('{"p":1.5,"v":[1,2],"b":true}\n{"p":null,"v":[3,4],"b":false,"o":{"q":1}}\n')
    assert str(Schema.infer(str(tmp_path / "a.jsonl"))) == "p:float64?,v:int64[2],b:bool"
    pq.write_table(pa.table({"f": pa.array([1.0], pa.float32()), "i": pa.array([1], pa.int16())}), tmp_path / "a.parquet")
    assert str(Schema.infer(str(tmp_path / "a.parquet"))) == "f:float32,i:int32"
    (tmp_path / "empty.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="at least one row"):
        Schema.infer(str(tmp_path / "empty.csv"))
    (tmp_path / "semicolons.csv").write_text("time;price\n1;2,5\n")
    assert str(Schema.infer(str(tmp_path / "semicolons.csv"))) == "time:int64,price:float64"
    (tmp_path / "bars.csv").write_text("time|price\n1|2.5\n")
    with pytest.raises(ValueError, match=r"separated by commas, semicolons or tabs, its header has '\|'"):
        Schema.infer(str(tmp_path / "bars.csv"))
    with pytest.raises(ValueError, match="cannot tell the format"):
        Schema.infer("a.xlsx")
