"""The graph of a job that detects anomalies.

records -> series by series scored and learnt -> scores
                                              -> alarms
        -> dead letters
"""

from __future__ import annotations

import transforms.batch_coder  # noqa: F401  registers the coder of RecordBatches
from pipelines.detection.job import DetectSpec
from pipelines.detection.resolve import ResolvedDetection
from pipelines.graph import DEAD_LETTERS, RECORDS
from pipelines.modes import Mode
from transforms.detection import ALARMS, IN, OUT

SCORES = "scores"
OUTPUTS = (SCORES, ALARMS, DEAD_LETTERS)


def build_detection(mode: Mode, resolved: ResolvedDetection, job: DetectSpec) -> None:
    """Adds a stream's graph.

    Args:
        mode: how it is run.
        resolved: the stream.
        job: its job, with the folder that the stream's output goes to.
    """
    read = mode.read(resolved.records, RECORDS, True)
    given = {IN: read.batches} | mode.advance(resolved.detect, "detect")
    sinks = {SCORES: given[OUT], ALARMS: given[ALARMS], DEAD_LETTERS: read.dead_letters}
    mode.write(sinks, dict.fromkeys((SCORES, ALARMS), resolved.detect.columns), job)
