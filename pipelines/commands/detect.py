"""What `midstream run` does with a job that detects anomalies, how a run of any job ends, and `midstream save-detector`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import click

from pipelines.commands.common import hushed
from pipelines.detection.job import DetectSpec


class Ended(Protocol):
    """What came of a run."""

    finished: bool
    notices: list[str]

    @property
    def problems(self) -> Sequence[str]: ...

    def to_json(self) -> str: ...


def detect(job: DetectSpec, *, fresh: bool) -> None:
    """Runs a job over files."""
    with hushed():
        from pipelines.detection.execute import DetectionExecution, clear

    if fresh:
        clear(job)
    outcome = DetectionExecution(job).run()
    click.echo(f"report: {outcome.report}", err=True)
    conclude(outcome)


@click.command("save-detector", short_help="Save a detector of anomalies with settings of your own.")
@click.argument("folder", type=click.Path(exists=False))
@click.option("--columns", type=click.IntRange(1), default=1, show_default=True, help="Numeric columns of a series.")
@click.option(
    "--quiet-rows",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="What a row must exceed to count in full sinks from the last that did to nothing over so many rows.",
)
@click.option(
    "--repeated",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="So much of its surprise is left to a row that is no stronger than one shortly before.",
)
@click.option("--seed", type=int, default=7, show_default=True, help="Of the projections of several columns.")
def save_detector(folder: str, columns: int, quiet_rows: int, repeated: float, seed: int) -> None:
    """Save a detector with settings of your own in FOLDER, as a SavedModel.

    A running detect-anomalies job takes it over at an event time, with what it knows of each series:

    \b
    midstream save-detector calmer --quiet-rows 600
    midstream publish --registry OUTPUT/registry --model anomalies --activate calmer
    """
    with hushed():
        from models.anomaly import saved
        from models.anomaly.detector import DetectorConfig

        if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
            raise click.ClickException(f"{folder} is there already; nothing was written. Name a new folder.")
        saved.save_detector(DetectorConfig(columns, seed, quiet_rows, repeated), folder)
    click.echo(f"{folder}: a detector for {columns} column{'s' * (columns != 1)}; publish it with midstream publish")


def try_out(job: DetectSpec) -> None:
    """Checks a job, and prints it."""
    with hushed():
        from pipelines.detection.continuous import resolve_topic
        from pipelines.detection.resolve import resolve_detection
    if job.run.mode == "continuous":
        resolve_topic(job)
    else:
        resolve_detection(job)
    click.echo(json.dumps(job.model_dump(mode="json"), indent=2))


def conclude(outcome: Ended) -> None:
    """Says how a run ended; the process fails if something must not be overlooked."""
    if not outcome.finished:
        click.echo("stopped; give the same command again to go on", err=True)
    for notice in outcome.notices:
        click.echo(f"note: {notice}", err=True)
    for problem in outcome.problems:
        click.echo(f"PROBLEM: {problem}", err=True)
    click.echo(outcome.to_json())
    if outcome.problems:
        sys.exit(1)
