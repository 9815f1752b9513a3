"""Makes a job ready to run: everything that can be found wrong beforehand is found here, with what to do about it."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa

from models.activation_log import LogError
from models.loaded_graph import ModelError
from models.registry import Registry
from models.signature import Signature
from pipelines.cold_start import begin, seed
from pipelines.drifting import response, watched_columns
from pipelines.graph import Resolved, prediction_columns
from pipelines.job import JobSpec, LearnerSection, SourceSection
from pipelines.labelled import label_context, settle
from pipelines.steps import stages
from transforms.batches import EVENT_TIME, NAME_TYPE, RESERVED, ROW, SEQUENCE, SOURCE, TIME_TYPE, WATERMARK
from transforms.label_join import LABEL_TIME
from transforms.schema import Schema, TimeSpec
from transforms.sources import FileSource, Source

_INFERRED_FILES = 10  # so many are looked at: the first ones may be empty or broken
_UNKNOWN = Schema.parse("unknown:string")  # listing files wants a schema and does not look at it


class JobError(Exception):
    """A job that cannot run; says what was expected, what came and what to do."""


def resolve(job: JobSpec) -> Resolved:
    """Opens the sources, checks the steps, and finds out what the model takes and gives.

    Raises:
        JobError: something does not fit.
    """
    check_output(job.output)
    try:
        own_label = job.labels.column if job.labels and job.labels.source is None else None
        records, schema = _source(job.source, _fed_columns(job), own_label)
        if job.learner is not None:
            _check_times(job.source, records)
        labels = _labels_source(job, schema)
        if own_label is not None and own_label not in schema.names:
            raise JobError(f"the records have no label column {own_label!r}; they have {', '.join(schema.names)}")
        columns = _batch_schema(schema, ordered=True)
        if own_label is not None:
            columns = columns.remove(columns.get_field_index(own_label))
        planned, features = stages(job.steps, columns, in_order=job.in_order or job.kind != "serve")
        context = None
        if job.learner is not None and job.labels is not None:
            learner = settle(job, features, records, labels or records)
            job, context = job.model_copy(update={"learner": learner}), label_context(job, learner)
            features = context.check(features) if context is not None else features
    except (ValueError, OSError) as error:
        raise JobError(str(error)) from None
    own = [name for name in features.names if name not in RESERVED]
    if always := [name for name in job.keep if name in RESERVED]:
        raise JobError(
            f"keep: {', '.join(always)} need not be asked for: the predictions have the time, the source and the row in any "
            "case"
        )
    if missing := [name for name in job.keep if name not in own]:
        raise JobError(f"keep: there is no column {', '.join(missing)} behind the steps; there are {', '.join(own)}")
    if missing := [name for name in job.model.key if name not in features.names]:
        raise JobError(f"key: there is no column {', '.join(missing)} behind the steps; there are {', '.join(own)}")
    first_version = _first_version(job, features) if job.learner is not None else None
    signature = _contract(job)
    _check_inputs(job, signature, features, schema)
    outputs = _outputs(signature)
    if job.labels is not None and job.labels.metrics_by not in (None, *job.keep, *outputs.names):
        raise JobError(
            f"labels: metrics_by is one of the columns in `keep` or an output of the model ({', '.join(outputs.names)}); "
            f"{job.labels.metrics_by!r} is not among them"
        )
    if first_version is not None:
        try:
            begin(job, first_version)
        except (ModelError, LogError) as error:
            raise JobError(f"cold_start: {error}") from None
    taken = {*features.names, *((LABEL_TIME,) if job.labels else ())}
    if clash := sorted(taken.intersection([*outputs.names, "model", "version", "digest", "policy"])):
        raise JobError(
            f"the records have columns with names of the model's outputs or of the lineage: {', '.join(clash)}; rename them"
        )
    shown = outputs if job.kind != "learn" else None
    try:
        watched = watched_columns(job, signature, features)
        if job.learner is not None:
            response(job, watched)
    except ValueError as error:
        raise JobError(str(error)) from None
    resolved = Resolved(job, records, labels, planned, features, shown, first_version, context, watched)
    key = job.publish.key if job.publish is not None else None
    if key is not None and shown is not None and key not in (given := prediction_columns(resolved)):
        raise JobError(
            f"the predictions have no column {key!r} for the message's key; they have {', '.join(given)}. Columns of the "
            "records are carried along with `keep`"
        )
    return resolved


def check_output(folder: str) -> None:
    """Makes the output folder.

    Raises:
        JobError: it cannot be written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise JobError(
            f"the output folder {folder} cannot be written: {error.strerror}. Choose another with --param output=DIR"
        ) from None


