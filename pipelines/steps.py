"""A job's steps as transforms: row-local neighbours run as one, each stateful step keeps its state in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa

from pipelines.job import Step
from transforms.aggregation import WindowedAggregation
from transforms.expressions import Filter, Map
from transforms.lags import Lags
from transforms.lookup import Lookup
from transforms.operators import Chain, Operator
from transforms.ordering import InOrder
from transforms.rows import RowStep, RowSteps
from transforms.windowing import parse_windows


@dataclass(frozen=True)
class Stage:
    """Steps that run together: either row-local ones, or one operator."""

    name: str
    rows: tuple[RowStep, ...] = ()
    operator: Operator | None = None


def stages(steps: Sequence[Step], schema: pa.Schema, *, in_order: bool) -> tuple[list[Stage], pa.Schema]:
    """Plans the steps and checks each against the columns it will get.

    Args:
        steps: as the job says.
        schema: of the batches that come from the source.
        in_order: the rows are wanted in order of event time at the end, whether or not a step needs it.

    Returns:
        The stages, and the schema behind them.

    Raises:
        ValueError: a step does not fit; says which one.
    """
    planned: list[Stage] = []
    ordered = False
    for number, step in enumerate(steps, start=1):
        built = _build(step)
        try:
            schema = built.check(schema)
        except ValueError as error:
            raise ValueError(f"step {number}: {error}") from None
        if isinstance(built, Map | Filter | Lookup):
            if planned and planned[-1].operator is None:
                planned[-1] = Stage(planned[-1].name, (*planned[-1].rows, built))
            else:
                planned.append(Stage(f"rows {number}", (built,)))
        elif isinstance(built, Lags):
            # Rows that came out of order are sorted before lags are taken; a second time there is nothing to sort.
            planned.append(Stage(f"lags {number}", operator=built if ordered else Chain(InOrder(), built)))
            ordered = True
        else:
            planned.append(Stage(f"windows {number}", operator=built))
            ordered = False
    if in_order and not ordered:
        planned.append(Stage("in order", operator=InOrder()))
    return planned, schema


def needs_order(steps: Sequence[Step]) -> bool:
    """Whether a step depends on the order of the records."""
    return any(step.lags is not None or step.windows is not None for step in steps)


class Apply(beam.PTransform):
    """Runs stages: RecordBatches to (RecordBatches, dead letters, late rows), the last two as lists of PCollections."""

    def __init__(self, planned: Sequence[Stage], advance: Callable[..., beam.PTransform], *, records_only: bool) -> None:
        """Creates the transform.

        Args:
            planned: the stages.
            advance: how the job's mode feeds an operator; see `pipelines.modes.Mode`.
            records_only: the stages go by the watermark of the records alone.
        """
        super().__init__()
        self._stages, self._advance, self._records_only = planned, advance, records_only

    def expand(self, batches: beam.PCollection) -> tuple[beam.PCollection, list[beam.PCollection], list[beam.PCollection]]:
        dead, late = [], []
        for stage in self._stages:
            if stage.operator is None:
                batches, failed = batches | stage.name >> RowSteps(stage.rows)
                dead.append(failed)
                continue
            given = {"in": batches} | self._advance(stage.operator, stage.name, records_only=self._records_only)
            batches = given["out"]
            if "late" in given:
                late.append(given["late"])
        return batches, dead, late


def _build(step: Step) -> Map | Filter | Lookup | Lags | WindowedAggregation:
    if step.map is not None:
        return Map(step.map)
    if step.filter is not None:
        return Filter(step.filter)
    if step.lookup is not None:
        return Lookup(step.lookup.table, step.lookup.on, step.lookup.columns, step.lookup.default)
    if step.lags is not None:
        return Lags(step.lags.columns, step.lags.by, step.lags.rolling)
    assert step.windows is not None
    windows = parse_windows(step.windows.model_dump(include={"kind", "size", "every", "gap"}, exclude_none=True))
    return WindowedAggregation(windows, step.windows.by, step.windows.aggregates, step.windows.allowed_lateness)
