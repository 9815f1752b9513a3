"""Rows in, versions and their activations out: the learner as a step of the stream.

The rows of each fixed window of time (of labelled rows: the time a label became known) are learnt in order, and the window's
end is the moment the next version goes live. Windows close by the watermark, rows are learnt in an order that follows from the
stream alone, and the model is its own checkpoint. So the same input gives the same versions, bit for bit, however it is cut; a
window that is learnt again after a crash finds its version published.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from models import syncing
from models.activation_log import Activation, ActivationInPast, Paused
from models.gate.result import GateRefused
from models.opened import shared_log
from models.serving import ModelError
from transforms.batches import EVENT_TIME, MIN_WATERMARK_US, SEQUENCE, TIME_TYPE
from transforms.dead_letters import dead_letters
from transforms.drift_response import DriftResponse
from transforms.error_alarm import ErrorAlarm
from transforms.learning_step import LearningStep, Learnt
from transforms.learning_windows import Grown, Window, full_at_us, windows_of_rows, windows_of_time
from transforms.operators import State, Tables, own_state, prefixed

EVENTS = "events"
_RESPONSE, _ALARM = "response", "alarm"  # their parts of the state
ACTIVATIONS = pa.schema(
    [
        pa.field("version", pa.int64()),
        pa.field("effective_from_us", pa.int64()),
        pa.field("rows", pa.int64()),  # that the window had
    ]
)


@dataclass(frozen=True)
class Train:
    """An `Operator`: input `in` (rows to learn from).

    Outputs: `activations` (schema `ACTIVATIONS`), `refused` (dead letters), and `events`: what the learner itself has to tell
    (`models.learning`), and a row `drift` with the share of errors before and after where the alarm sounded; with the window's
    end as `event_time`, the version that it made, and a `sequence`: that of the window's last row.

    Attributes:
        registry: root folder of the registry.
        model: name of the model.
        first_version: the version to learn on from at the start of the stream.
        time: the column with the time of the windows: `label_time` of labelled rows, `event_time` of rows without labels.
        every_us: length of the windows, aligned to the epoch.
        warm_up_rows: a version is activated only once this many rows were learnt since the start; those before stay candidates.
        by: name of the job, for the publication ids.
        every_rows: instead of `every_us`, so many rows make a window (`transforms.learning_windows`).
        response: looks for drift in the rows, and acts; None learns each window and no more.
        alarm: with `every_rows`, ends a window early and makes the next ones short; None leaves them as they are.
    """

    registry: str
    model: str
    first_version: int
    time: str
    every_us: int
    warm_up_rows: int
    by: str
    every_rows: int | None = None
    response: DriftResponse | None = None
    alarm: ErrorAlarm | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("activations", "refused", EVENTS)

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        # No version is activated before all of them are on the disk.
        with syncing.synced_together(self.registry):
            return self._advance(state, inputs, watermark_us)

    def _advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        tables = [table for table in (state.get("pending"), inputs.get("in")) if table is not None and table.num_rows]
        version, seen, grown, served_us = self.first_version, 0, Grown(), MIN_WATERMARK_US
        if "position" in state:
            (position,) = state["position"].to_pylist()
            heard = state[_ALARM].column("values").to_numpy() if _ALARM in state else None
            version, seen, grown = position["version"], position["rows"], Grown(position["came"], position["since"], heard)
            served_us = position["watermark_us"]
        activations: list[dict[str, int]] = []
        refused: list[pa.RecordBatch] = []
        events: list[pa.Table] = []
        step = LearningStep(self.registry, self.model, self.by)
        known = own_state(state, _RESPONSE)
        pending = pa.concat_tables(tables) if tables else None
        if pending is not None:
            if self.every_rows is None:
                windows, pending = windows_of_time(pending, self.time, self.every_us, watermark_us)
            else:
                windows, pending, grown = windows_of_rows(pending, self.time, self.every_rows, grown, watermark_us, self.alarm)
            for window in windows:
                # Rows up to the last watermark are predicted: a version from before it would rewrite what was said.
                end = window.end_us
                assert end > served_us, f"rows of the window up to {end} us came after the watermark {served_us} us"
            given = ((window, _one_batch(window.rows)) for window in windows)
            if self.response is None:
                learnt = step.learn_all(version, given)
            else:
                learnt = self._answered(self.response, step, version, given, known)
            for window, rows, made, told, why in learnt:
                if made is None:
                    # The learner goes on from the version before, as if these rows had not come.
                    refused.append(dead_letters(rows, "learner_refused", why))
                    continue
                version = made
                seen += rows.num_rows
                if window.jump is not None:
                    _, before, after = window.jump
                    jumped = pa.table({"kind": ["drift"], "before": [before], "after": [after]})
                    events.append(_stamp(jumped, version, window.end_us, rows))
                if told is not None and told.num_rows:
                    events.append(_stamp(told, version, window.end_us, rows))
                if seen >= self.warm_up_rows:
                    activations.append({"version": version, "effective_from_us": window.end_us, "rows": rows.num_rows})
        position = {"version": version, "rows": seen, "came": grown.came, "since": grown.since, "watermark_us": watermark_us}
        new_state = {"position": pa.Table.from_pylist([position]), **prefixed(_RESPONSE, known)}
        if grown.heard is not None:
            new_state[_ALARM] = pa.table({"values": grown.heard})
        if pending is not None:
            new_state["pending"] = pending
        tables_given = {"activations": pa.Table.from_pylist(activations, ACTIVATIONS)}
        if refused:
            tables_given["refused"] = pa.Table.from_batches(refused)
        if events:
            tables_given[EVENTS] = pa.concat_tables(events, promote_options="default")
        return new_state, tables_given

    def _answered(
        self,
        response: DriftResponse,
        step: LearningStep,
        version: int,
        windows: Iterable[tuple[Window, pa.RecordBatch]],
        known: dict[str, pa.Table],
    ) -> Iterator[Learnt]:
        """Learns windows, looking for drift; `known` is what the response knows, and is changed."""
        for window, rows in windows:
            try:
                version, told, new = response.learn(step, self.first_version, version, rows, window, known)
            except (ModelError, GateRefused) as error:
                yield Learnt(window, rows, None, None, str(error))
                continue
            known.clear()
            known.update(new)
            yield Learnt(window, rows, version, told)

    def wake_us(self, state: State) -> int | None:
        if "pending" not in state or not state["pending"].num_rows:
            return None
        if self.every_rows is not None:
            since = state["position"].column("since")[0].as_py()
            return full_at_us(state["pending"], self.time, self.every_rows, since, self.alarm is not None)
        earliest_us = int(state["pending"].column(self.time).cast(pa.int64()).to_numpy().min())
        return (earliest_us // self.every_us + 1) * self.every_us


class ActivateVersions(beam.PTransform):
    """Batches of `ACTIVATIONS` to `Activation`s, each appended to the activation log first."""

    def __init__(self, registry: str, model: str, by: str, *, strict: bool = True) -> None:
        """Creates the transform.

        Args:
            registry: root folder of the registry.
            model: name of the model.
            by: name of the job; in a closed loop the one that sealed the log for this run.
            strict: a version goes live at the end of the window it was learnt from, or the run fails. Otherwise, if that is in
                the sealed past of a job that serves, it goes live at the next boundary that is open.
        """
        super().__init__()
        self._activate = _Activate(registry, model, by, strict)

    def expand(self, activations: beam.PCollection) -> beam.PCollection:
        return activations | beam.ParDo(self._activate).with_output_types(Activation)


class _Activate(beam.DoFn):
    def __init__(self, registry: str, model: str, by: str, strict: bool) -> None:
        self._registry, self._model, self._by, self._strict = registry, model, by, strict
        self._activated = Metrics.counter("midstream", "activations")

    def process(self, batch: pa.RecordBatch) -> Iterator[Activation]:
        self._activated.inc(batch.num_rows)
        yield from activate_learnt(self._registry, self._model, self._by, self._strict, batch.to_pylist())


def activate_learnt(
    registry: str, model: str, by: str, strict: bool, activations: Iterable[Mapping[str, int]]
) -> list[Activation]:
    """Appends rows of `ACTIVATIONS` to the activation log; see `ActivateVersions`.

    A call that is made again changes nothing.
    """
    log = shared_log(registry, model)
    # A version a window, a handful a batch: this loop is not over records.
    entries = []
    with syncing.synced_together(registry):
        for row in activations:
            reason = f"learnt from {row['rows']} rows"
            version, effective_from_us = row["version"], row["effective_from_us"]
            try:
                try:
                    entry = log.activate(version, effective_from_us, by=by, reason=reason, automatic=True)
                except ActivationInPast:
                    if strict:
                        raise
                    entry = log.activate(version, None, by=by, reason=reason, not_before_us=effective_from_us, automatic=True)
            except Paused:  # it stays a candidate
                continue
            entries.append(entry)
    return entries


def _stamp(told: pa.Table, version: int, end_us: int, window: pa.RecordBatch) -> pa.Table:
    """A learner's events with when, by which version, and behind which record."""
    rows = told.num_rows
    stamps = {
        EVENT_TIME: pa.repeat(end_us, rows).cast(TIME_TYPE),
        SEQUENCE: pa.repeat(window.column(SEQUENCE)[-1], rows),
        "version": pa.repeat(version, rows),
    }
    return pa.table(stamps | {name: told.column(name) for name in told.schema.names})


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    """The rows of a table, at least one, as a single batch."""
    (batch,) = table.combine_chunks().to_batches()
    return batch
