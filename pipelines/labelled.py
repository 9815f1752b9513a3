"""Settles what a learner of labels leaves open: which columns it learns from, and which classes there are.

What was found is written beside the job's output, so that a job that is gone on with has the same classes although its input
has grown.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from models.drift import is_text
from models.storage import write_text_atomically
from pipelines.job import JobSpec, LearnerSection
from transforms.batches import RESERVED
from transforms.file_source import FileSource, all_files
from transforms.known_classes import KnownClasses
from transforms.label_context import LabelContext
from transforms.schema import Schema
from transforms.sources import Source

CLASSES_FILE = "learner.json"
TEXTS_FILE = "text_columns.json"
TWO_CLASSES = "mlp_classifier"
KEYED = "keyed_classifier"  # learns where the options name a key
LOOKED_AT_ROWS = 2000  # in them a column of text shows whether its values come again,
MOST_DISTINCT = 0.5  # or are a name for each record: more distinct values than this share
MOST_CLASSES = 200  # more distinct labels than these are taken for a number or a key
CLASSES, VOCABULARY, CONTEXT = "classes", "vocabulary", "context"


def options_of(algorithm: str) -> set[str]:
    """The names of the options that a learner of `models.learners` knows."""
    module = importlib.import_module(f"models.learners.{algorithm}")
    return {field.name for field in fields(module.LEARNER[1])} if hasattr(module, "LEARNER") else set()


def settle(job: JobSpec, columns: pa.Schema, records: Source, labels: Source) -> LearnerSection:
    """The learner's section with features, and with classes where the learner has a vocabulary and none were given.

    What was known of labels when a record happened (`context`) is left out where labels come in a stream of their own.

    Args:
        job: has labels and a learner.
        columns: behind the steps, without the label.
        records: the source of the records.
        labels: the source that has the label's column: that of the records, or another.

    Raises:
        ValueError: nothing to learn from, or labels that are no classes; says what to do.
    """
    assert job.learner is not None
    assert job.labels is not None
    section = _keyed(job.learner, columns) if "key" in job.learner.options else job.learner
    if section.options.get(CONTEXT) and job.labels.delay is None:
        section = section.model_copy(update={"options": section.options | {CONTEXT: False}})
    known = options_of(section.algorithm)
    if "text_features" in known and not section.features and "text_features" not in section.options:
        found = {"text_features": _texts(job, columns, records)}
        section = section.model_copy(update={"options": section.options | found})
    if not section.features:
        section = section.model_copy(update={"features": _numeric(job, columns, section)})
    given = section.options.get(VOCABULARY)
    # A topic does not tell which classes there will be; jobs of this learner then count on its two.
    two = section.algorithm == TWO_CLASSES and given is None and not isinstance(labels, FileSource)
    if VOCABULARY in known and CLASSES not in section.options and not two:
        found = _classes(job, labels) if given is None else _given(job.labels.column, given, labels)
        options = {name: value for name, value in section.options.items() if name != VOCABULARY}
        section = section.model_copy(update={"options": options | found})
    return section


def label_context(job: JobSpec, section: LearnerSection) -> LabelContext | None:
    """The step that gives the learner the labels known so far; None if it does not want them."""
    if not section.options.get(CONTEXT):
        return None
    assert job.labels is not None
    assert job.labels.delay is not None, "settled"
    classes = int(section.options.get(CLASSES, 2)) if VOCABULARY in options_of(section.algorithm) else 0
    vocabulary = tuple(map(str, section.options.get(VOCABULARY, ())))
    return LabelContext(job.labels.column, tuple(section.features), job.labels.delay, classes, vocabulary)


def known_classes(job: JobSpec) -> KnownClasses | None:
    """What tells labels that are a class of the settled learner; None where it has no classes."""
    assert job.learner is not None
    options = job.learner.options
    if job.labels is None or CLASSES not in options:
        return None
    return KnownClasses(job.labels.column, int(options[CLASSES]), tuple(map(str, options.get(VOCABULARY, ()))))


def _keyed(section: LearnerSection, columns: pa.Schema) -> LearnerSection:
    """The section of a learner with a model for each key: what only the others know is left out."""
    key = str(section.options["key"])
    if key not in columns.names:
        raise ValueError(
            f"learner: there is no column {key!r} for the key behind the steps; there are {', '.join(columns.names)}"
        )
    algorithm = section.algorithm if "key" in options_of(section.algorithm) else KEYED
    options = {name: value for name, value in section.options.items() if name in options_of(algorithm)}
    options["whole_keys"] = pa.types.is_integer(columns.field(key).type)
    return section.model_copy(update={"algorithm": algorithm, "options": options})


def _own(job: JobSpec, columns: pa.Schema) -> list[pa.Field]:
    """The columns that say something of a record, and do not name it, or tell its time or its label."""
    assert job.labels is not None
    left_out = {*RESERVED, *job.keep, *job.labels.on, job.source.time.column, job.labels.column}
    return [field for field in columns if field.name not in left_out]


def _texts(job: JobSpec, columns: pa.Schema, records: Source) -> tuple[str, ...]:
    """Columns of text to learn from: those whose values come again, among the first records."""
    own = [field.name for field in _own(job, columns) if is_text(field.type)]
    if not own or not isinstance(records, FileSource):
        return tuple(own)
    kept = Path(job.output) / TEXTS_FILE
    if kept.exists():
        return tuple(json.loads(kept.read_text(encoding="utf-8")))
    names = [name for name in own if name in records.schema.names]
    first = next((piece.batch for part in all_files(records) for piece in records.read(part) if piece.batch.num_rows), None)
    if first is not None:
        first = first.slice(0, LOOKED_AT_ROWS)
        often = [name for name in names if len(pc.unique(first.column(name))) <= max(first.num_rows * MOST_DISTINCT, 2)]
        own = [name for name in own if name not in names or name in often]
    write_text_atomically(str(kept), json.dumps(own))
    return tuple(own)


def _numeric(job: JobSpec, columns: pa.Schema, section: LearnerSection) -> tuple[str, ...]:
    own = [field for field in _own(job, columns) if field.name != section.options.get("key")]
    numeric = [
        f.name for f in own if pa.types.is_integer(f.type) or pa.types.is_floating(f.type) or pa.types.is_boolean(f.type)
    ]
    if not numeric and not section.options.get("text_features"):
        raise ValueError(f"learner: there is no numeric column to learn from; there are {', '.join(f.name for f in own)}")
    return tuple(numeric)


def _classes(job: JobSpec, labels: Source) -> dict[str, Any]:
    """The options that say which classes there are."""
    file = Path(job.output) / CLASSES_FILE
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    assert job.labels is not None
    found = _described(job.labels.column, _distinct(job.labels.column, labels), labels.schema)
    write_text_atomically(str(file), json.dumps(found))
    return found


def _given(label: str, names: Any, labels: Source) -> dict[str, Any]:
    """The options for classes that the user named."""
    kind = labels.schema[label].arrow
    if pa.types.is_boolean(kind):
        return {CLASSES: 2}
    if pa.types.is_integer(kind):
        try:
            names = [int(name) for name in names]
        except ValueError:
            raise ValueError(f"classes: the label {label!r} is a whole number, expected such numbers, got {names}") from None
    if len(set(names)) < max(len(names), 2):
        raise ValueError(f"classes: expected two or more, each once, got {names}")
    if sorted(names) == list(range(len(names))):
        return {CLASSES: len(names)}
    return {CLASSES: len(names), VOCABULARY: list(names)}


def _distinct(label: str, labels: Source) -> pa.Array:
    """The labels that occur in the files that are there now."""
    if not isinstance(labels, FileSource):
        raise ValueError("learner: a topic does not tell which classes there will be; name them: --param classes=a,b")
    found: pa.ChunkedArray | None = None
    for part in all_files(labels):
        for piece in labels.read(part):
            values = pc.unique(piece.batch.column(label).drop_null())
            found = pa.chunked_array([values] if found is None else [*found.chunks, values])
            found = pa.chunked_array([pc.unique(found)])
            if pa.types.is_floating(values.type):
                if pc.all(pc.equal(pc.floor(values), values)).as_py() is False or len(found) > MOST_CLASSES:
                    break  # a number, not classes
            elif len(found) > MOST_CLASSES:
                raise ValueError(
                    f"label {label!r} has more than {MOST_CLASSES} different values: it looks like a number or a key, not "
                    "like classes. To estimate a number, run the template regress; otherwise name them: --param classes=a,b"
                )
    return found.combine_chunks() if found is not None else pa.array([], pa.int64())


def _described(label: str, values: pa.Array, columns: Schema) -> dict[str, Any]:
    """The options for the classes that the labels are.

    Args:
        label: the label column.
        values: those that occur; of decimal numbers at least one that is not whole, if there is one.
        columns: of the labels' source.
    """
    kind = values.type
    if pa.types.is_boolean(kind):
        return {CLASSES: 2}
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    if pa.types.is_floating(kind):
        if len(values) <= MOST_CLASSES and all(value.is_integer() for value in values.to_pylist()):
            as_text = ",".join(f"{c.name}:{'string?' if c.name == label else c.type_text}" for c in columns.columns)
            raise ValueError(
                f"label {label!r} has whole numbers that are written as decimals, like {values[0]}, as some programs do where "
                f"a few are missing. Write them without a point, or take them as texts: --param columns={as_text}"
            )
        raise ValueError(
            f"label {label!r} is a decimal number; classes are whole numbers or text. To estimate a number, run the template "
            f"regress; if it is a class, declare its type: --param columns=...,{label}:int64"
        )
    if not len(values) and not pa.types.is_integer(kind):
        raise ValueError(
            f"label {label!r} has no value in any of the files that are there, so they do not tell which classes there are. "
            "Name them: --param classes=a,b"
        )
    names = sorted(values.to_pylist())
    if pa.types.is_integer(kind) and (not names or (names[0] >= 0 and names[-1] < max(2 * len(names), 2))):
        return {CLASSES: max(names[-1] + 1 if names else 2, 2)}
    names += [names[-1] + 1 if pa.types.is_integer(kind) else "(none)"] * (len(names) == 1)
    return {CLASSES: len(names), VOCABULARY: names}
