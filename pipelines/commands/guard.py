"""`midstream guard`: the rules of a continuous job that was left to its cluster."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.common import hushed

_LOOK_S = 0.5


@click.command(short_help="Let the rules of a detached continuous job decide.")
@click.argument("output", type=click.Path(exists=True, file_okay=False))
def guard(output: str) -> None:
    """Let the rules of the continuous job in the folder OUTPUT decide, until stopped with Ctrl-C.

    The command that runs a job does this itself; one that was left to its cluster (`submit --detach`) has none. Promotions and
    rollbacks go to the activation log, with their evidence.
    """
    with hushed():
        from pipelines.continuous import ContinuousPlan
        from pipelines.job import JobSpec
        from pipelines.live_judge import LiveJudge
        from pipelines.replay import JOB_FILE
        from pipelines.resolve import JobError, resolve
        from runners.micro_batch import Stop

    file = Path(output) / JOB_FILE
    if not file.exists():
        raise JobError(f"{output} is not the output folder of a job: it has no {JOB_FILE}")
    job = JobSpec.model_validate_json(file.read_text())
    if job.rules is None or job.run.mode != "continuous":
        raise JobError(f"the job of {output} is not a continuous one with rules: give it compare=true and rules_rows")
    plan = ContinuousPlan.of(resolve(job), Path(output) / "checkpoint")
    judge, stop = LiveJudge(plan.resolved, plan.topics.client, plan.topics.topics), Stop()
    with stop.on_signals():
        while not stop.wait(_LOOK_S):
            judge.decide(click.echo)
    judge.close()