def _source(
    section: SourceSection, fed: Sequence[str] = (), label: str | None = None, declare: str = "columns"
) -> tuple[Source, Schema]:
    time = TimeSpec(
        section.time.column,
        section.time.unit,
        datetime.fromisoformat(section.time.start),
        timedelta(microseconds=section.time.step),
    )
    if section.kafka is not None:
        from pipelines.topics import topic_source

        topic = topic_source(section, time, declare)
        return topic, topic.schema
    assert section.path is not None, "a source is files or a topic"
    schema = Schema.parse(section.columns) if section.columns else _inferred(section, fed, label, declare)
    source = FileSource(section.path, section.format, schema, time, section.batch_rows, section.out_of_orderness)
    source.list_files()
    return source, schema


def _inferred(section: SourceSection, fed: Sequence[str], label: str | None, declare: str) -> Schema:
    """The schema of the first file that tells one.

    Args:
        section: the source.
        fed: columns that go to the model as they are. A missing value of theirs is a fault of the record unless the user
            declared the column with `?`.
        label: a column that is missing where there is no label, even if it never was in the rows that are looked at.
        declare: the parameter that declares columns.
    """
    assert section.path is not None, "those of a topic are declared"
    faults = []
    for file in FileSource(section.path, section.format, _UNKNOWN).list_files()[:_INFERRED_FILES]:
        try:
            found = Schema.infer(file.path, section.format)
        except ValueError as error:
            faults.append(str(error))
            continue
        return Schema(tuple(replace(c, nullable=c.name == label or (c.nullable and c.name not in fed)) for c in found.columns))
    raise JobError(f"{faults[0].rstrip('.')}. Declare the columns: --param {declare}=price:float64,city:string")


def _check_times(section: SourceSection, records: Source) -> None:
    """A learner goes by time, and rows without one are numbered anew in every file."""
    if section.time.column is not None or not isinstance(records, FileSource):
        return
    names = [file.name for file in records.list_files()]
    if len(names) > 1:
        raise JobError(
            f"the records have no time column and lie in {len(names)} files ({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}). Rows are numbered file by file, so all but the first one's would be late. "
            "Name the column with the time: --param time=COLUMN, or put the rows into one file"
        )


def _fed_columns(job: JobSpec) -> list[str]:
    if any(step.windows is not None for step in job.steps):
        return []
    if job.learner is not None:
        return list(job.learner.features)
    return list(_contract(job).inputs)


def _labels_source(job: JobSpec, records: Schema) -> Source | None:
    section = job.labels
    if section is None or section.source is None:
        return None
    labels, schema = _source(section.source, declare="labels_columns")
    for name in (*section.on, section.column):
        if name not in schema.names:
            raise JobError(f"the labels have no column {name!r}; they have {', '.join(schema.names)}")
    for name in section.on:
        if name not in records.names:
            raise JobError(
                f"labels join records on {name!r}, which the records do not have; they have {', '.join(records.names)}"
            )
        ours, theirs = records[name], schema[name]
        if ours.arrow != theirs.arrow:
            raise JobError(
                f"labels join records on {name!r}, which is {ours.type_text} in the records and {theirs.type_text} in the "
                "labels; "
                "declare both with the same type"
            )
    if job.learner is not None and section.column in records.names:
        raise JobError(
            f"the records have a column {section.column!r}, as the labels do; leave it out of the records' declared columns"
        )
    return labels


def _batch_schema(schema: Schema, *, ordered: bool) -> pa.Schema:
    reserved = {EVENT_TIME: TIME_TYPE, SOURCE: NAME_TYPE, ROW: pa.int64(), SEQUENCE: pa.int64()}
    if ordered:
        reserved[WATERMARK] = pa.int64()
    return pa.schema([*schema.arrow, *(pa.field(name, kind) for name, kind in reserved.items())])


