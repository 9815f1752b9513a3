"""The graph of a job.

    records -> steps -> features --------------------------> versions assigned -> inference -> predictions
                           |                                        ^ side input
    labels ----------------+-> joined -> learnt -> activated -------+

Without labels the rows themselves are learnt, window by window of event time.

The same graph serves a batch and each micro-batch, in which it is built once, and a continuous job; see `pipelines.modes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

import transforms.batch_coder  # noqa: F401  registers the coder of RecordBatches
from pipelines.drifting import response, watch
from pipelines.job import JobSpec
from pipelines.labelled import known_classes
from pipelines.modes import Mode
from pipelines.steps import Apply, Stage
from transforms.batches import EVENT_TIME, ROW, SEQUENCE, SOURCE, WATERMARK
from transforms.cold_start import HoldUntilActivated, as_rows
from transforms.dead_letters import dead_letters
from transforms.drift_monitor import DRIFT
from transforms.inference import LINEAGE, BatchModelHandler, Predict
from transforms.label_context import LabelContext
from transforms.label_join import LABEL_TIME, LabelJoin, own_labels
from transforms.model_timeline import Choice
from transforms.operators import Chain
from transforms.prequential import Prequential
from transforms.sources import Source
from transforms.training import EVENTS, Train

RECORDS, LABELS = "records", "labels"  # the sources
PREDICTIONS, EVALUATIONS, DEAD_LETTERS = "predictions", "evaluations", "dead_letters"
METRICS = "metrics"
FIRST = "first_"  # prefix of what the first version said, where it is compared with
BESIDE = "beside_"  # prefix of what a challenger said, or whom a challenger is compared with
_REQUESTS_TOGETHER = 4  # pieces of a bounded run, each of one version, that are predicted at a time
_IDENTITY = [EVENT_TIME, SOURCE, ROW, SEQUENCE]


@dataclass(frozen=True)
class Resolved:
    """A job made ready to run: sources opened, steps checked, the model's outputs known.

    Attributes:
        job: as given.
        records: the source of the records.
        labels: the source of the labels, if they have one of their own.
        stages: the steps.
        features: schema of the rows that the model is given.
        outputs: the model's outputs as Arrow columns; None for a job that only learns.
        first_version: the version to learn on from; None for a job that only serves.
        context: gives each record the labels known so far; None for a learner that does not want them.
        watched: the columns that are compared with those of the training rows; none without a monitor.
    """

    job: JobSpec
    records: Source
    labels: Source | None
    stages: Sequence[Stage]
    features: pa.Schema
    outputs: pa.Schema | None
    first_version: int | None
    context: LabelContext | None = None
    watched: tuple[str, ...] = ()

    @property
    def ordered(self) -> bool:
        """Whether the result depends on the order in which records came, so that they must be read in that order."""
        return (
            self.job.labels is not None
            or self.job.learner is not None
            or self.job.monitor is not None
            or any(stage.operator is not None for stage in self.stages)
        )

    @property
    def horizon_us(self) -> int:
        """How long after a record its label may become known."""
        labels = self.job.labels
        assert labels is not None
        horizon = labels.horizon if labels.horizon is not None else labels.delay
        assert horizon is not None, "labels have a delay or a horizon"
        return horizon


def outputs_of(job: JobSpec) -> list[str]:
    """The folders that a job may write rows to."""
    figures = job.labels is not None and job.labels.metrics_rows is not None
    some = {EVENTS: job.learner is not None, METRICS: figures, DRIFT: job.monitor is not None}
    return [PREDICTIONS, EVALUATIONS, DEAD_LETTERS, *(name for name, wanted in some.items() if wanted)]


def build(mode: Mode, resolved: Resolved) -> None:
    """Adds a job's graph to the pipeline of a mode."""
    job = resolved.job
    dead: list[beam.PCollection] = []
    rows, bad = mode.read(resolved.records, RECORDS, resolved.ordered)
    dead.append(bad)
    labels = None
    if job.labels is not None:
        rows, labels = _labels(mode, rows, resolved, dead)
    # A job that only serves need not wait for labels. One that learns does: a label may still make the version of a record.
    features, failed, late = rows | "steps" >> Apply(resolved.stages, mode.advance, records_only=job.kind == "serve")
    dead += failed

    unmatched = None
    sinks: dict[str, beam.PCollection] = {}
    if job.learner is not None:
        features, learnt = _learn(mode, features, labels, resolved)
        if job.model.cold_start == "hold" and job.kind == "loop":
            features, labels = _hold(mode, features, labels, learnt["activations"])
        dead.append(learnt["refused"])
        unmatched = learnt.get("unmatched")
        sinks[EVENTS] = learnt[EVENTS]

    columns: dict[str, list[str]] = {}
    if job.kind != "learn":
        predictions, failed_inference = _predict(mode, features, resolved)
        dead += failed_inference
        sinks[PREDICTIONS] = predictions
        columns[PREDICTIONS] = prediction_columns(resolved)
        if job.monitor is not None:
            assert resolved.outputs is not None
            sinks[DRIFT] = watch(mode, predictions, job, resolved.watched, resolved.outputs)
        if labels is not None:
            sinks[EVALUATIONS], unmatched = _evaluate(mode, predictions, labels, resolved)
            columns[EVALUATIONS] = evaluation_columns(resolved)
            if job.labels is not None and job.labels.metrics_rows is not None:
                prequential = Prequential(job.labels.column, job.labels.metrics_rows, job.labels.metrics_by)
                sinks[METRICS] = ({"in": sinks[EVALUATIONS]} | mode.advance(prequential, METRICS))[METRICS]
    if unmatched is not None and resolved.labels is not None:
        # A label that is a column of its record needs no letter of its own: if nothing has it, the record itself was one.
        dead.append(unmatched | "unmatched" >> beam.FlatMap(_unmatched).with_output_types(pa.RecordBatch))
    for number, rows_behind in enumerate(late):
        dead.append(rows_behind | f"late {number}" >> beam.Map(_late).with_output_types(pa.RecordBatch))
    sinks[DEAD_LETTERS] = dead | "dead letters" >> beam.Flatten()
    mode.write(sinks, columns, job)


