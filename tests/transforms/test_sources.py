import gzip
import json
import pickle
import tempfile
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import planning
from transforms.batches import MIN_WATERMARK_US, ROW_BITS
from transforms.schema import Schema, TimeSpec
from transforms.sources import FilePlanner, FileSource, Plan, Position, ReadFiles, all_files, read_ranges

SCHEMA = Schema.parse("p:float64")
TIME = TimeSpec("t", "us")


def source_of(folder, **options):
    return FileSource(str(folder), "csv", SCHEMA, TIME, **options)


def write(path, times, bad=()):
    lines = [f"{'x' if row in bad else row},{time}\n" for row, time in enumerate(times)]
    path.write_text("p,t\n" + "".join(lines))


def rows_and_letters(pieces):
    rows = [row for piece in pieces for row in piece.batch.to_pylist()]
    dead = [row for piece in pieces for row in piece.dead.to_pylist()]
    return rows, dead


# --- which files there are --------------------------------------------------------------------------------------------------


def test_files_of_a_folder_a_glob_and_a_path(tmp_path):
    for name in ("b.csv", "a.csv", ".hidden.csv", "_temporary.csv", "sub/c.csv", "_sub/d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, [1])
    assert [file.name for file in source_of(tmp_path).list_files()] == ["a.csv", "b.csv", "sub/c.csv"]
    assert [file.name for file in source_of(tmp_path / "*.csv").list_files()] == ["a.csv", "b.csv"]
    [file] = source_of(tmp_path / "b.csv").list_files()
    assert (file.name, file.size_bytes) == ("b.csv", (tmp_path / "b.csv").stat().st_size)
    source = source_of(tmp_path)
    assert all(source.path_of(file.name) == file.path for file in source.list_files())
    assert pickle.loads(pickle.dumps(source)) == source


def test_no_files_says_what_is_there(tmp_path):
    write(tmp_path / "data.csv", [1])
    with pytest.raises(FileNotFoundError, match=r"no files match .*\*\.parquet.* holds data\.csv"):
        source_of(tmp_path / "*.parquet").list_files()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        source_of(tmp_path / "absent" / "*.csv").list_files()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no files"):
        source_of(tmp_path / "empty").list_files()
    with pytest.raises(ValueError, match="cannot tell the format"):
        (tmp_path / "a.xlsx").touch()
        FileSource(str(tmp_path), "auto", SCHEMA).list_files()


# --- micro-batches ----------------------------------------------------------------------------------------------------------

files_of_times = st.lists(st.lists(st.integers(0, 60), max_size=12), min_size=1, max_size=4).filter(any)


@settings(max_examples=150, deadline=None)
@given(
    files_of_times,
    st.sets(st.tuples(st.integers(0, 3), st.integers(0, 11))),
    st.lists(st.tuples(st.none() | st.integers(1, 9), st.none() | st.integers(1, 25)), min_size=1, max_size=5),
    st.integers(1, 10),
    st.integers(0, 5),
    st.data(),
)
def test_any_cuts_read_the_same_once(files, bad, limits, batch_rows, out_of_orderness_us, data):
    with tempfile.TemporaryDirectory() as folder:
        for index, times in enumerate(files):
            write(Path(folder) / f"{index}.csv", times, {row for place, row in bad if place == index})
        source = source_of(folder, batch_rows=batch_rows, out_of_orderness_us=out_of_orderness_us)
        whole = rows_and_letters(list(read_ranges(source, all_files(source), ordered=True)))
        planner, position, pieces, turn = FilePlanner(source), Position(), [], 0
        while True:
            max_records, max_span_us = limits[turn % len(limits)]
            turn += 1
            if data.draw(st.booleans(), "restart"):
                planner, position = FilePlanner(source), Position.from_json(json.loads(json.dumps(position.to_json())))
            plan = planner.plan(position, max_records, max_span_us)
            if plan is None:
                break
            assert plan == FilePlanner(source).plan(position, max_records, max_span_us)
            assert plan == Plan.from_json(json.loads(json.dumps(plan.to_json())))
            if data.draw(st.booleans(), "other process"):
                planning._planned = {}
            part = list(read_ranges(source, plan.ranges, plan.start_max_event_time_us, ordered=True))
            assert sum(piece.rows for piece in part) == plan.rows <= (max_records or plan.rows)
            times = np.concatenate([np.asarray(piece.batch.column("event_time").cast("int64")) for piece in part])
            if max_span_us and len(times):
                assert (times < (times[0] // max_span_us + 1) * max_span_us).all()
            assert plan.max_event_time_us == max([plan.start_max_event_time_us, *times])
            assert plan.watermark_us == max(plan.max_event_time_us - out_of_orderness_us, MIN_WATERMARK_US)
            pieces += part
            position = plan.end
    assert rows_and_letters(pieces) == whole
    newest = MIN_WATERMARK_US
    for row in whole[0]:
        assert row["watermark_us"] == max(newest - out_of_orderness_us, MIN_WATERMARK_US)
        newest = max(newest, files[row["sequence"] >> ROW_BITS][row["row"]])


def test_until(tmp_path):
    write(tmp_path / "a.csv", [1, 5, 9, 3])
    planner = FilePlanner(source_of(tmp_path))
    plan = planner.plan(Position(), until_us=9)
    assert plan.rows == 2
    assert planner.plan(plan.end, until_us=9) is None
    assert planner.plan(plan.end, until_us=10).rows == 2


def test_files_that_come_later_are_behind_those_begun(tmp_path):
    write(tmp_path / "m.csv", [1, 2, 3])
    planner = FilePlanner(source_of(tmp_path))
    first = planner.plan(Position(), max_records=2)
    write(tmp_path / "a.csv", [4])
    second = planner.plan(first.end)
    assert [(part.file, part.index, part.start_row, part.end_row) for part in second.ranges] == [
        ("m.csv", 0, 2, None),
        ("a.csv", 1, 0, None),
    ]
    assert second.end.files == (("m.csv", (tmp_path / "m.csv").stat().st_size), ("a.csv", (tmp_path / "a.csv").stat().st_size))
    assert planner.plan(second.end) is None
    (tmp_path / "m.csv").unlink()  # read to its end, so it may go
    assert planner.plan(second.end) is None
    write(tmp_path / "0.csv", [5])
    assert [part.index for part in planner.plan(second.end).ranges] == [2]


def test_a_file_that_changed_is_an_error(tmp_path):
    write(tmp_path / "a.csv", [1, 2, 3])
    planner = FilePlanner(source_of(tmp_path))
    position = planner.plan(Position(), max_records=1).end
    write(tmp_path / "a.csv", [1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"a\.csv' changed while it was read"):
        planner.plan(position)
    (tmp_path / "a.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.csv' is gone after 1 "):
        planner.plan(position)


def test_waiting_for_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        FilePlanner(source_of(tmp_path)).plan(Position())
    planner = FilePlanner(source_of(tmp_path), wait_for_files=True)
    assert planner.plan(Position()) is None
    (tmp_path / "a.csv").write_text("p,t\n")
    assert planner.plan(Position()) is None
    write(tmp_path / "b.csv", [1])
    assert planner.plan(Position()).rows == 1
    with pytest.raises(ValueError, match="max_records wants at least 1, got 0"):
        planner.plan(Position(), max_records=0)


def test_each_file_is_decoded_once(tmp_path, monkeypatch):
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, range(100))
    source, opened = source_of(tmp_path), []
    decode = planning.read_range.__globals__["decode"]
    monkeypatch.setitem(
        planning.read_range.__globals__, "decode", lambda path, *rest: opened.append(path) or decode(path, *rest)
    )
    planner, position, rows = FilePlanner(source), Position(), 0
    while plan := planner.plan(position, max_records=7):
        rows += sum(piece.rows for piece in read_ranges(source, plan.ranges))
        position = plan.end
    assert (rows, len(opened)) == (200, 2)
    assert planner.plan(position) is None and len(opened) == 2
    monkeypatch.setattr(planning, "CACHE_BYTES", 1)  # too large to keep: read again
    plan = FilePlanner(source).plan(Position())
    assert sum(piece.rows for piece in read_ranges(source, plan.ranges)) == 200 and len(opened) == 6


def test_an_unreadable_file_is_told_once(tmp_path):
    lines = "".join(f"{row},{row}\n" for row in range(5000))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(f"p,t\n{lines}".encode())[:-9])
    write(tmp_path / "b.csv", [7])
    source = source_of(tmp_path)
    for max_records in (None, 100, 4990):
        planner, position, letters, rows = FilePlanner(source), Position(), [], 0
        while plan := planner.plan(position, max_records):
            for piece in read_ranges(source, plan.ranges):
                letters += piece.dead.to_pylist()
                rows += piece.rows
            position = plan.end
        assert [letter["reason"] for letter in letters] == ["unreadable_file"]
        assert 4900 < rows <= 5001


# --- in Beam ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True])
def test_read_files_in_a_pipeline(tmp_path, ordered):
    write(tmp_path / "a.csv", [1, 5, 3], bad=[1])
    write(tmp_path / "b.csv", [2, 9])
    pipeline = beam.Pipeline(runner=FnApiRunner())
    batches, dead = pipeline | ReadFiles(source_of(tmp_path), ordered=ordered)
    columns = ["source", "row", "watermark_us"] if ordered else ["source", "row"]
    rows = batches | beam.FlatMap(lambda batch: [tuple(row.values()) for row in batch.select(columns).to_pylist()])
    expected = [("a.csv", 0, MIN_WATERMARK_US), ("a.csv", 2, 1), ("b.csv", 0, 3), ("b.csv", 1, 3)]
    assert_that(rows, equal_to([row[: len(columns)] for row in expected]), label="rows")
    letters = dead | "letters" >> beam.FlatMap(
        lambda batch: [(row["source"], row["row"], row["reason"]) for row in batch.to_pylist()]
    )
    assert_that(letters, equal_to([("a.csv", 1, "unparsable")]), label="letters are right")
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_namespace("midstream"))["counters"]
    assert {counter.key.metric.name: counter.committed for counter in counters if counter.committed} == {
        "records": 5,
        "dead_letters": 1,
    }


def test_read_files_of_a_plan(tmp_path):
    write(tmp_path / "a.csv", range(10))
    source = source_of(tmp_path)
    planner = FilePlanner(source)
    first = planner.plan(Position(), max_records=4)
    second = planner.plan(first.end, max_records=3)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        batches, _ = pipeline | ReadFiles(source, second, ordered=True)
        rows = batches | beam.FlatMap(
            lambda batch: zip(*batch.select(["row", "watermark_us"]).to_pydict().values(), strict=True)
        )
        assert_that(rows, equal_to([(4, 3), (5, 4), (6, 5)]))
