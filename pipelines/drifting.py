"""What a job does about drift: which columns it watches, and how its learner answers."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa

from models.drift import is_number, is_text
from models.naming import column_for
from models.signature import Signature
from pipelines.job import JobSpec
from pipelines.modes import Mode
from transforms.drift_monitor import DRIFT, DriftMonitor, narrow
from transforms.drift_response import DriftResponse
from transforms.operators import Chain
from transforms.ordering import InOrder


def watched_columns(job: JobSpec, signature: Signature, features: pa.Schema) -> tuple[str, ...]:
    """The columns that a job with a monitor compares with those of the training rows.

    Args:
        job: the job.
        signature: of the model.
        features: schema of the rows that the model is given.

    Raises:
        ValueError: a column that was named is not there, or is neither number nor text.
    """
    if job.monitor is None:
        return ()
    usable = [field.name for field in features if is_number(field.type) or is_text(field.type)]
    if wrong := [name for name in job.monitor.columns if name not in usable]:
        raise ValueError(
            f"monitor: there is no column of numbers or text named {', '.join(wrong)} behind the steps; there are "
            f"{', '.join(usable)}"
        )
    own = [column_for(name, features.names) for name in signature.inputs]
    return job.monitor.columns or tuple(name for name in own if name in usable)


def response(job: JobSpec, watched: tuple[str, ...]) -> DriftResponse | None:
    """How the learner of a job answers to drift, and whether its versions bring a summary of their training rows.

    Raises:
        ValueError: the learner has no errors that could rise.
    """
    learner = job.learner
    assert learner is not None
    if job.labels is None:
        if learner.on_drift != "none":
            raise ValueError(f"learner: on_drift={learner.on_drift} looks at errors, and without labels there are none")
        return None
    if learner.on_drift == "none" and job.monitor is None:
        return None
    rows = None if job.monitor is None else job.monitor.reference_rows
    return DriftResponse(job.labels.column, watched, learner.on_drift, learner.detector, rows)


def watch(
    mode: Mode, predictions: beam.PCollection, job: JobSpec, watched: tuple[str, ...], outputs: pa.Schema
) -> beam.PCollection:
    """Adds the monitor to a graph: predictions to rows of figures."""
    settings = job.monitor
    assert settings is not None
    told = [name for name in ("prediction", "score") if name in outputs.names]
    told = told or [field.name for field in outputs if pa.types.is_floating(field.type)]
    monitor = DriftMonitor(
        job.model.registry,
        job.model.name,
        watched,
        tuple(told),
        settings.rows,
        settings.significance,
        settings.min_distance,
        settings.reference_rows,
    )
    rows = predictions | "to watch" >> beam.Map(narrow, monitor.columns).with_output_types(pa.RecordBatch)
    return ({"in": rows} | mode.advance(Chain(InOrder(), monitor), DRIFT, records_only=job.kind == "serve"))[DRIFT]
