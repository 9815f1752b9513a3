"""The ways to get from a file of records to a Parquet file of predictions that are compared.

Each takes the folder of `bench.data`, a file of records and an output folder, and leaves Parquet with a column `score` there.
What it imports is imported by `prepare`, before the clock runs; loading the model, building a graph and all else counts.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from bench.data import FEATURES

REGISTRY, MODEL = "registry", "mlp"
_IMPORTS = {
    "bare": ("tensorflow", "models.registry"),
    "beam": ("tensorflow", "apache_beam", "apache_beam.ml.inference.tensorflow_inference"),
    "tfx-bsl": ("tensorflow", "apache_beam", "tfx_bsl.public.beam", "tensorflow_serving.apis.prediction_log_pb2"),
    "midstream": ("pipelines.execute", "pipelines.template", "models.learning"),
}
_BLOCK_BYTES = 4 << 20
_ROW_GROUP_ROWS = 131_072


def prepare(name: str) -> None:
    """Imports what a contender needs."""
    for module in _IMPORTS[name]:
        importlib.import_module(module)


def bare(data: Path, records: Path, output: Path, batch_rows: int) -> dict[str, Any]:
    """A loop without Beam: Arrow reads and writes, the SavedModel's signature is called on `batch_rows` at a time.

    It writes the columns that Midstream writes, in row groups of the same size, with the same compression.
    """
    import tensorflow as tf

    from models.registry import Registry

    manifest = Registry(str(data / REGISTRY)).manifest(MODEL, 1)
    predict = tf.saved_model.load(str(data / REGISTRY / MODEL / "1")).signatures["serving_default"]
    writer, held, held_rows, row = None, [], 0, 0
    for block in _blocks(records):
        given: dict[str, list[np.ndarray]] = {"prediction": [], "score": []}
        features = [(name, block.column(name).to_numpy()) for name in FEATURES]
        for start in range(0, block.num_rows, batch_rows):
            outputs = predict(**{name: tf.constant(values[start : start + batch_rows]) for name, values in features})
            for name, pieces in given.items():
                pieces.append(outputs[name].numpy())
        outputs = {name: np.concatenate(pieces) for name, pieces in given.items()}
        held.append(_with_lineage(outputs, row, records.name, manifest.digests.version))
        held_rows, row = held_rows + block.num_rows, row + block.num_rows
        if held_rows >= _ROW_GROUP_ROWS:
            writer, held, held_rows = _write(writer, output, held), [], 0
    if held:
        writer = _write(writer, output, held)
    if writer is not None:
        writer.close()
    return {}


def _blocks(records: Path) -> Iterator[pa.RecordBatch]:
    if records.suffix == ".parquet":
        return pq.ParquetFile(records).iter_batches(_ROW_GROUP_ROWS)
    return iter(
        pacsv.open_csv(
            records,
            pacsv.ReadOptions(block_size=_BLOCK_BYTES),
            convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(FEATURES, pa.float32())),
        )
    )


def _with_lineage(outputs: dict[str, np.ndarray], row: int, source: str, digest: str) -> pa.RecordBatch:
    rows = len(outputs["score"])
    numbers = np.arange(row, row + rows)

    def name(text: str) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [text])

    columns = {
        "event_time": pa.array(numbers * 1_000_000).cast(pa.timestamp("us", tz="UTC")),
        "source": name(source),
        "row": pa.array(numbers),
        "sequence": pa.array(numbers),
        **{key: pa.array(values) for key, values in outputs.items()},
        "model": name(MODEL),
        "version": pa.repeat(pa.scalar(1, pa.int64()), rows),
        "digest": name(digest),
        "policy": name("as_of"),
    }
    return pa.record_batch(columns)


def _write(writer: pq.ParquetWriter | None, output: Path, held: list[pa.RecordBatch]) -> pq.ParquetWriter:
    table = pa.Table.from_batches(held)
    if writer is None:
        writer = pq.ParquetWriter(output / "part.parquet", table.schema)
    writer.write_table(table, row_group_size=_ROW_GROUP_ROWS)
    return writer


def beam(data: Path, records: Path, output: Path) -> dict[str, Any]:
    """Beam's RunInference over rows with its handler for Keras, as its documentation shows it.

    Lines are parsed here, as Beam's own `ReadFromCsv` does not work with pandas 3, which Midstream's environment has.
    """
    import apache_beam
    from apache_beam.ml.inference.base import RunInference
    from apache_beam.ml.inference.tensorflow_inference import TFModelHandlerNumpy

    with _direct_pipeline() as pipeline:
        (
            pipeline
            | apache_beam.io.ReadFromText(str(records), skip_header_lines=1)
            | apache_beam.Map(lambda line: np.array(line.split(","), np.float32))
            | RunInference(TFModelHandlerNumpy(str(data / "model.keras")))
            | apache_beam.Map(_beam_row)
            | apache_beam.io.WriteToParquet(str(output / "part"), _RIVAL_SCHEMA, file_name_suffix=".parquet")
        )
    return {}


def tfx_bsl(data: Path, records: Path, output: Path) -> dict[str, Any]:
    """tfx-bsl's RunInference over serialised tf.Example."""
    import apache_beam
    from tfx_bsl.public.beam import RunInference
    from tfx_bsl.public.proto import model_spec_pb2

    spec = model_spec_pb2.InferenceSpecType(
        saved_model_spec=model_spec_pb2.SavedModelSpec(model_path=str(data / "examples"), signature_name=["serving_default"])
    )
    with _direct_pipeline() as pipeline:
        (
            pipeline
            | apache_beam.io.ReadFromTFRecord(str(records))
            | RunInference(spec)
            | apache_beam.Map(_tfx_row)
            | apache_beam.io.WriteToParquet(str(output / "part"), _RIVAL_SCHEMA, file_name_suffix=".parquet")
        )
    return {}


