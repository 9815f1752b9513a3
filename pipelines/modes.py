"""The two ways in which a job's graph is run; what differs between them is all here.

*Bounded*: a batch or one micro-batch. What it reads, its states, its watermark and the activation log are data of the run.
*Continuous*: an unbounded stream on Flink. Sources, states and watermarks are Beam's; the log is read on by the job itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import apache_beam as beam

from pipelines.detection.job import DetectSpec
from pipelines.job import JobSpec
from transforms.bounded_run import ReadRun, ReadTask
from transforms.continuous.advance import AdvanceLive
from transforms.continuous.kafka_sink import Ends, TopicsSpec, WriteTopics
from transforms.continuous.kafka_source import ReadTopic
from transforms.continuous.loop import RELEASED, LearnThenRelease
from transforms.continuous.versions import AssignVersionsLive, LiveLog
from transforms.kafka.source import KafkaSource
from transforms.model_timeline import AssignVersions, Choice
from transforms.operators import Operator
from transforms.overlapped_learning import OverlappedLearning
from transforms.sinks import WriteParquet
from transforms.sources import Decode, Read, Source
from transforms.stateful import Advance
from transforms.training import ActivateVersions


class Mode(Protocol):
    """How a graph reads, keeps state, knows the log and writes."""

    def read(self, source: Source, name: str, ordered: bool) -> Read:
        """Reads a source."""

    def advance(self, operator: Operator, name: str, *, records_only: bool = False) -> beam.PTransform:
        """Feeds an operator: a dict of PCollections by input tag to one by output tag."""

    def learn(
        self, operator: Operator, inputs: Mapping[str, beam.PCollection], rows: str, job: JobSpec, context: Operator | None
    ) -> tuple[beam.PCollection, dict[str, beam.PCollection]]:
        """Feeds a learner and activates what it learns.

        Args:
            operator: the learner.
            inputs: by its tags.
            rows: the input that is also predicted.
            job: whose model it is.
            context: what adds to these rows before they are learnt or predicted, given the same inputs; None for nothing.

        Returns:
            The rows, with their context, as far as they may be predicted; and the learner's outputs.
        """

    def versions(self, job: JobSpec, choice: Choice) -> beam.PTransform:
        """RecordBatches to `Request`s."""

    def write(
        self, streams: Mapping[str, beam.PCollection], columns: Mapping[str, list[str]], job: JobSpec | DetectSpec
    ) -> None:
        """Writes the outputs, by name."""


class Bounded:
    """See the module's docstring."""

    def __init__(self, pipeline: beam.Pipeline, run_file: str, *, spread: bool = False) -> None:
        """Adds the run to the graph.

        Args:
            pipeline: an empty pipeline.
            run_file: the file that a `BoundedRun` is written to before each run of the graph.
            spread: read files side by side, where their order does not matter.
        """
        self._spread = spread
        self._runs = pipeline | "run" >> ReadRun(run_file)
        # From a root of its own: read off `runs`, the side input would keep Beam from fusing decoding with predicting, and
        # every batch would be encoded, held in memory until the last is read, and decoded again.
        self._timelines = pipeline | "run for log" >> ReadRun(run_file) | "log" >> beam.Map(lambda run: run.timeline)

    def read(self, source: Source, name: str, ordered: bool) -> Read:
        tasks = self._runs | f"{name} to read" >> beam.FlatMap(lambda run: run.reads.get(name, ())).with_output_types(ReadTask)
        if self._spread and not ordered:
            tasks = tasks | f"{name} spread" >> beam.Reshuffle()
        return tasks | name >> Decode(source, ordered, name)

    def advance(self, operator: Operator, name: str, *, records_only: bool = False) -> beam.PTransform:
        return Advance(operator, name, self._runs, records_only=records_only)

    def learn(
        self, operator: Operator, inputs: Mapping[str, beam.PCollection], rows: str, job: JobSpec, context: Operator | None
    ) -> tuple[beam.PCollection, dict[str, beam.PCollection]]:
        if context is not None:
            operator = OverlappedLearning(job.model.registry, context, operator)
        given = inputs | self.advance(operator, "learn")
        activate = ActivateVersions(job.model.registry, job.model.name, job.name, strict=job.kind == "loop")
        activations = given["activations"] | "activate" >> activate
        self._timelines = (self._timelines, activations) | "log and learnt" >> beam.Flatten()
        return inputs[rows] if context is None else given[context.outputs[0]], given

    def versions(self, job: JobSpec, choice: Choice) -> beam.PTransform:
        return AssignVersions(self._timelines, choice)

    def write(
        self, streams: Mapping[str, beam.PCollection], columns: Mapping[str, list[str]], job: JobSpec | DetectSpec
    ) -> None:
        folders = {f"{job.output}/{name}": rows for name, rows in streams.items()}
        _ = folders | "write" >> WriteParquet(self._runs, {f"{job.output}/{name}": own for name, own in columns.items()})


