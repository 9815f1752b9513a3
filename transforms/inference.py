"""Predictions through Beam's RunInference, on whole RecordBatches, with their lineage.

RunInference is given one model for good: the process's `ModelCache`. Each request names the version it wants, so a swap
never touches what RunInference holds, and its metrics and batching options stay in use.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference
from apache_beam.pvalue import TaggedOutput

from models.preloading import watch
from models.serving import DEFAULT_BLOCK_ROWS, DEFAULT_MAX_VERSIONS, ModelCache, ModelError, ServedModel, shared_cache
from models.timeline import COLD_START
from transforms.batches import NAME_TYPE
from transforms.dead_letters import dead_letters
from transforms.model_timeline import Request

LINEAGE = pa.schema(
    [
        pa.field("model", NAME_TYPE),
        pa.field("version", pa.int64()),
        pa.field("digest", NAME_TYPE),
        pa.field("policy", NAME_TYPE),
    ]
)


OnLoadFailure: TypeAlias = Literal["previous", "hold", "dead_letter"]
ABSTAIN = "abstain"  # an output that is 1 where the others mean nothing
_SILENCED = ("prediction", "score")
_PREDICTED, _FAILED = "predicted", "failed"
_TRIES = 3
_POLICY_CHARACTERS = 300


class VersionUnavailable(OSError):
    """A version that cannot be loaded, where its records are to wait for it."""


class BatchModelHandler(ModelHandler[Request, PredictionResult, ModelCache]):
    """A ModelHandler whose examples are `Request`s: some rows and the version that is to predict them."""

    def __init__(
        self,
        registry: str,
        model: str,
        outputs: pa.Schema,
        *,
        prefix: str = "",
        policy: str = "as_of",
        block_rows: int = DEFAULT_BLOCK_ROWS,
        max_versions: int = DEFAULT_MAX_VERSIONS,
        max_requests: int = 1,
        on_load_failure: OnLoadFailure = "dead_letter",
        preload: bool = False,
    ) -> None:
        """Creates the handler.

        Args:
            registry: root folder of the registry.
            model: name of the model.
            outputs: the model's outputs as Arrow columns; what a version gives is checked against it.
            prefix: put before the names of all columns that are added.
            policy: how versions were chosen, for the lineage.
            block_rows: TensorFlow is given this many rows at a time, always.
            max_versions: versions kept in memory.
            max_requests: requests that are predicted at a time, side by side on the cores there are; they wait for one another.
            on_load_failure: what becomes of rows whose version does not load after some tries: `previous` predicts them with
                the version before, and the lineage tells which was requested and why another was used; `hold` stops the job,
                so that they wait; `dead_letter` puts them there.
            preload: get new versions ready before their boundary, beside those that predict.
        """
        super().__init__()
        self._registry, self._model, self._outputs, self._prefix, self._policy = registry, model, outputs, prefix, policy
        self._block_rows, self._max_versions, self._max_requests = block_rows, max_versions, max_requests
        self._on_load_failure, self._preload = on_load_failure, preload

    def load_model(self) -> ModelCache:
        cache = shared_cache(self._registry, block_rows=self._block_rows, max_versions=self._max_versions)
        if self._preload:
            watch(cache, self._model)
        return cache

    def run_inference(
        self, batch: Sequence[Request], model: ModelCache, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        given = (
            _side_by_side().map(self._tried, batch, [model] * len(batch))
            if len(batch) > 1
            else map(self._tried, batch, [model])
        )
        for request, inference in zip(batch, given, strict=True):
            yield PredictionResult(request, inference, f"{self._model}/{request.version}")

    def _tried(self, request: Request, cache: ModelCache) -> pa.RecordBatch | ModelError:
        """The rows with their predictions, or why there are none: a request that fails takes only its own rows with it."""
        try:
            return self._predict(request, cache)
        except ModelError as error:
            return error

    def _predict(self, request: Request, cache: ModelCache) -> pa.RecordBatch:
        rows = request.batch.num_rows
        if request.version == COLD_START:
            columns = [pa.nulls(rows, field.type) for field in self._outputs]
            lineage = [None, COLD_START, None, "cold_start"]
        else:
            served, policy = self._served(request, cache)
            given = _silenced(served.predict(request.batch))
            columns = [given.get(field.name) for field in self._outputs]
            for field, column in zip(self._outputs, columns, strict=True):
                if column is None or column.type != field.type:
                    raise ModelError(
                        f"version {served.manifest.version} of {self._model}: output {field.name!r} was to be {field.type}, "
                        f"came as {'nothing' if column is None else column.type}"
                    )
            lineage = [self._model, served.manifest.version, served.manifest.digests.version, policy]
        batch = request.batch
        for field, column in zip(self._outputs, columns, strict=True):
            batch = batch.append_column(pa.field(self._prefix + field.name, field.type), column)
        for field, value in zip(LINEAGE, lineage, strict=True):
            batch = batch.append_column(pa.field(self._prefix + field.name, field.type), _constant(value, rows, field.type))
        return batch

    def _served(self, request: Request, cache: ModelCache) -> tuple[ServedModel, str]:
        """The version to predict with, and what the lineage says of how it was chosen."""
        try:
            return cache.get(self._model, request.version, tries=_TRIES), request.policy or self._policy
        except ModelError as error:
            if self._on_load_failure == "hold":
                raise VersionUnavailable(f"{error}. Its records wait until it loads: put its folder back as it was") from error
            if self._on_load_failure == "dead_letter" or request.previous == COLD_START:
                raise
            served = cache.get(self._model, request.previous, tries=_TRIES)
            return served, f"previous: version {request.version} was requested; {error}"[:_POLICY_CHARACTERS]

    def batch_elements_kwargs(self) -> dict[str, int]:
        return {"min_batch_size": self._max_requests, "max_batch_size": self._max_requests}

    def get_num_bytes(self, batch: Sequence[Request]) -> int:
        return sum(request.batch.nbytes for request in batch)

    def get_metrics_namespace(self) -> str:
        return "midstream_inference"


class Predict(beam.PTransform):
    """PCollection of `Request`s to (predictions, dead letters), both RecordBatches."""

    def __init__(self, handler: BatchModelHandler) -> None:
        super().__init__()
        self._handler = handler

    def expand(self, requests: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
        results = requests | RunInference(self._handler)
        predicted = beam.ParDo(_Predicted()).with_output_types(pa.RecordBatch)
        given = results | "predictions" >> predicted.with_outputs(_FAILED, main=_PREDICTED)
        return given[_PREDICTED], given[_FAILED]


class _Predicted(beam.DoFn):
    def __init__(self) -> None:
        self._rows = Metrics.counter("midstream", "predictions")

    def process(self, result: PredictionResult) -> Iterator[pa.RecordBatch | TaggedOutput]:
        if isinstance(result.inference, ModelError):
            yield TaggedOutput(_FAILED, dead_letters(result.example.batch, "inference_failed", str(result.inference)))
            return
        self._rows.inc(result.inference.num_rows)
        yield result.inference


@lru_cache(maxsize=1)
def _side_by_side() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "predict")


def _silenced(given: dict[str, pa.Array]) -> dict[str, pa.Array]:
    """The outputs of a model that may abstain, with nulls for a prediction where it does."""
    if ABSTAIN not in given:
        return given
    silent = pc.equal(given[ABSTAIN], 1)
    return {
        name: pc.if_else(silent, pa.scalar(None, column.type), column) if name in _SILENCED else column
        for name, column in given.items()
    }


def _constant(value: Any, rows: int, kind: pa.DataType) -> pa.Array:
    """A column of one value; names as a dictionary of one entry, so that it costs four bytes a row."""
    if not pa.types.is_dictionary(kind):
        return pa.repeat(pa.scalar(value, kind), rows)
    indices = pa.nulls(rows, kind.index_type) if value is None else pa.repeat(pa.scalar(0, kind.index_type), rows)
    return pa.DictionaryArray.from_arrays(indices, pa.array([] if value is None else [value], kind.value_type))
