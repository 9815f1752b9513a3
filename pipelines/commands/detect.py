"""What `midstream run` does with a job that detects anomalies, and how a run of any job ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
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
