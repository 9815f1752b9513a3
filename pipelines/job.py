"""What a job is: the typed form of the `job` section of a template.

A job reads records, runs steps over them, and then serves (predicts with the live versions of a model), learns (trains new
versions from labelled rows), or both in one graph. Everything is checked here, before anything runs.
"""

from __future__ import annotations

import pkgutil
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

import models.learners
from pipelines.section import DurationUs, LagsStep, Names, PositiveUs, Section, checked_moment
from transforms.durations import parse_duration


def _aggregates(given: Any) -> Any:
    """`total=sum(amount);high=quantile(amount, 0.95)` as a mapping."""
    if not isinstance(given, str):
        return given
    parts = [part.partition("=") for part in given.split(";") if part.strip()]
    names = [name.strip() for name, _, _ in parts]
    if any(not equals for _, equals, _ in parts):
        raise ValueError(f"expected name=aggregate;name=aggregate, got {given!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"expected every name once, got {', '.join(names)}")
    return {name.strip(): aggregate.strip() for name, _, aggregate in parts}


def _algorithm(name: str) -> str:
    found = [module.name for module in pkgutil.iter_modules(models.learners.__path__)]
    if name not in found:
        raise ValueError(f"expected one of {', '.join(found)}, got {name!r}")
    return name


def _start(text: str) -> str:
    return text if text in ("earliest", "latest") else checked_moment(text)


Algorithm = Annotated[str, AfterValidator(_algorithm)]
Aggregates = Annotated[dict[str, str], BeforeValidator(_aggregates)]


class TimeSection(Section):
    """Where a record's event time comes from: a column, or a start and a step per row."""

    column: str | None = None
    unit: Literal["iso", "s", "ms", "us"] = "iso"
    start: Annotated[str, AfterValidator(checked_moment)] = "1970-01-01T00:00:00Z"
    step: DurationUs = parse_duration("1s")


class KafkaSection(Section):
    """A Kafka cluster.

    `options` are librdkafka's, such as `security.protocol`; `config` names a file of `name=value` lines with more of them,
    which is the place for passwords. A cluster that does not answer is asked again for `patience`.
    """

    bootstrap: str
    options: dict[str, str] = {}
    config: str | None = None
    patience: PositiveUs = parse_duration("1m")


class TopicSection(KafkaSection):
    """A topic to read.

    `key` is the declared column that is filled with the message's key; `fields` names what is in a line of CSV. A stream begins
    at `start`: earliest, latest, or a time. Where order matters, a partition that was silent for `idle` is not waited for.
    """

    topic: str
    key: str | None = None
    fields: Names = ()
    start: Annotated[str, AfterValidator(lambda text: text if text in ("earliest", "latest") else checked_moment(text))] = (
        "earliest"
    )
    idle: PositiveUs | None = None


class PublishSection(KafkaSection):
    """Topics to write to: each micro-batch in a transaction, so that readers of what is committed see all of it, once.

    `key` is the column of the predictions that becomes the message's key. The topic `commits` notes which micro-batches were
    written.
    """

    predictions: str | None = None
    dead_letters: str | None = None
    evaluations: str | None = None
    events: str | None = None
    drift: str | None = None
    format: Literal["json", "arrow"] = "json"
    key: str | None = None
    commits: str = "midstream-commits"

    @property
    def wanted(self) -> bool:
        """Whether there is a topic to write to."""
        return any((self.predictions, self.dead_letters, self.evaluations, self.events, self.drift))

    @model_validator(mode="after")
    def _keys_fit(self) -> PublishSection:
        if self.key is not None and self.format == "arrow":
            raise ValueError("a message of format arrow holds many predictions and has no `key`; leave it out, or use json")
        return self


class SourceSection(Section):
    """Files to read (one, a folder, or a pattern), or a topic.

    `columns` maps names to types (`float64`, `string?` ...); left out, they are inferred from the first file. Those of a topic
    have to be declared.
    """

    path: str | None = None
    kafka: TopicSection | None = None
    format: Literal["auto", "csv", "jsonl", "parquet", "tfrecord"] = "auto"
    columns: dict[str, str] | str | None = None
    time: TimeSection = TimeSection()
    out_of_orderness: DurationUs = 0
    batch_rows: int = Field(default=32768, ge=1)

    @model_validator(mode="after")
    def _one_place(self) -> SourceSection:
        if (self.path is None) == (self.kafka is None):
            raise ValueError("a source is either files (`path`) or a topic (`kafka`)")
        return self


class LookupStep(Section):
    """Adds columns of a table that is read once."""

    table: str
    on: Names
    columns: Names | None = None
    default: Literal["null", "drop"] = "null"


class WindowsStep(Section):
    """Replaces records by aggregates over windows of event time."""

    kind: Literal["fixed", "sliding", "session"]
    size: str | float | None = None
    every: str | float | None = None
    gap: str | float | None = None
    by: Names = ()
    aggregates: Aggregates
    allowed_lateness: DurationUs = 0


class Step(Section):
    """One step; exactly one of its settings is given."""

    map: dict[str, str] | None = None
    filter: str | None = None
    lookup: LookupStep | None = None
    lags: LagsStep | None = None
    windows: WindowsStep | None = None

    @model_validator(mode="after")
    def _one(self) -> Step:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a step is one of {', '.join(type(self).model_fields)}; got {', '.join(given) or 'none of them'}")
        return self


class LabelsSection(Section):
    """Where labels come from: a column of the records, known `delay` after them, or a stream of their own.

    A stream's event time is the moment a label became known. It joins the records that agree in the columns `on`, up to
    `horizon` after them. With `metrics_rows` a job that predicts writes figures of its predictions, `metrics/`, for so many
    evaluated records, and for each value of the column `metrics_by`, one of those kept.
    """

    column: str
    delay: DurationUs | None = None
    source: SourceSection | None = None
    on: Names = ()
    horizon: DurationUs | None = None
    metrics_rows: int | None = Field(default=None, ge=1)
    metrics_by: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> LabelsSection:
        if (self.delay is None) == (self.source is None):
            raise ValueError(
                "labels want either `delay` (the label is a column of the records) or `source` (it comes in a stream of its "
                "own)"
            )
        if self.source is not None and (not self.on or self.horizon is None):
            raise ValueError(
                "a label stream wants `on` (the columns that join it to the records) and `horizon` (how late a label may come)"
            )
        return self


class LearnerSection(Section):
    """How the model learns: an algorithm of `models.learners`.

    It takes every numeric column if `features` is left out, but for those that are kept or name a record. With `every_rows` a
    version is learnt from so many rows (the first ones from fewer), otherwise from each stretch of time `every`. What it does
    when its errors rise, by River's `detector`, is `on_drift` (`transforms.drift_response`).
    """

    algorithm: Algorithm = "mlp_classifier"
    features: Names = ()
    every: PositiveUs = parse_duration("1d")
    every_rows: int | None = Field(default=None, ge=1)
    warm_up_rows: int = Field(default=1, ge=1)
    options: dict[str, Any] = {}
    on_drift: Literal["none", "raise", "reset", "fork"] = "none"
    detector: Literal["page-hinkley", "adwin", "kswin"] = "page-hinkley"


class MonitorSection(Section):
    """Compares inputs and scores with the training window of the version that predicted them: output `drift`.

    A row of figures for each `rows` predictions and column (the model's inputs, if no `columns` are named). An alarm wants a
    p-value below `significance`, shared among the columns, and a distance of `min_distance`. A version that was published
    without a summary of its training rows is compared with the first `reference_rows` that it predicted.
    """

    rows: int = Field(default=1000, ge=50)
    columns: Names = ()
    significance: float = Field(default=0.01, gt=0, lt=1)
    min_distance: float = Field(default=0.1, ge=0, le=1)
    reference_rows: int = Field(default=2000, ge=200)


class ModelSection(Section):
    """Which model, where its versions and its activation log are, and what to do about a version that does not load.

    `previous` takes the version before and says so in the log and the lineage, `hold` stops until it loads, `dead_letter` lets
    its records go.

    A registry that cannot be reached is waited for, up to `patience`: the records wait, too.

    A canary serves the records whose `key` (their number, if none is given) falls into its share. With `compare` a second
    version predicts beside: a shadow, a canary's live counterpart, and for as long as `guard` after an activation the version
    before; its outputs have the prefix `beside_`.

    Records before the first activation have no prediction (`abstain`), or one by the learner that has learnt nothing (`prior`)
    or by the SavedModel `parent`, or wait for the first version (`hold`). A parent that can learn is gone on from.
    """

    registry: str
    name: str
    compare_with_first: bool = False
    block_rows: int = Field(default=1024, ge=1)
    max_versions: int = Field(default=8, ge=1)
    on_load_failure: Literal["previous", "hold", "dead_letter"] = "previous"
    patience: DurationUs = parse_duration("5m")
    key: Names = ()
    compare: bool = False
    guard: DurationUs | None = None
    cold_start: Literal["abstain", "prior", "parent", "hold"] = "abstain"
    parent: str | None = None


class RulesSection(Section):
    """When a version is promoted or taken back without anybody; see `models.gate.rules.Rules`."""

    min_rows: int = Field(default=300, ge=1)
    window_rows: int = Field(default=2000, ge=1)
    tolerance: float = Field(default=0.0, ge=0)
    significance: float = Field(default=0.001, gt=0, lt=1)
    promote: bool = True
    max_nan_rate: float = Field(default=0.0, ge=0, le=1)
    max_score_shift: float = Field(default=0.5, ge=0, le=1)
    max_latency_ratio: float = Field(default=10.0, gt=0)


class RunSection(Section):
    """How a stream is cut, when a micro-batch begins, and what runs it. None of it changes a prediction.

    `master` and `workers` are those of a cluster: where it takes jobs, and where it finds Python workers; `preinstalled` says
    that it has Beam's jars itself. A continuous job looks at rows that wait in its steps at multiples of `tick` in event time,
    and takes a checkpoint every `checkpoint_every`.
    """

    mode: Literal["micro-batch", "batch", "continuous"] = "micro-batch"
    tick: PositiveUs = parse_duration("1s")
    checkpoint_every: PositiveUs = parse_duration("5s")
    span: PositiveUs | None = None
    records: int | None = Field(default=None, ge=1)
    trigger: Literal["available-now"] | PositiveUs = "available-now"
    drain: bool = True
    runner: Literal["direct", "prism", "flink", "spark"] = "direct"
    parallelism: int = Field(default=1, ge=1)
    master: str | None = None
    workers: str | None = None
    preinstalled: bool = False


class JobSpec(Section):
    """A job.

    Attributes:
        name: of the job; signs its publications and seals.
        kind: serve (predict), learn (train), or loop (both in one graph, each version live from the window it was trained on).
        labels: what a learner learns to predict; without them it learns the records themselves, once they are in order.
        keep: input columns to carry into the predictions.
        output: folder for everything the job writes.
        in_order: predict records in order of event time, late ones not at all, as a job that learns always does.
        seal: whether predicting closes the past of the activation log; a replay leaves the log as it is.
    """

    name: str
    kind: Literal["serve", "learn", "loop"]
    source: SourceSection
    steps: tuple[Step, ...] = ()
    labels: LabelsSection | None = None
    learner: LearnerSection | None = None
    model: ModelSection
    keep: Names = ()
    output: str
    rules: RulesSection | None = None
    monitor: MonitorSection | None = None
    run: RunSection = RunSection()
    in_order: bool = False
    seal: bool = True
    against: str | None = None
    publish: PublishSection | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_cluster(cls, given: Any) -> Any:
        """Labels and outputs are in the cluster of the records, unless they name one."""
        source = given.get("source") if isinstance(given, dict) else None
        kafka = source.get("kafka") if isinstance(source, dict) else None
        if not isinstance(kafka, dict):
            return given
        cluster = {name: kafka[name] for name in KafkaSection.model_fields if name in kafka}
        given = dict(given)
        if isinstance(publish := given.get("publish"), dict) and "bootstrap" not in publish:
            given["publish"] = cluster | publish
        labels: Any = given.get("labels")
        topic: Any = labels.get("source") if isinstance(labels, dict) else None
        own = topic.get("kafka") if isinstance(topic, dict) else None
        if isinstance(own, dict) and "bootstrap" not in own:
            idle = {"idle": kafka["idle"]} if "idle" in kafka else {}
            given["labels"] = labels | {"source": topic | {"kafka": cluster | idle | own}}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> JobSpec:
        if self.kind != "serve" and self.learner is None:
            raise ValueError(f"a job that learns ({self.kind}) wants a section `learner`")
        if self.kind == "serve" and self.learner is not None:
            raise ValueError("a job that only serves has no `learner`; its kind would be `loop`")
        if self.kind == "serve" and self.model.cold_start in ("prior", "parent"):
            raise ValueError(f"cold_start: {self.model.cold_start} is for a job that learns; activate a version beforehand")
        if (self.model.parent is not None) != (self.model.cold_start == "parent"):
            raise ValueError("cold_start: `parent` wants a SavedModel, the parameter parent, and nothing else does")
        if self.run.mode == "continuous":
            self._continuous()
        if self.publish is not None and self.source.kafka is not None:
            outputs = (self.publish.predictions, self.publish.dead_letters, self.publish.commits)
            if self.source.kafka.topic in outputs and self.publish.bootstrap == self.source.kafka.bootstrap:
                raise ValueError(f"topic {self.source.kafka.topic!r} is both read and written: the job would feed itself")
        if self.monitor is None and self.publish is not None and self.publish.drift is not None:
            raise ValueError("a topic for drift wants something to put in it: say how many rows to compare (drift_rows)")
        if self.run.mode == "batch" and self.run.trigger != "available-now":
            raise ValueError("batch mode runs once: leave `trigger` out, or use micro-batch mode")
        return self

    def _continuous(self) -> None:
        if self.model.cold_start == "hold":
            raise ValueError("a continuous job does not hold records back: use micro-batches, or another cold_start")
        if self.source.kafka is None or (self.labels is not None and self.labels.source and self.labels.source.kafka is None):
            raise ValueError("a continuous job reads topics; for files use mode: micro-batch with `every`")
        if self.publish is None or not self.publish.wanted:
            raise ValueError("a continuous job writes to topics: name one for its predictions (predictions_topic)")
        if self.publish.format != "json":
            raise ValueError(f"a continuous job writes messages of format json, not {self.publish.format}")

    def identity(self) -> dict[str, Any]:
        """What must stay the same when a job is gone on with; how the stream is cut may change."""
        how_reached: Any = {"kafka": {"bootstrap", "options", "config", "patience", "idle"}}
        exclude: Any = {"run": True, "output": True, "against": True, "publish": True, "source": how_reached}
        return self.model_dump(mode="json", exclude=exclude | {"labels": {"source": how_reached}})
