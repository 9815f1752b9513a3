"""Runs a job: makes it ready, runs it in one piece or in micro-batches, and says at the end what came of it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.metrics import MetricsFilter
from apache_beam.runners.runner import PipelineResult

from models.activation_log import Activation, ActivationLog, LogCorrupt
from models.learning import one_thread_an_operation
from models.loaded_graph import LoadedGraph
from models.patience import Wanted, patiently
from models.preflight import settle
from models.registry import Registry, UnknownVersion
from models.serving import shared_cache
from models.timeline import MIN_TIME_US
from pipelines.cold_start import await_first
from pipelines.evaluated import estimates_numbers
from pipelines.graph import EVALUATIONS, LABELS, PREDICTIONS, RECORDS, Resolved, build, outputs_of
from pipelines.job import JobSpec
from pipelines.judge import Judge, rules_of
from pipelines.modes import Bounded
from pipelines.notices import dead_letter_notices
from pipelines.planning import StreamPlan, StreamPlanner
from pipelines.published import TOPICS, Published
from pipelines.replay import save_job
from pipelines.report import write_report
from pipelines.resolve import JobError, resolve
from pipelines.summary import Summary, summarise
from pipelines.topics import empty_partitions
from runners.checkpoint import Checkpoint
from runners.graphs import open_graph
from runners.micro_batch import DRAIN, MicroBatch, MicroBatchDriver, Stop
from transforms.batches import EVENT_TIME, MAX_WATERMARK_US, event_time_us
from transforms.bounded_run import BoundedRun
from transforms.learning_step import load_learner
from transforms.sinks import part_name

_logger = logging.getLogger("midstream")
_TRIES = 3  # of a batch whose log is changed while it runs


class Progress(Protocol):
    """Is told how a job gets on."""

    def committed(self, records: int, resolved: Resolved, parts: dict[str, list[Path]]) -> None:
        """A run is done: how many records it read, and the files it wrote by output."""


@dataclass
class Outcome:
    """What came of a job.

    Attributes:
        summary: the counts; None for a job that predicts nothing.
        report: the HTML page, if there is one.
        finished: False if it was asked to stop before its input was used up.
        counts: what all runs counted together.
        notices: what the user should know although nothing is wrong.
    """

    summary: Summary | None
    report: Path | None
    finished: bool
    counts: dict[str, int] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What must not be overlooked; empty if all is well."""
        return self.summary.problems() if self.summary is not None else []

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.counts) if self.summary is None else self.summary.to_json()