def build_learner(section: LearnerSection, label: str | None) -> object:
    """A fresh learner of `models.learners` as its section says; one that learns without labels is given no `label`."""
    module = importlib.import_module(f"models.learners.{section.algorithm}")
    if not hasattr(module, "LEARNER"):
        raise JobError(f"models.learners.{section.algorithm} is a part of learners and none itself: it has no LEARNER")
    learner, config = module.LEARNER
    wants_label = any(field.name == "label" for field in fields(config))
    if wants_label != (label is not None):
        raise JobError(
            f"learner {section.algorithm} learns {'from labels: give' if wants_label else 'without labels: leave out'} "
            "the section `labels`"
        )
    given = {} if label is None else {"label": label}
    try:
        return learner(config(features=tuple(section.features), **given, **section.options))
    except TypeError as error:
        raise JobError(f"learner {section.algorithm}: {error}") from None


def _first_version(job: JobSpec, features: pa.Schema) -> int:
    """The version to learn on from: the registry's own seed for this job, made now if this is its first run."""
    assert job.learner is not None
    section = _with_features(job, features)
    missing = [name for name in section.features if name not in features.names]
    if missing:
        raise JobError(
            f"learner: there is no column {', '.join(missing)} behind the steps; there are {', '.join(features.names)}"
        )
    try:
        return seed(job, lambda: build_learner(section, job.labels.column if job.labels else None))
    except ValueError as error:
        raise JobError(f"learner {job.learner.algorithm}: {error}") from None


def _with_features(job: JobSpec, columns: pa.Schema) -> LearnerSection:
    """The learner's section with its features: as given, or every numeric column."""
    assert job.learner is not None
    if job.learner.features or job.learner.options.get("text_features"):
        return job.learner
    on = job.labels.on if job.labels else ()  # they name a record, and say nothing of it
    own = [f for f in columns if f.name not in (*RESERVED, *job.keep, *on) and f.name != job.source.time.column]
    numeric = tuple(f.name for f in own if pa.types.is_integer(f.type) or pa.types.is_floating(f.type))
    if not numeric:
        raise JobError(f"learner: there is no numeric column to learn from; there are {', '.join(f.name for f in own)}")
    return job.learner.model_copy(update={"features": numeric})


def _contract(job: JobSpec) -> Signature:
    registry = Registry(job.model.registry)
    versions = registry.versions(job.model.name)
    if not versions:
        known = ", ".join(registry.models()) or "no model at all"
        raise JobError(
            f"the registry {job.model.registry} has no version of {job.model.name!r} (it has {known}). Publish one first: "
            f"midstream publish --registry {job.model.registry} --model {job.model.name} --activate SAVED_MODEL_FOLDER"
        )
    return registry.manifest(job.model.name, versions[-1]).signature


def _check_inputs(job: JobSpec, signature: Signature, features: pa.Schema, schema: Schema) -> None:
    from models.serving import to_numpy

    own = pa.schema([field for field in features if field.name not in RESERVED or field.name in signature.inputs])
    empty = own.empty_table().to_batches()
    rows = empty[0] if empty else pa.RecordBatch.from_pylist([], schema=own)
    for name, field in signature.inputs.items():
        try:
            to_numpy(rows, name, field.dtype, field.shape)
        except ValueError as error:
            raise JobError(
                f"model {job.model.name}: {error}{_declare(job, schema, name, field.dtype) if name in own.names else ''}"
            ) from None


def _declare(job: JobSpec, schema: Schema, name: str, dtype: str) -> str:
    """What to do if the wrong type of a column was only inferred."""
    if job.source.columns or name not in schema.names or dtype == "string":
        return ""
    wanted = ",".join(f"{c.name}:{dtype if c.name == name else c.type_text}" for c in schema.columns)
    return (
        ". Its type was inferred from the first rows. If some of them are wrong, declare it, and they become dead letters: "
        f"--param columns={wanted}"
    )


def _outputs(signature: Signature) -> pa.Schema:
    from models.serving import ModelError, output_schema

    try:
        return output_schema(signature)
    except ModelError as error:
        raise JobError(str(error)) from None
