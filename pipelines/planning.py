"""Cuts records and labels into micro-batches together, so that both streams advance side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.graph import LABELS, RECORDS
from transforms.bounded_run import ReadTask
from transforms.sources import FilePlanner, FileSource, Plan, Position, read_tasks


@dataclass(frozen=True)
class StreamPlan:
    """What one micro-batch reads.

    Attributes:
        records, labels: the parts of the two sources; None where there is nothing new.
        records_end, labels_end: where they stand then.
        watermark_us: of both together.
        records_watermark_us: of the records alone.
    """

    records: Plan | None
    labels: Plan | None
    records_end: Position
    labels_end: Position
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
            name: tuple(read_tasks(plan.ranges, plan.start_max_event_time_us, in_order))
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
            Plan.from_json(given["records"]) if given["records"] else None,
            Plan.from_json(given["labels"]) if given["labels"] else None,
            Position.from_json(given["end"]["records"]),
            Position.from_json(given["end"]["labels"]),
            given["watermark_us"],
            given["records_watermark_us"],
        )


class StreamPlanner:
    """A `runners.micro_batch.Planner` over the records and, if they come in a stream of their own, the labels."""

    def __init__(
        self, records: FileSource, labels: FileSource | None, max_records: int | None, max_span_us: int | None
    ) -> None:
        """Creates the planner.

        Args:
            records, labels: the sources.
            max_records: records a micro-batch has at most.
            max_span_us: a micro-batch does not cross multiples of this in event time.
        """
        self._records = FilePlanner(records)
        self._labels = FilePlanner(labels) if labels is not None else None
        self._max_records, self._max_span_us = max_records, max_span_us

    def plan(self, position: dict[str, Any] | None) -> dict[str, Any] | None:
        records_at = Position.from_json(position["records"]) if position else Position()
        labels_at = Position.from_json(position["labels"]) if position else Position()
        records = self._records.plan(records_at, self._max_records, self._max_span_us)
        labels = None
        if self._labels is not None:
            # Labels keep step with the records: those that the micro-batch's records could not know yet stay for later.
            until_us = records.max_event_time_us + 1 if records else None
            labels = self._labels.plan(labels_at, None, None, until_us=until_us)
        if records is None and labels is None:
            return None
        records_end = records.end if records else records_at
        labels_end = labels.end if labels else labels_at
        records_watermark_us = watermark_us = self._records.watermark_us(records_end)
        if self._labels is not None:
            watermark_us = min(watermark_us, self._labels.watermark_us(labels_end))
        return StreamPlan(records, labels, records_end, labels_end, watermark_us, records_watermark_us).to_json()
