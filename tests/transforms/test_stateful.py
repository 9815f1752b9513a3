"""Operators inside Beam: state from run to run, shards, and the coder that carries rows between workers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam import coders
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batch_coder import RecordBatchCoder
from transforms.batches import MAX_WATERMARK_US, NAME_TYPE, SEQUENCE, TIME_TYPE
from transforms.bounded_run import BoundedRun, ReadRun, ReadTask
from transforms.file_source import Range
from transforms.operators import State, Tables
from transforms.sinks import WriteParquet
from transforms.stateful import Advance, read_state, write_state


class Totals:
    """Counts rows a key; gives the counts, with the watermark, once the watermark is at 100."""

    outputs = ("out", "seen")

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        tables = [table.select(["key"]) for table in (state.get("rows"), inputs.get("in")) if table is not None]
        rows = pa.concat_tables(tables) if tables else pa.table({"key": pa.array([], pa.string())})
        seen = inputs.get("in")
        given: dict[str, pa.Table] = {} if seen is None else {"seen": seen}
        if watermark_us >= 100 and rows.num_rows:
            given["out"] = rows.group_by("key").aggregate([([], "count_all")])
            rows = rows.slice(0, 0)
        return {"rows": rows}, given


def batch(sequence: list[int], keys: list[str]) -> pa.RecordBatch:
    return pa.record_batch({SEQUENCE: pa.array(sequence, pa.int64()), "key": pa.array(keys)})


def run_once(
    tmp_path: Path, run: BoundedRun, batches: list[pa.RecordBatch], shards: int = 1
) -> dict[str, list[Mapping[str, object]]]:
    file = str(tmp_path / "run.json")
    run.write(file)
    given: dict[str, list[Mapping[str, object]]] = {"out": [], "seen": []}
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        runs = pipeline | ReadRun(file)
        rows = pipeline | beam.Create(batches, reshuffle=False).with_output_types(pa.RecordBatch)
        outputs = {"in": rows} | Advance(Totals(), "totals", runs, shard_by=("key",), shards=shards)
        for tag, rows in outputs.items():
            folder = tmp_path / tag / str(run.number)
            folder.mkdir(parents=True)
            {str(folder): rows | tag >> beam.Map(_with_sequence)} | f"write {tag}" >> WriteParquet(runs)
    for tag in given:
        for part in sorted((tmp_path / tag / str(run.number)).iterdir()):
            assert part.name == f"part-{run.number:06d}-00000.parquet"
            given[tag] += pq.read_table(part).to_pylist()
    return given


def _with_sequence(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows if SEQUENCE in rows.schema.names else rows.append_column(SEQUENCE, pa.array(np.arange(rows.num_rows)))


@pytest.mark.parametrize("shards", [1, 3])
def test_state_goes_from_run_to_run(tmp_path: Path, shards: int) -> None:
    states = [tmp_path / "state" / str(number) for number in range(3)]
    first = BoundedRun(0, {}, 10, None, str(states[0]))
    rows = [batch([3, 1], ["a", "b"]), batch([0, 2], ["c", "a"])]
    given = run_once(tmp_path, first, rows, shards)
    assert given["out"] == []
    if shards == 1:
        assert [row[SEQUENCE] for row in given["seen"]] == [0, 1, 2, 3], "rows come in order of arrival, whatever the bundles"
    # Nothing new comes, yet the watermark passes: every shard has to run.
    given = run_once(tmp_path, BoundedRun(1, {}, 100, str(states[0]), str(states[1])), [], shards)
    assert {row["key"]: row["count_all"] for row in given["out"]} == {"a": 2, "b": 1, "c": 1}
    given = run_once(tmp_path, BoundedRun(2, {}, MAX_WATERMARK_US, str(states[1]), None), [], shards)
    assert given["out"] == []
    assert not states[2].exists()


def test_a_run_that_is_done_again_replaces_its_files(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for _ in range(2):
        for tag in ("out", "seen"):
            for file in (tmp_path / tag).glob("0/*"):
                file.unlink()
            if (tmp_path / tag / "0").exists():
                (tmp_path / tag / "0").rmdir()
        given = run_once(tmp_path, BoundedRun(0, {}, 100, None, str(state)), [batch([0, 1], ["a", "a"])])
        assert given["out"] == [{"key": "a", "count_all": 2, SEQUENCE: 0}]
    assert [file.name for file in state.iterdir()] == ["totals-00000.arrow"]


def test_more_shards_want_a_key() -> None:
    with pytest.raises(ValueError, match="shard by"):
        Advance(Totals(), "totals", None, shards=2)


columns = st.dictionaries(
    st.text(min_size=1, max_size=5), st.lists(st.integers(-(2**60), 2**60), min_size=3, max_size=3), min_size=1
)


@settings(max_examples=50, deadline=None)
@given(names=columns)
def test_states_survive_the_disk(tmp_path_factory: pytest.TempPathFactory, names: dict[str, list[int]]) -> None:
    path = str(tmp_path_factory.mktemp("state") / "state.arrow")
    tables = {name: pa.table({name: values}).replace_schema_metadata({"k": "v"}) for name, values in names.items()}
    tables["empty"] = pa.table({"x": pa.array([], NAME_TYPE)})
    write_state(path, tables)
    back = read_state(path)
    assert back.keys() == tables.keys()
    assert all(back[name].equals(tables[name], check_metadata=True) for name in tables)


def test_the_coder_writes_only_the_rows_of_a_slice() -> None:
    rows = pa.record_batch(
        {
            "event_time": pa.array(range(1000), TIME_TYPE),
            "source": pa.array(["a", None] * 500).dictionary_encode().cast(NAME_TYPE),
            "vector": pa.array([[1.0, 2.0]] * 1000, pa.list_(pa.float32(), 2)),
        }
    )
    coder = RecordBatchCoder()
    piece = rows.slice(10, 5)
    encoded = coder.encode(piece)
    assert coder.decode(encoded).equals(piece)
    assert len(encoded) < len(coder.encode(rows)) / 10
    assert isinstance(coders.registry.get_coder(pa.RecordBatch), RecordBatchCoder)


def test_batches_of_a_collection_use_the_coder() -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        rows = pipeline | beam.Create([batch([1], ["a"])], reshuffle=False).with_output_types(pa.RecordBatch)
        assert isinstance(coders.registry.get_coder(rows.element_type), RecordBatchCoder)
        assert_that(rows | beam.Map(lambda given: given.to_pylist()), equal_to([[{SEQUENCE: 1, "key": "a"}]]))


def test_a_run_is_the_same_behind_its_file(tmp_path: Path) -> None:
    run = BoundedRun(7, {"records": (ReadTask((Range("a", 0, 3, None), Range("b", 1, 0, 9)), -5),)}, 12, "in", "out")
    run.write(str(tmp_path / "run.json"))
    assert BoundedRun.read(str(tmp_path / "run.json")) == run
