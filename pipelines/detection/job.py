"""What a job that detects anomalies is: the typed form of the `job` section of its template."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pipelines.job import Names, PositiveUs, RunSection, Section, SourceSection
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


class DetectSpec(Section):
    """A job that gives every row of a folder of CSV files an anomaly score.

    Attributes:
        name: of the job.
        kind: detect.
        source: CSV files; those in subfolders, too.
        detector: its settings.
        output: folder for the CSV files with scores, and for everything else that the job writes.
    """

    name: str
    kind: Literal["detect"]
    source: SourceSection
    detector: DetectorSection = DetectorSection()
    output: str
    run: RunSection = RunSection()

    def identity(self) -> dict[str, Any]:
        """What must stay the same when a job is gone on with; how the stream is cut may change."""
        return self.model_dump(mode="json", exclude={"run", "output"})
