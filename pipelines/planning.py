"""Cuts records and labels into micro-batches together, so that both streams advance side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.graph import LABELS, RECORDS
from transforms.bounded_run import ReadTask
from transforms.kafka.planning import KafkaPlan, KafkaPlanner, KafkaPosition
from transforms.kafka.source import KafkaSource
from transforms.sources import FilePlanner, FileSource, Plan, Position, Source, read_tasks


@dataclass(frozen=True)
class StreamPlan:
    """What one micro-batch reads.

    Attributes:
        records, labels: the parts of the two sources; None where there is nothing new.
        records_end, labels_end: where they stand then.
        watermark_us: of both together.
        records_watermark_us: of the records alone.
    """

    records: Plan | KafkaPlan | None
    labels: Plan | KafkaPlan | None
    records_end: Position | KafkaPosition
    labels_end: Position | KafkaPosition
    watermark_us: int
    records_watermark_us: int

    @property
    def rows(self) -> int:
        """Records that it reads, bad ones included."""
        return self.records.rows if self.records else 0

    @property
    def max_event_time_us(self) -> int:
        """The latest event time among the records up to the end of this micro-batch."""
        return self.records_end.max_event_time_us

    def reads(self, ordered: bool) -> dict[str, tuple[ReadTask, ...]]:
        """What it reads, by source, for a `BoundedRun`."""
        plans = {RECORDS: (self.records, ordered), LABELS: (self.labels, True)}
        return {
            name: plan.tasks
            if isinstance(plan, KafkaPlan)
            else tuple(read_tasks(plan.ranges, plan.start_max_event_time_us, in_order))
            for name, (plan, in_order) in plans.items()
            if plan is not None
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "records": self.records.to_json() if self.records else None,
            "labels": self.labels.to_json() if self.labels else None,
            "watermark_us": self.watermark_us,
            "records_watermark_us": self.records_watermark_us,
            "end": {"records": self.records_end.to_json(), "labels": self.labels_end.to_json()},
        }

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> StreamPlan:
        return cls(
            _plan(given["records"]),
            _plan(given["labels"]),
            _position(given["end"]["records"]),
            _position(given["end"]["labels"]),
            given["watermark_us"],
            given["records_watermark_us"],
        )


def _plan(given: dict[str, Any] | None) -> Plan | KafkaPlan | None:
    if given is None:
        return None
    return KafkaPlan.from_json(given) if "tasks" in given else Plan.from_json(given)


def _position(given: dict[str, Any]) -> Position | KafkaPosition:
    return KafkaPosition.from_json(given) if "partitions" in given else Position.from_json(given)


class _Cutter:
    """Plans one source, files or a topic."""

    def __init__(self, source: Source) -> None:
        assert isinstance(source, FileSource | KafkaSource)
        self._planner: Any = FilePlanner(source) if isinstance(source, FileSource) else KafkaPlanner(source)
        self._start = Position() if isinstance(source, FileSource) else KafkaPosition()

    def at(self, given: dict[str, Any] | None) -> Any:
        """The position where the last micro-batch ended."""
        return self._start if given is None else _position(given)

    def plan(self, position: Any, *limits: int | None) -> Any:
        return self._planner.plan(position, *limits)

    def watermark_us(self, position: Any) -> int:
        return int(self._planner.watermark_us(position))

    def nothing_behind(self, position: Any) -> bool:
        return isinstance(self._planner, FilePlanner) and self._planner.nothing_behind(position)

    def close(self) -> None:
        if isinstance(self._planner, KafkaPlanner):
            self._planner.close()


class StreamPlanner:
    """A `runners.micro_batch.Planner` over the records and, if they come in a stream of their own, the labels."""

    def __init__(self, records: Source, labels: Source | None, max_records: int | None, max_span_us: int | None) -> None:
        """Creates the planner.

        Args:
            records, labels: the sources.
            max_records: records a micro-batch has at most.
            max_span_us: a micro-batch does not cross multiples of this in event time.
        """
        self._records = _Cutter(records)
        self._labels = _Cutter(labels) if labels is not None else None
        self._max_records, self._max_span_us = max_records, max_span_us

    def close(self) -> None:
        """Lets go of connections."""
        for cutter in (self._records, self._labels):
            if cutter is not None:
                cutter.close()

    def nothing_behind(self, position: dict[str, Any]) -> bool:
        labels = self._labels
        return self._records.nothing_behind(self._records.at(position["records"])) and (
            labels is None or labels.nothing_behind(labels.at(position["labels"]))
        )

    def plan(self, position: dict[str, Any] | None) -> dict[str, Any] | None:
        records_at = self._records.at(position and position["records"])
        labels_at = self._labels.at(position and position["labels"]) if self._labels is not None else Position()
        records = self._records.plan(records_at, self._max_records, self._max_span_us)
        labels = None
        if self._labels is not None:
            # Labels keep step with the records: those that the micro-batch's records could not know yet stay for later.
            until_us = records.max_event_time_us + 1 if records else None
            labels = self._labels.plan(labels_at, None, None, until_us)
        if records is None and labels is None:
            return None
        records_end = records.end if records else records_at
        labels_end = labels.end if labels else labels_at
        records_watermark_us = watermark_us = self._records.watermark_us(records_end)
        if self._labels is not None:
            watermark_us = min(watermark_us, self._labels.watermark_us(labels_end))
        return StreamPlan(records, labels, records_end, labels_end, watermark_us, records_watermark_us).to_json()
