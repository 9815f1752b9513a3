"""What a job that detects anomalies is: the typed form of the `job` section of its template."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.job import KafkaSection, RunSection, SourceSection
from pipelines.section import Names, PositiveUs, Section
from transforms.durations import parse_duration


def _at_least_phases(season_us: int) -> int:
    if season_us < 60_000_000:
        raise ValueError("expected a season of at least a minute")
    return season_us


class DetectorSection(Section):
    """What is scored, and how.

    `values` are the columns scored together, every numeric one if left out; `by` names the series of a row, its file if left
    out.
    """

    values: Names = ()
    by: Names = ()
    season: Annotated[PositiveUs, AfterValidator(_at_least_phases)] = parse_duration("1d")
    weekends: bool = True
    false_alarm_rate: float = Field(default=1e-3, gt=1e-9, lt=1)
    seed: int = 7


class DetectPublishSection(KafkaSection):
    """Topics to write to, a JSON object a row; `key` is the column that becomes the message's key."""

    scores: str | None = None
    alarms: str | None = None
    dead_letters: str | None = None
    key: str | None = None


class DetectSpec(Section):
    """A job that gives every row of a folder of CSV files, or of a topic, an anomaly score.

    Attributes:
        name: of the job.
        kind: detect.
        source: CSV files, those in subfolders, too; or a topic.
        detector: its settings.
        output: folder for the CSV files with scores, and for everything else that the job writes.
        registry: where the detector is published; `registry` in the output folder if left out.
        model: the detector's name there; one of several columns has their number behind it.
        publish: topics for what a continuous job gives.
    """

    name: str
    kind: Literal["detect"]
    source: SourceSection
    detector: DetectorSection = DetectorSection()
    output: str
    registry: str | None = None
    model: str = "anomalies"
    run: RunSection = RunSection()
    publish: DetectPublishSection | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_cluster(cls, given: Any) -> Any:
        """Outputs are in the cluster of the records, unless they name one."""
        source = given.get("source") if isinstance(given, dict) else None
        kafka = source.get("kafka") if isinstance(source, dict) else None
        publish = given.get("publish") if isinstance(given, dict) else None
        if not isinstance(kafka, dict) or not isinstance(publish, dict) or "bootstrap" in publish:
            return given
        return given | {"publish": {name: kafka[name] for name in KafkaSection.model_fields if name in kafka} | publish}

    @model_validator(mode="after")
    def _consistent(self) -> DetectSpec:
        continuous = self.run.mode == "continuous"
        if continuous != (self.source.kafka is not None):
            raise ValueError("a topic is scored in mode: continuous, and files in any other")
        if continuous and (self.publish is None or not (self.publish.scores or self.publish.alarms)):
            raise ValueError("a continuous job writes to topics: name one for its scores or its alarms")
        return self

    def identity(self) -> dict[str, Any]:
        """What must stay the same when a job is gone on with; how the stream is cut may change."""
        how_reached: Any = {"kafka": {"bootstrap", "options", "config", "patience", "idle"}}
        return self.model_dump(mode="json", exclude={"run": True, "output": True, "publish": True, "source": how_reached})
