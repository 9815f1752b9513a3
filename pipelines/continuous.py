"""Runs a job continuously on Flink: from topics to topics, until it is stopped or up to where its topics end now.

Everything that a start needs is in the output folder: where the job's own topics began, and Flink's checkpoints. A job that was
stopped, or killed with all its processes, goes on from the last checkpoint when it is started again.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.runners.runner import PipelineState

from models.activation_log import LogError
from models.opened import shared_log
from pipelines.graph import DEAD_LETTERS, EVALUATIONS, EVENTS, PREDICTIONS, Resolved, build
from pipelines.job import JobSpec
from pipelines.live_judge import LiveJudge
from pipelines.modes import Continuous
from pipelines.replay import save_job
from pipelines.resolve import JobError, resolve
from pipelines.topics import client_of
from runners import submissions
from runners.checkpoint import Checkpoint, write_atomically
from runners.engines import EngineError
from runners.flink_jobs import end_jobs, was_cancelled
from runners.micro_batch import Stop
from runners.portable import PortableGraph
from transforms.continuous.kafka_sink import Ends, TopicsSpec
from transforms.drift_monitor import DRIFT
from transforms.kafka.publishing import default_topic, make_topics

_LOOK_S = 0.5  # how often it is looked whether the job still runs
_TOLD_EVERY_S = 10.0
_TRIES = 5  # starts of a job that does not get on
_FAULTS = 20  # of steps before anything was written


@dataclass
class ContinuousOutcome:
    """What came of a continuous run.

    Attributes:
        counts: messages written since the job began, by output.
        finished: whether it came to the end of its topics.
        notices: what the user should know although nothing is wrong.
    """

    counts: dict[str, int]
    finished: bool
    report: Path | None = None
    notices: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.counts)


class ContinuousExecution:
    """One go at a continuous job."""

    def __init__(self, job: JobSpec, *, stop: Stop | None = None, tell: Any = None, detach: bool = False) -> None:
        """Makes the job ready.

        Args:
            job: in mode `continuous`.
            stop: set to stop.
            tell: called with a line of text now and then.
            detach: leave the job to its cluster as soon as it has taken a checkpoint.

        Raises:
            JobError: something is wrong with the job or its surroundings; says what to do.
        """
        if job.run.runner != "flink":
            raise JobError(
                f"the {job.run.runner} runner has no continuous mode: add --runner flink, or leave mode=continuous out to run "
                "in micro-batches"
            )
        if detach and job.run.master is None:
            raise JobError("a job is left only to a cluster: give its --master, or leave --detach out")
        self.job, self._detach = job, detach
        self._notices: list[str] = []
        self.resolved = self._resolve()
        self._stop = stop or Stop()
        self._tell = tell or (lambda line: None)
        self._folder = Path(job.output) / "checkpoint"
        self._judge: LiveJudge | None = None

    def _resolve(self) -> Any:
        return resolve(self.job)

    def _plan(self) -> ContinuousPlan:
        return ContinuousPlan.of(self.resolved, self._folder)

    def run(self) -> ContinuousOutcome:
        """Runs until the end or a stop, and gives the counts.

        Raises:
            EngineError: Flink cannot be started.
            JobError: the job failed again and again.
        """
        checkpoint = Checkpoint(self._folder, self.job.identity())
        try:
            save_job(self.job)
            plan = self._plan()
            if plan.is_finished:
                notice = "this job ran to the end of its topics before: nothing was read; --fresh begins anew"
                return ContinuousOutcome(self._counts(plan), True, notices=[notice])
            self._judge = self._make_judge(plan)
            with self._stop.on_signals():
                self._run_and_restart(plan)
            if plan.is_finished:
                submissions.forget(plan.topics.job)
            return ContinuousOutcome(self._counts(plan), plan.is_finished, notices=self._notices)
        finally:
            if self._judge is not None:
                self._judge.close()
            checkpoint.close()

    def _run_and_restart(self, plan: ContinuousPlan) -> None:
        """Runs a job again whenever Flink gives it up: a JobManager that dies takes its jobs along."""
        failures, written = 0, self._counts(plan)
        while not self._stop.is_set() and not plan.is_finished:
            graph = None
            try:
                if self.job.run.master is not None:
                    here = (str(Path(self.job.output).absolute()), str(Path.cwd()), self.job.run.master)
                    submissions.remember(submissions.Submission(plan.topics.job, *here))
                    # A cluster goes on with a job whose command was killed; from here on this one is its command.
                    end_jobs(self.job.run.master, plan.topics.job)
                graph = plan.graph()
                self._watch(graph, plan)
                return
            except (JobError, EngineError) as error:
                now = self._counts(plan)
                failures, written = (1 if now != written else failures + 1), now
                if failures > _TRIES:
                    raise JobError(
                        f"{error}\nThe job failed {failures} times without getting on. Its checkpoints stay."
                    ) from error
                self._tell(f"{str(error).splitlines()[0]}; going on from the last checkpoint")
            finally:
                if graph is not None:
                    graph.close()
            self._stop.wait(min(2.0**failures, 30.0))

    def _watch(self, graph: PortableGraph, plan: ContinuousPlan) -> None:
        """Follows a job until it ends, or is to."""
        began = told = time.monotonic()
        before = sum(self._counts(plan).values())
        faults = 0
        resumed = plan.last_checkpoint
        result = graph.start()
        while not self._stop.wait(_LOOK_S) and not plan.is_finished:
            state = result.state
            if state in (PipelineState.FAILED, PipelineState.CANCELLED, PipelineState.DONE):
                if self.job.run.master is not None and was_cancelled(self.job.run.master, plan.topics.job):
                    self._notices.append(f"the job was cancelled; `midstream jobs resume {plan.topics.job}` goes on with it")
                    return
                raise JobError(str(graph.what_happened(JobError(f"Flink ended the job of {self.job.output}: {state}"))))
            if len(graph.faults) > faults:
                faults = len(graph.faults)
                self._tell(f"a step failed, and Flink goes back to the last checkpoint: {graph.faults[-1]}")
                if faults > _FAULTS and sum(self._counts(plan).values()) == before:
                    raise JobError(f"a step fails again and again: {graph.faults[-1]}") from graph.faults[-1]
            if self._detach and plan.last_checkpoint != resumed:
                self._notices.append(f"the job is left to {self.job.run.master}; `midstream jobs` shows and stops it")
                if self._judge is not None:
                    self._notices.append(f"its rules decide while `midstream guard {self.job.output}` runs")
                return
            if self._judge is not None and (said := self._judge.decide(self._tell)) is not None:
                self._notices.append(said)
            if time.monotonic() - told > _TOLD_EVERY_S:
                told = time.monotonic()
                self._tell(self._status(plan, before, told - began))
        if self.job.run.master is not None:
            result.cancel()

    def _make_judge(self, plan: ContinuousPlan) -> LiveJudge | None:
        job = self.job
        if not isinstance(job, JobSpec) or job.rules is None or job.kind != "serve" or not job.seal:
            return None
        return LiveJudge(plan.resolved, plan.topics.client, plan.topics.topics)

    def _counts(self, plan: ContinuousPlan) -> dict[str, int]:
        by_topic: dict[str, int] = {}
        for file in self._folder.glob("written-*.json"):
            for topic, count in json.loads(file.read_text()).items():
                by_topic[topic] = by_topic.get(topic, 0) + count
        return {name: by_topic.get(topic, 0) for name, topic in plan.topics.topics.items()}

    def _status(self, plan: ContinuousPlan, before: int, seconds: float) -> str:
        counts = self._counts(plan)
        rate = (sum(counts.values()) - before) / seconds
        live = "unknown: the activation log cannot be read just now"
        with contextlib.suppress(LogError, OSError):
            activations = shared_log(self.job.model.registry, self.job.model.name).activations()
            live = f"{activations[-1].version} activated last" if activations else "none"
        told = [f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()]
        return f"{', '.join(told)}  {rate:,.0f} messages/s  version {live}"


@dataclass(frozen=True)
class ContinuousPlan:
    """How a continuous job is put to Flink.

    Attributes:
        resolved: the job.
        topics: what it writes to.
        ends: how far those went when the job was begun.
        folder: of its checkpoints.
    """

    resolved: Resolved
    topics: TopicsSpec
    ends: Ends
    folder: Path

    @classmethod
    def of(cls, resolved: Resolved, folder: Path) -> ContinuousPlan:
        """The plan of a job that is begun or gone on with; makes the topics that are not there.

        Args:
            resolved: the job.
            folder: remembers where the topics began.
        """
        section = resolved.job.publish
        assert section is not None
        names = cls.topics_of(section)
        wanted = {name: topic for name, topic in names.items() if topic is not None}
        keys = {next(iter(names)): section.key} if section.key is not None else {}
        file = folder / "topics.json"
        client = client_of(section)
        if not file.exists():
            make_topics(client, map(default_topic, dict.fromkeys(wanted.values())))
            spec = TopicsSpec(client, wanted, keys, "")
            id, shards = f"{resolved.job.name}-{uuid.uuid4().hex[:12]}", resolved.job.run.parallelism
            write_atomically(file, json.dumps(asdict(_Begun(id, spec.ends(), shards))))
        begun = json.loads(file.read_text())
        if begun.get("shards", 1) != resolved.job.run.parallelism:
            # Which messages are whose depends on it, and so what a shard knows again after a recovery.
            raise JobError(
                f"the job of {resolved.job.output} was begun with --parallelism {begun.get('shards', 1)} and keeps that: "
                "go on with it, or begin anew with --fresh or another output folder"
            )
        return cls(resolved, TopicsSpec(client, wanted, keys, begun["id"], str(folder / "written")), begun["ends"], folder)

    @staticmethod
    def topics_of(section: Any) -> dict[str, str | None]:
        """The topic of each output, the main one first."""
        return {
            PREDICTIONS: section.predictions,
            DEAD_LETTERS: section.dead_letters,
            EVALUATIONS: section.evaluations,
            EVENTS: section.events,
            DRIFT: section.drift,
        }

    def build(self, mode: Continuous) -> None:
        """Adds the job's graph."""
        build(mode, self.resolved)

    @property
    def is_finished(self) -> bool:
        """Whether the job came to the end of its topics."""
        shards = self.resolved.job.run.parallelism
        return all((self.folder / f"finished-{shard}").exists() for shard in range(shards))

    @property
    def last_checkpoint(self) -> str | None:
        """The newest checkpoint or savepoint of Flink's that is complete; None if there is none."""
        places = ("flink/*/chk-*/_metadata", "savepoints/*/_metadata")
        found = [(file.stat().st_mtime, file) for place in places for file in self.folder.glob(place)]
        return f"file://{max(found)[1].parent.resolve()}" if found else None

    def flags(self) -> list[str]:
        """Options for Beam's Flink runner."""
        run = self.resolved.job.run
        given = [
            "--streaming",
            f"--checkpointing_interval={max(run.checkpoint_every // 1000, 1)}",
            "--state_backend=filesystem",
            f"--state_backend_storage_path=file://{(self.folder / 'flink').resolve()}",
            # Without it a splittable source never starts to read.
            "--finish_bundle_before_checkpointing",
            # Bundles end when there has been nothing more for so long: the step behind waits for that.
            "--max_bundle_time_mills=100",
        ]
        resume = self.last_checkpoint
        return given if resume is None else [*given, f"--savepoint_path={resume}"]

    def add_to(self, pipeline: beam.Pipeline) -> None:
        """Adds the job's graph to an empty pipeline."""
        run, source = self.resolved.job.run, self.resolved.job.source
        assert source.kafka is not None
        mode = Continuous(
            pipeline,
            self.topics,
            self.ends,
            tick_us=run.tick,
            idle_us=source.kafka.idle,
            finished=str(self.folder / "finished") if run.trigger == "available-now" else None,
            shards=run.parallelism,
        )
        self.build(mode)

    def graph(self) -> PortableGraph:
        """The graph, ready to start."""
        run = self.resolved.job.run
        return PortableGraph(
            self.add_to,
            "flink",
            parallelism=run.parallelism,
            master=run.master,
            environment=run.workers,
            preinstalled=run.preinstalled,
            flags=self.flags(),
            # A worker that died would be handed out again to every new try of the job.
            options={"job_name": self.topics.job} | ({"environment_cache_millis": 0} if run.workers is not None else {}),
        )


@dataclass(frozen=True)
class _Begun:
    id: str
    ends: Ends
    shards: int
