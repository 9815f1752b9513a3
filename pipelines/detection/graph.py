"""The graph of a job that detects anomalies.

records -> series by series scored and learnt -> scores
                                              -> alarms
        -> dead letters
"""

from __future__ import annotations

from typing import Protocol

import apache_beam as beam
import pyarrow as pa

import transforms.batch_coder  # noqa: F401  registers the coder of RecordBatches
from pipelines.detection.job import DetectSpec
from pipelines.graph import DEAD_LETTERS, RECORDS
from pipelines.modes import Mode
from transforms.dead_letters import dead_letters
from transforms.detection import ALARMS, IN, OUT, Detect
from transforms.file_source import FileSource
from transforms.kafka.source import KafkaSource
from transforms.operators import Chain, Operator
from transforms.ordering import InOrder

SCORES = "scores"
OUTPUTS = (SCORES, ALARMS, DEAD_LETTERS)


class Resolved(Protocol):
    """A stream that is ready to run."""

    @property
    def records(self) -> FileSource | KafkaSource:
        """Its rows."""

    @property
    def detect(self) -> Detect:
        """The step."""


def build_detection(mode: Mode, resolved: Resolved, job: DetectSpec, *, in_order: bool = False) -> None:
    """Adds a stream's graph.

    Args:
        mode: how it is run.
        resolved: the stream.
        job: its job, with the folder that the stream's output goes to.
        in_order: score the rows in order of event time, not of arrival; late ones are dead letters.
    """
    read = mode.read(resolved.records, RECORDS, True)
    step: Operator = Chain(InOrder(), resolved.detect) if in_order else resolved.detect
    given = {IN: read.batches} | mode.advance(step, "detect")
    dead = read.dead_letters
    if in_order:
        late = given["late"] | "late" >> beam.Map(_late).with_output_types(pa.RecordBatch)
        dead = (dead, late) | "dead letters" >> beam.Flatten()
    sinks = {SCORES: given[OUT], ALARMS: given[ALARMS], DEAD_LETTERS: dead}
    mode.write(sinks, dict.fromkeys((SCORES, ALARMS), resolved.detect.columns), job)


def _late(batch: pa.RecordBatch) -> pa.RecordBatch:
    detail = "it came when later ones had been scored already; allow more out-of-orderness if it should count"
    return dead_letters(batch, "late", detail)
