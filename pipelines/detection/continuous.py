"""Detects anomalies in a topic, without any cuts, on Flink: scores and alarms go to topics as the records come.

The rows of a topic are scored in order of event time; one that comes when later ones were scored already is a dead letter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from models.kafka_client import KafkaUnavailable
from pipelines.continuous import ContinuousExecution, ContinuousPlan
from pipelines.detection.graph import SCORES, build_detection
from pipelines.detection.job import DetectSpec
from pipelines.detection.version import with_version
from pipelines.graph import DEAD_LETTERS
from pipelines.modes import Continuous
from pipelines.resolve import JobError
from pipelines.topics import topic_source
from runners.micro_batch import Stop
from transforms.detection import ALARMS, Detect
from transforms.kafka.source import KafkaSource
from transforms.schema import TimeSpec

_NUMERIC = ("int32", "int64", "float32", "float64")


@dataclass(frozen=True)
class ResolvedTopic:
    """A topic, ready to run; see `pipelines.detection.resolve.ResolvedDetection`."""

    job: DetectSpec
    records: KafkaSource
    detect: Detect


def resolve_topic(job: DetectSpec) -> ResolvedTopic:
    """Opens the topic and finds what of it is scored.

    Raises:
        JobError: something does not fit; says what was expected, what came and what to do.
    """
    section, settings = job.source.time, job.detector
    start, step = datetime.fromisoformat(section.start), timedelta(microseconds=section.step)
    try:
        records = topic_source(job.source, TimeSpec(section.column, section.unit, start, step), "columns")
    except (ValueError, KafkaUnavailable) as error:
        raise JobError(str(error)) from None
    numeric = tuple(column.name for column in records.schema.columns if column.base in _NUMERIC and not column.size)
    apart = (section.column, *settings.by)
    values = settings.values or tuple(name for name in numeric if name not in apart)
    if not values or set(values) - set(numeric):
        raise JobError(f"expected numeric columns to score, got {', '.join(values) or 'none'}; declared are {records.schema}")
    if missing := [name for name in settings.by if name not in records.schema.names]:
        raise JobError(f"by: there is no column {', '.join(missing)}; declared are {records.schema}")
    seed, rate = settings.seed, settings.false_alarm_rate
    return ResolvedTopic(job, records, Detect(values, settings.by, settings.season, settings.weekends, rate, seed))


class ContinuousDetection(ContinuousExecution):
    """One go at a continuous job that detects anomalies."""

    def __init__(self, job: DetectSpec, *, stop: Stop | None = None, tell: Any = None, detach: bool = False) -> None:
        # What the base class does with a job that this kind has not is overridden below.
        super().__init__(job, stop=stop, tell=tell, detach=detach)  # type: ignore[arg-type]

    def _resolve(self) -> Any:
        resolved = resolve_topic(self.job)  # type: ignore[arg-type]
        return replace(resolved, detect=with_version(resolved.job, resolved.detect))

    def _plan(self) -> ContinuousPlan:
        return _Plan.of(self.resolved, self._folder)

    def _status(self, plan: ContinuousPlan, before: int, seconds: float) -> str:
        counts = self._counts(plan)
        told = [f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()]
        return f"{', '.join(told)}  {(sum(counts.values()) - before) / seconds:,.0f} messages/s"


@dataclass(frozen=True)
class _Plan(ContinuousPlan):
    @staticmethod
    def topics_of(section: Any) -> dict[str, str | None]:
        return {SCORES: section.scores, ALARMS: section.alarms, DEAD_LETTERS: section.dead_letters}

    def build(self, mode: Continuous) -> None:
        resolved: Any = self.resolved
        build_detection(mode, resolved, resolved.job, in_order=True)