def prediction_columns(resolved: Resolved) -> list[str]:
    """The columns of the predictions, in order."""
    assert resolved.outputs is not None
    own = [*resolved.outputs.names, *LINEAGE.names]
    prefixes = _prefixes(resolved.job)
    return [*_IDENTITY, *resolved.job.keep, *(prefix + name for prefix in prefixes for name in own)]


def evaluation_columns(resolved: Resolved) -> list[str]:
    """The columns of the evaluations, in order."""
    assert resolved.outputs is not None
    assert resolved.job.labels is not None
    own = [*resolved.outputs.names, "version"]
    prefixes = _prefixes(resolved.job)
    labels = resolved.job.labels
    columns = [*_IDENTITY, labels.column, LABEL_TIME, *(prefix + name for prefix in prefixes for name in own)]
    by = [labels.metrics_by] if labels.metrics_by not in (None, *columns) else []
    return [*columns[: len(_IDENTITY) + 2], *map(str, by), *columns[len(_IDENTITY) + 2 :]]


def _prefixes(job: JobSpec) -> list[str]:
    """Of the columns that each version adds."""
    return ["", *([FIRST] if job.model.compare_with_first else []), *([BESIDE] if job.model.compare else [])]


def _labels(
    mode: Mode, rows: beam.PCollection, resolved: Resolved, dead: list[beam.PCollection]
) -> tuple[beam.PCollection, beam.PCollection]:
    """The records without their labels, and the labels as a stream of their own."""
    section = resolved.job.labels
    assert section is not None
    if resolved.labels is None:
        assert section.delay is not None
        return rows | "split labels" >> SplitLabels(section.column, section.delay)
    labels, bad = mode.read(resolved.labels, LABELS, True)
    dead.append(bad | "bad labels" >> beam.Map(_foreign).with_output_types(pa.RecordBatch))
    return rows, labels


def _join(resolved: Resolved) -> LabelJoin:
    section = resolved.job.labels
    assert section is not None
    return LabelJoin(section.on or (SEQUENCE,), section.column, resolved.horizon_us)


def _learn(
    mode: Mode, features: beam.PCollection, labels: beam.PCollection | None, resolved: Resolved
) -> tuple[beam.PCollection, dict[str, beam.PCollection]]:
    job = resolved.job
    assert job.learner is not None
    assert resolved.first_version is not None
    registry, model = job.model.registry, job.model.name
    train = Train(
        registry,
        model,
        resolved.first_version,
        EVENT_TIME if labels is None else LABEL_TIME,
        job.learner.every,
        job.learner.warm_up_rows,
        job.name,
        job.learner.every_rows,
        response(job, resolved.watched),
        resolved.context.alarm() if resolved.context is not None else None,
    )
    if labels is None:
        return mode.learn(train, {"in": features}, "in", job, None)
    if (classes := known_classes(job)) is None:
        inputs = {"records": features, "labels": labels}
        return mode.learn(Chain(_join(resolved), train), inputs, "records", job, resolved.context)
    labels, unknown = labels | "known classes" >> classes
    if resolved.labels is not None:
        unknown = unknown | "unknown classes" >> beam.Map(_foreign).with_output_types(pa.RecordBatch)
    inputs = {"records": features, "labels": labels}
    features, learnt = mode.learn(Chain(_join(resolved), train), inputs, "records", job, resolved.context)
    return features, learnt | {"refused": (learnt["refused"], unknown) | "not learnt" >> beam.Flatten()}