_RIVAL_SCHEMA = pa.schema([("score", pa.float32()), ("model", pa.string())])


def _direct_pipeline() -> Any:
    from apache_beam import Pipeline
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    return Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))  # the in-process one, as for Midstream


def _beam_row(result: Any) -> dict[str, Any]:
    return {"score": float(np.asarray(result.inference)[1]), "model": str(result.model_id)}


def _tfx_row(log: Any) -> dict[str, Any]:
    return {"score": log.predict_log.response.outputs["score"].float_val[0], "model": MODEL}


def midstream(
    data: Path, records: Path, output: Path, mode: str, runner: str = "direct", parallelism: int = 1
) -> dict[str, Any]:
    """Midstream's template `serve`, from its parameters to its report, as `midstream run serve` does it.

    Returns:
        `parquet_s`: seconds until the last Parquet file was in its place; after it come the summary and the report.
        `problems`: what the summary complains of.
    """
    from pipelines import template
    from pipelines.execute import Execution

    started = time.perf_counter()
    found, here = template.load("serve")
    given = {"input": str(records), "registry": str(data / REGISTRY), "model": MODEL, "output": str(output), "mode": mode}
    clock = _Clock()
    job = found.fill(given, here)
    job = job.model_copy(update={"run": job.run.model_copy(update={"runner": runner, "parallelism": parallelism})})
    outcome = Execution(job, progress=clock).run()
    return {"parquet_s": clock.last - started, "problems": outcome.problems}


class _Clock:
    """A `pipelines.execute.Progress` that notes when the last output was in its place."""

    last = 0.0

    def committed(self, records: int, resolved: Any, parts: dict[str, list[Path]]) -> None:
        self.last = time.perf_counter()


CONTENDERS: dict[str, Callable[..., dict[str, Any]]] = {"bare": bare, "beam": beam, "tfx-bsl": tfx_bsl, "midstream": midstream}
