"""Versions assigned and predicted inside Beam: lineage, cold start, versions that fail, and what Beam counts."""

from __future__ import annotations

import pickle
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from models.activation_log import Activation
from models.registry import Registry
from models.timeline import Timeline
from tests.pipelines import jobs
from transforms.batches import EVENT_TIME, NAME_TYPE, ROW, SEQUENCE, SOURCE, TIME_TYPE
from transforms.inference import BatchModelHandler, Predict
from transforms.model_timeline import AssignVersions, Request

OUTPUTS = pa.schema([("score", pa.float32()), ("prediction", pa.int64())])


def records(times: list[int]) -> pa.RecordBatch:
    rows = len(times)
    return pa.record_batch(
        {
            "a": np.arange(rows, dtype=np.float64),
            "b": np.ones(rows),
            EVENT_TIME: pa.array(times, TIME_TYPE),
            SOURCE: pa.array(["f"] * rows).dictionary_encode().cast(NAME_TYPE),
            ROW: pa.array(range(rows), pa.int64()),
            SEQUENCE: pa.array(range(rows), pa.int64()),
        }
    )


def activation(sequence: int, version: int, effective_from_us: int) -> Activation:
    return Activation(sequence, "line", version, effective_from_us, "test", "test", "2026-01-01T00:00:00Z")


def predict(
    registry: Path, batch: pa.RecordBatch, log: list[Any], max_requests: int = 1
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    folder = tempfile.mkdtemp()  # a list would be copied into the worker
    pipeline = beam.Pipeline(runner=FnApiRunner())
    timelines = pipeline | "log" >> beam.Create(log, reshuffle=False)
    rows = pipeline | "rows" >> beam.Create([batch], reshuffle=False).with_output_types(pa.RecordBatch)
    handler = BatchModelHandler(str(registry), "line", OUTPUTS, max_requests=max_requests)
    predictions, dead = rows | AssignVersions(timelines) | Predict(handler)
    for name, output in (("predictions", predictions), ("dead", dead)):
        output | name >> beam.Map(_leave, folder, name)
    result = pipeline.run()
    result.wait_until_finish()
    given: dict[str, list[dict[str, Any]]] = {"predictions": [], "dead": []}
    for file in Path(folder).iterdir():
        given[file.name.partition("-")[0]] += pq.read_table(file).to_pylist()
    shutil.rmtree(folder)
    counted = result.metrics().query(MetricsFilter().with_namespace("midstream"))["counters"]
    return given, {counter.key.metric.name: counter.committed for counter in counted}


def _leave(rows: pa.RecordBatch, folder: str, name: str) -> None:
    pq.write_table(pa.Table.from_batches([rows]), f"{folder}/{name}-{uuid.uuid4().hex}")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry")
    for slope in (1.0, 2.0):
        jobs.publish(folder / "models", jobs.save_module(folder / str(slope), slope), activate=False)
    return folder / "models"


def test_each_record_has_the_version_of_its_time_and_its_lineage(registry: Path) -> None:
    # The log comes in two kinds, as in a closed loop: what was there before the run, and what the run itself activates.
    log = [Timeline.of([activation(1, 1, 10)]), activation(2, 2, 30)]
    given, counts = predict(registry, records([5, 10, 20, 30, 40]), log)
    rows = sorted(given["predictions"], key=lambda row: row[SEQUENCE])
    assert [row["version"] for row in rows] == [0, 1, 1, 2, 2]
    assert [row["score"] for row in rows] == [None, 2.0, 3.0, 7.0, 9.0]
    assert [row["policy"] for row in rows] == ["cold_start", "as_of", "as_of", "as_of", "as_of"]
    digests = [Registry(str(registry)).manifest("line", version).digests.version for version in (1, 2)]
    assert [row["digest"] for row in rows] == [None, *digests[:1] * 2, *digests[1:] * 2]
    assert given["dead"] == []
    assert counts["predictions"] == 5
    assert counts["swaps"] == 2


def test_records_out_of_order_are_sorted_to_their_versions(registry: Path) -> None:
    given, _ = predict(registry, records([40, 10, 30, 5]), [activation(1, 1, 10), activation(2, 2, 30)])
    assert {row[SEQUENCE]: row["version"] for row in given["predictions"]} == {0: 2, 1: 1, 2: 2, 3: 0}


@pytest.mark.parametrize("max_requests", [1, 4])  # one by one, or side by side
def test_a_version_that_is_not_there_takes_only_its_own_records(registry: Path, max_requests: int) -> None:
    log = [activation(1, 1, 0), activation(2, 77, 20), activation(3, 2, 40)]
    given, _ = predict(registry, records([0, 20, 30, 40]), log, max_requests)
    assert sorted((row[SEQUENCE], row["version"]) for row in given["predictions"]) == [(0, 1), (3, 2)]
    assert sorted(row[SEQUENCE] for row in given["dead"]) == [1, 2]
    assert {row["reason"] for row in given["dead"]} == {"inference_failed"}
    assert all("77" in row["detail"] for row in given["dead"])


def test_a_version_that_gives_something_else_is_not_taken(registry: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    class Other(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "a"), tf.TensorSpec([None], tf.float32, "b")])
        def predict(self, a, b):
            return {"score": tf.cast(a + b, tf.float64), "prediction": tf.zeros_like(a, tf.int64)}

    module = Other()
    tf.saved_model.save(module, str(tmp_path / "other"), signatures={"serving_default": module.predict})
    version = Registry(str(registry)).publish("line", str(tmp_path / "other")).version
    given, _ = predict(registry, records([0, 1]), [activation(1, version, 0)])
    assert given["predictions"] == []
    assert all("score" in row["detail"] and "float" in row["detail"] for row in given["dead"])
    assert len(given["dead"]) == 2


def test_what_holds_some_rows_is_pickled_without_those_beside_them() -> None:
    batch = records(list(range(10_000)))
    slim = pickle.dumps(Request(3, batch.slice(500, 10)))
    assert len(slim) < 10_000
    assert pickle.loads(slim).batch.equals(batch.slice(500, 10))