def _hold(
    mode: Mode, features: beam.PCollection, labels: beam.PCollection | None, activations: beam.PCollection
) -> tuple[beam.PCollection, beam.PCollection | None]:
    """Records, and the labels that will judge their predictions, once there is a version."""
    activated = activations | "activated" >> beam.Map(as_rows).with_output_types(pa.RecordBatch)
    waiting = {"records": features, "activated": activated} | ({} if labels is None else {"labels": labels})
    given = waiting | mode.advance(HoldUntilActivated(), "hold")
    return given["records"], None if labels is None else given["labels"]


def _predict(mode: Mode, features: beam.PCollection, resolved: Resolved) -> tuple[beam.PCollection, list[beam.PCollection]]:
    assert resolved.outputs is not None
    model, failed = resolved.job.model, []
    on_load_failure = model.on_load_failure
    if resolved.job.run.mode == "continuous" and on_load_failure == "previous":
        # What cannot be loaded was taken back before; what goes missing later has served, and has to give the same again.
        on_load_failure = "hold"
    predictions = features
    # The first version goes first: behind the live ones its rows would come in as many pieces as there are versions.
    kinds: dict[str, Literal["live", "first", "beside"]] = {"": "live", FIRST: "first", BESIDE: "beside"}
    for prefix in reversed(_prefixes(resolved.job)):
        handler = BatchModelHandler(
            model.registry,
            model.name,
            resolved.outputs,
            prefix=prefix,
            policy={"": "as_of", FIRST: "first", BESIDE: "beside"}[prefix],
            block_rows=model.block_rows,
            max_versions=model.max_versions,
            max_requests=1 if resolved.job.run.mode == "continuous" else _REQUESTS_TOGETHER,
            on_load_failure=on_load_failure,
            # Where a stream goes on and on. A replay or a batch has all its versions before it.
            preload=resolved.job.run.trigger != "available-now" or resolved.job.run.mode == "continuous",
        )
        choice = Choice(kinds[prefix], model.key or (SEQUENCE,), model.guard or 0, model.cold_start == "hold")
        requests = predictions | f"{prefix}versions" >> mode.versions(resolved.job, choice)
        predictions, dead = requests | f"{prefix}predict" >> Predict(handler)
        failed.append(dead)
    return predictions, failed


def _evaluate(
    mode: Mode, predictions: beam.PCollection, labels: beam.PCollection, resolved: Resolved
) -> tuple[beam.PCollection, beam.PCollection]:
    join = _join(resolved)
    wanted = [name for name in evaluation_columns(resolved) if name not in (join.label, LABEL_TIME)]
    # Rows of windows met no watermark.
    kept = list(dict.fromkeys([*wanted, *join.on, *({WATERMARK} & set(resolved.features.names))]))
    narrow = predictions | "to evaluate" >> beam.Map(lambda batch: batch.select(kept)).with_output_types(pa.RecordBatch)
    given = {"records": narrow, "labels": labels} | mode.advance(join, "evaluate")
    return given["labelled"], given["unmatched"]


class SplitLabels(beam.PTransform):
    """Records that carry their label to (records without it, labels known `delay_us` later)."""

    def __init__(self, label: str, delay_us: int) -> None:
        super().__init__()
        self._label, self._delay_us = label, delay_us

    def expand(self, rows: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
        split = beam.FlatMap(_split, self._label, self._delay_us).with_output_types(pa.RecordBatch)
        given = rows | split.with_outputs(LABELS, main=RECORDS)
        return given[RECORDS], given[LABELS]


def _split(batch: pa.RecordBatch, label: str, delay_us: int) -> Iterator[pa.RecordBatch | TaggedOutput]:
    records, labels = own_labels(batch, label, delay_us)
    yield records
    yield TaggedOutput(LABELS, labels)


def _late(batch: pa.RecordBatch) -> pa.RecordBatch:
    return dead_letters(
        batch, "late", "it came after the watermark had passed its event time; allow more out-of-orderness if it should count"
    )


def _unmatched(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for reason in batch.column("reason").unique().to_pylist():
        rows = batch.filter(pa.compute.equal(batch.column("reason"), reason))
        yield _foreign(dead_letters(rows.drop_columns(["reason"]), str(reason), "the label was not used"))


def _foreign(letters: pa.RecordBatch) -> pa.RecordBatch:
    """Dead letters of the label stream: its sequence numbers are not those of the records, and must not be taken for them."""
    return letters.set_column(letters.schema.get_field_index(SEQUENCE), SEQUENCE, pa.nulls(letters.num_rows, pa.int64()))
