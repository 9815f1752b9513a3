"""How the commands run a continuous job, of whatever kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipelines.commands.common import hushed
from pipelines.commands.detect import conclude
from pipelines.detection.job import DetectSpec

if TYPE_CHECKING:
    from pipelines.job import JobSpec


def run_continuously(job: JobSpec | DetectSpec, *, detach: bool = False, quiet: bool = False) -> None:
    """Runs a continuous job and says how it ended.

    Args:
        job: what to run.
        detach: leave it to its cluster once it runs.
        quiet: no progress.
    """
    with hushed():
        from pipelines.continuous import ContinuousExecution
        from pipelines.detection.continuous import ContinuousDetection

    kind: Any = ContinuousDetection if isinstance(job, DetectSpec) else ContinuousExecution
    outcome = kind(job, tell=None if quiet else lambda line: click.echo(line, err=True), detach=detach).run()
    if outcome.report is not None:
        click.echo(f"report: {outcome.report}", err=True)
    conclude(outcome)