class Execution:
    """One go at a job: from its checkpoint, if there is one, to the end of its input."""

    def __init__(self, job: JobSpec, *, progress: Progress | None = None, stop: Stop | None = None) -> None:
        """Makes the job ready.

        Raises:
            JobError: something is wrong with the job or its surroundings; says what to do.
        """
        if job.learner is not None:
            one_thread_an_operation()
        self.resolved = resolve(job)
        self.job = job
        self._log = ActivationLog(job.model.registry, job.model.name)
        self._output = Path(job.output)
        self._progress = progress
        self._stop = stop or Stop()
        self._started = self._reading = time.monotonic()
        self._read = 0  # records of this go
        self._notices: list[str] = []
        self._judge: Judge | None = None
        self._run_file = str(self._output / "checkpoint" / "run.json")
        self._waiting: list[str] = []
        self._published: Published | None = None
        where = job.run.model_dump(include={"runner", "parallelism", "master", "workers", "preinstalled"})
        spread = job.run.parallelism > 1
        self._graph = open_graph(
            lambda pipeline: build(Bounded(pipeline, self._run_file, spread=spread), self.resolved), name=job.name, **where
        )

    def run(self) -> Outcome:
        """Runs the job and writes its summary and report."""
        try:
            checkpoint = Checkpoint(self._output / "checkpoint", self.job.identity())
        except BaseException:
            self._graph.close()
            raise
        try:
            save_job(self.job)
            if self.job.publish is not None and self.job.publish.wanted:
                self._published = Published(self.job, checkpoint.folder)
            if self.resolved.first_version is not None and checkpoint.last_commit() is None:
                self._load_first(self.resolved.first_version)
            if self.job.kind == "serve" and self.job.model.cold_start == "hold":
                await_first(lambda: self._patiently(self._log.timeline), self._stop, _logger.warning)
            self._reading = time.monotonic()
            if self.job.run.mode == "batch":
                self._run_batch(checkpoint)
                finished = True
            else:
                finished = self._run_micro_batches(checkpoint)
            return self._conclude(checkpoint, finished)
        finally:
            checkpoint.close()
            self._graph.close()

    def _load_first(self, version: int) -> None:
        """Loads what the first records will want, where this process is the worker, too: one graph to learn and to predict."""
        model = self.job.model
        if self.job.run.runner == "direct":
            learner = load_learner(model.registry, model.name, version)
            if self.job.kind == "loop":
                cache = shared_cache(model.registry, block_rows=model.block_rows, max_versions=model.max_versions)
                graph = LoadedGraph(learner.path, model.block_rows, learner.root)
                cache.prepare(model.name, version, lambda *_: graph).warm_up()

    def _run_micro_batches(self, checkpoint: Checkpoint) -> bool:
        settings = self.job.run
        self._judge = self._make_judge(checkpoint)
        planner = StreamPlanner(self.resolved.records, self.resolved.labels, settings.records, settings.span)
        try:
            return self._drive(checkpoint, planner)
        finally:
            planner.close()

    def _drive(self, checkpoint: Checkpoint, planner: StreamPlanner) -> bool:
        settings = self.job.run
        driver = MicroBatchDriver(checkpoint, planner, self._run_one, on_commit=self._committed, stop=self._stop)
        if driver.is_drained:
            in_one = (checkpoint.offset(0) or {}).get("mode") == "batch"
            self._ended_before(not in_one and driver.new_input())
            return True
        if settings.trigger == "available-now":
            before = checkpoint.last_commit()
            finished = driver.available_now(drain=settings.drain)
            if finished and before is not None and before == checkpoint.last_commit():
                self._notices.append("there is no new input since the last run")
            return finished
        driver.every(settings.trigger / 1e6)
        return False

    def _ended_before(self, new_input: bool) -> None:
        begin_anew = "--fresh begins anew, another output folder begins another job"
        if self.job.run.trigger != "available-now":
            raise JobError(
                f"the job of {self._output} has ended: it ran to the end of its input and let go of all that waited for more. "
                f"Do not give `every` then; {begin_anew}"
            )
        if not new_input:
            self._notices.append(f"this job ran to its end before: nothing was read, nothing has changed; {begin_anew}")
            return
        self._notices.append(
            "there is new input, and it is NOT read: this job ran to its end before and let go of all that waited for more. "
            f"To go on with files that come later, run with drain=false from the start; {begin_anew}"
        )

    def _run_one(self, batch: MicroBatch) -> dict[str, Any]:
        plan = None if batch.plan is None else StreamPlan.from_json(batch.plan)
        # No later entry may change what this run is about to predict, in this try or the next.
        if plan is not None and self.job.seal and self.job.kind != "learn":
            self._patiently(lambda: self._seal(batch, plan.max_event_time_us + 1))
        if plan is not None and self.resolved.ordered:
            self._tell_of_empty_partitions(plan)
        reads = {} if plan is None else plan.reads(self.resolved.ordered)
        watermark_us = MAX_WATERMARK_US if plan is None or batch.is_drain else plan.watermark_us
        run = BoundedRun(
            batch.number,
            reads,
            watermark_us,
            batch.state_in,
            batch.state_out,
            self._patiently(self._log.timeline),
            None if plan is None or batch.is_drain else plan.records_watermark_us,
        )
        counts = self._run(run)
        self._publish(batch.number)
        self._read += plan.rows if plan else 0
        served_us = batch.previous.get("served_us", MIN_TIME_US) if plan is None else plan.max_event_time_us + 1
        return {"records": plan.rows if plan else 0, "counts": counts, "served_us": served_us}

    def _decide(self, judge: Judge) -> Activation | None:
        return self._patiently(lambda: judge.judge(self._latencies()))

    def _tell_of_empty_partitions(self, plan: StreamPlan) -> None:
        found = (
            empty_partitions(self.resolved.records, plan.records_end),
            empty_partitions(self.resolved.labels, plan.labels_end),
        )
        before, self._waiting = self._waiting, [told for told in found if told is not None]
        if not before and self.job.run.trigger != "available-now":
            for told in self._waiting:
                _logger.warning(told)  # at once: such a job has no end

    def _latencies(self) -> dict[int, float]:
        model = self.job.model
        cache = shared_cache(model.registry, block_rows=model.block_rows, max_versions=model.max_versions)
        return cache.latencies(model.name)

    def _make_judge(self, checkpoint: Checkpoint) -> Judge | None:
        """The judge of a job with rules; after a restart it reads what the runs before have left."""
        if self.job.rules is None or self.job.kind != "serve" or not self.job.seal:
            return None
        judge = Judge(self._log, self.job.name, self.job.labels.column if self.job.labels else None, rules_of(self.job.rules))
        last = checkpoint.last_commit()
        for number in range(0 if last is None else last + 1):
            judge.take(self._parts(PREDICTIONS, number), self._parts(EVALUATIONS, number))
        return judge

    def _patiently(self, do: Callable[[], Wanted]) -> Wanted:
        try:
            return patiently(do, self.job.model.patience / 1e6, self._stop.wait)
        except (OSError, LogCorrupt, UnknownVersion) as error:
            raise JobError(
                f"the job of {self._output} stopped: {error} Put it right and give the same command again: it goes on where "
                "this one stopped"
            ) from error

    def _seal(self, batch: MicroBatch, until_us: int) -> None:
        self._log.seal(until_us, by=self.job.name)
        self._settle(int(batch.previous.get("served_us", MIN_TIME_US)), until_us)

    def _settle(self, from_us: int, until_us: int) -> None:
        model = self.job.model
        if self.job.kind == "serve" and model.on_load_failure == "previous":
            cache = shared_cache(model.registry, block_rows=model.block_rows, max_versions=model.max_versions)
            self._notices += settle(self._log, cache, model.name, self.job.name, from_us, until_us)

    def _run_batch(self, checkpoint: Checkpoint) -> None:
        if checkpoint.last_commit() is not None:
            if (checkpoint.offset(0) or {}).get("mode") != "batch":
                raise JobError(
                    f"the job of {self._output} was begun in micro-batches; go on in that mode, or choose another output folder"
                )
            self._ended_before(False)
            return
        sources = {RECORDS: self.resolved.records, LABELS: self.resolved.labels}
        reads = {name: tuple(source.all_tasks(self.resolved.ordered)) for name, source in sources.items() if source is not None}
        for _ in range(_TRIES):
            before = len(self._log.activations())
            counts = self._run(BoundedRun(0, reads, timeline=self._log.timeline()))
            if not self._log_changed(before):
                break
        else:
            raise JobError(
                f"the activation log of {self.job.model.name} was changed during each of {_TRIES} runs; run it again"
            )
        self._publish(0)
        self._read += counts.get(RECORDS, 0)
        note = {"records": counts.get(RECORDS, 0), "counts": counts, DRAIN: True}
        checkpoint.write_offset(0, {"plan": None, "mode": "batch"})
        checkpoint.write_commit(0, note)
        self._committed(MicroBatch(0, None, None, ""), note)

    def _log_changed(self, before: int) -> bool:
        """Seals what a batch has served; whether somebody changed that part of the log while it ran."""
        if not self.job.seal or self.job.kind == "learn":
            return False
        latest = max(map(_latest_event_time_us, self._parts(PREDICTIONS, 0)), default=None)
        if latest is None:
            return False
        self._log.seal(latest + 1, by=self.job.name)
        new = self._log.activations()[before:]
        return any(entry.by != self.job.name and entry.effective_from_us <= latest for entry in new)

    def _run(self, run: BoundedRun) -> dict[str, int]:
        self._discard(run.number)
        run.write(self._run_file)
        try:
            return counters(self._graph.run())
        except RuntimeError as error:
            fault = _system_error(error)
            if fault is None:
                raise
            what = f"{fault.strerror or fault}{f': {fault.filename}' if fault.filename else ''}"
            raise JobError(
                f"the job of {self._output} stopped: {what}. Put it right and give the same command again: it goes on where "
                "this one stopped"
            ) from error

    def _discard(self, number: int) -> None:
        """Takes away what an interrupted try of this run may have left."""
        for name in outputs_of(self.job):
            folder = self._output / name
            folder.mkdir(parents=True, exist_ok=True)
            for left in [*folder.glob(".*"), *self._parts(name, number)]:
                left.unlink()

    def _publish(self, number: int) -> None:
        """Writes what a run gave into topics, if the job wants that: after its files, before its commit."""
        if self._published is not None:
            self._published.publish(number, {name: self._parts(name, number) for name in TOPICS})

    def _parts(self, name: str, number: int) -> list[Path]:
        return sorted((self._output / name).glob(part_name(number, 0).replace("-00000.", "-*.")))

    def _committed(self, batch: MicroBatch, note: dict[str, Any]) -> None:
        if self._judge is not None:
            self._judge.take(self._parts(PREDICTIONS, batch.number), self._parts(EVALUATIONS, batch.number))
            if batch.plan is not None and (entry := self._decide(self._judge)) is not None:
                self._notices.append(f"{entry.kind} to version {entry.version}: {entry.reason}")
        if self._progress is not None:
            parts = {name: self._parts(name, batch.number) for name in (PREDICTIONS, EVALUATIONS)}
            self._progress.committed(note["records"], self.resolved, parts)

    def _conclude(self, checkpoint: Checkpoint, finished: bool) -> Outcome:
        counts: dict[str, int] = {}
        records = 0
        last = checkpoint.last_commit()
        for number in range(0 if last is None else last + 1):
            note = checkpoint.commit(number) or {}
            records += note.get("records", 0)
            for name, value in note.get("counts", {}).items():
                counts[name] = counts.get(name, 0) + value
        counts["records"] = records
        letters = dead_letter_notices(self._output)
        if self.job.kind == "learn":
            return Outcome(None, None, finished, counts, self._notices + letters)
        registry = Registry(self.job.model.registry)
        activations = [asdict(entry) for entry in self._log.activations()]
        manifests = [registry.manifest(self.job.model.name, v) for v in registry.versions(self.job.model.name)]
        versions = [asdict(manifest) | {"digest": manifest.digests.version} for manifest in manifests]
        label = self.job.labels.column if self.job.labels else None
        if label is not None and self.resolved.outputs is not None and "prediction" not in self.resolved.outputs.names:
            self._notices.append("there is no accuracy: the model has no output named prediction to compare with the label")
            label = None
        now = time.monotonic()
        seconds, reading = now - self._started, now - self._reading
        windowed = any(step.windows is not None for step in self.job.steps)
        summary = summarise(str(self._output), records, counts.get("filtered", 0), label, seconds, versions, windowed)
        summary = replace(summary, records_per_s=self._read / reading if self._read else None)
        if estimates_numbers(str(self._output), label):
            label = None  # the report compares labels that are right or wrong
        ended = last is not None and (checkpoint.commit(last) or {}).get(DRAIN)
        self._notices += [] if ended else self._waiting
        if not ended and self.resolved.ordered and summary.lost is not None and summary.lost > 0:
            self._notices.append(
                f"{summary.lost:,} records wait for what is still to come; lost ones can be told apart only at the end"
            )
            summary = replace(summary, lost=None)
        report = self._output / "report.html"
        learner = (self.job.model.registry, self.job.model.name) if self.job.learner is not None else None
        write_report(str(self._output), summary, versions, activations, self.job.name, label, str(report), learner)
        return Outcome(summary, report, finished, counts, self._notices + letters)


def counters(result: PipelineResult) -> dict[str, int]:
    """Midstream's Beam counters of a run, by name."""
    found: dict[str, int] = {}
    for counter in result.metrics().query(MetricsFilter().with_namespace("midstream"))["counters"]:
        name = counter.key.metric.name
        found[name] = found.get(name, 0) + (counter.committed or counter.attempted or 0)
    return found


def _system_error(error: BaseException | None) -> OSError | None:
    """What the operating system refused, if that was it: Beam wraps it in a RuntimeError."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _latest_event_time_us(file: Path) -> int:
    """Of the predictions in a file; the sink writes none without a row."""
    return int(pc.max(event_time_us(pq.read_table(file, columns=[EVENT_TIME]))).as_py())