class Continuous:
    """See the module's docstring."""

    def __init__(
        self,
        pipeline: beam.Pipeline,
        topics: TopicsSpec,
        ends: Ends,
        *,
        tick_us: int,
        idle_us: int | None,
        finished: str | None = None,
        shards: int = 1,
    ) -> None:
        """Begins the graph.

        Args:
            pipeline: an empty pipeline.
            topics: where the outputs go; one that has no topic is not written.
            ends: how far the topics go before the job starts.
            tick_us: steps with state look at their rows at multiples of this in event time.
            idle_us: see `ReadTopic`.
            finished: end where the topics end now, and write this file then, see `WriteTopics`; None goes on for ever.
            shards: transactions side by side.
        """
        self._pipeline, self._topics, self._ends = pipeline, topics, ends
        self._tick_us, self._idle_us, self._finished, self._shards = tick_us, idle_us, finished, shards

    def read(self, source: Source, name: str, ordered: bool) -> Read:
        assert isinstance(source, KafkaSource), "a continuous job reads topics"
        return self._pipeline | name >> ReadTopic(
            source, idle_us=self._idle_us, until_now=self._finished is not None, count=name
        )

    def advance(self, operator: Operator, name: str, *, records_only: bool = False) -> beam.PTransform:
        return AdvanceLive(operator, name, tick_us=self._tick_us)

    def learn(
        self, operator: Operator, inputs: Mapping[str, beam.PCollection], rows: str, job: JobSpec, context: Operator | None
    ) -> tuple[beam.PCollection, dict[str, beam.PCollection]]:
        model = job.model
        if context is not None:
            inputs = {**inputs, rows: (inputs | self.advance(context, "context"))[context.outputs[0]]}
        if job.kind == "loop":
            given = inputs | self.advance(LearnThenRelease(operator, model.registry, model.name, job.name, rows), "learn")
            return given[RELEASED], given
        given = inputs | self.advance(operator, "learn")
        _ = given["activations"] | "activate" >> ActivateVersions(model.registry, model.name, job.name, strict=False)
        return inputs[rows], given

    def versions(self, job: JobSpec, choice: Choice) -> beam.PTransform:
        model = job.model
        takes_back = job.kind == "serve" and model.on_load_failure == "previous"
        sizes = {"block_rows": model.block_rows, "max_versions": model.max_versions}
        log = LiveLog(model.registry, model.name, job.name, model.patience / 1e6, **sizes, takes_back=takes_back)
        return AssignVersionsLive(log, choice)

    def write(
        self, streams: Mapping[str, beam.PCollection], columns: Mapping[str, list[str]], job: JobSpec | DetectSpec
    ) -> None:
        wanted = {name: rows for name, rows in streams.items() if name in self._topics.topics}
        _ = wanted | "write" >> WriteTopics(self._topics, self._ends, columns, self._shards, self._finished)
