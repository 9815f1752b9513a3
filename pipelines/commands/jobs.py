"""`midstream jobs`: what runs on a Flink cluster, by name: list, status, cancel, savepoint, resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from pipelines.commands.common import AS_JSON, print_rows

_NOT_RUNNING = "NOT RUNNING"


@click.group(short_help="See, stop, save and go on with the jobs of a Flink cluster.")
def jobs() -> None:
    """See, stop, save and go on with the jobs of a Flink cluster, by NAME (or by the id that `list` shows).

    A continuous job that was submitted from this machine is remembered: `jobs resume NAME` goes on with it from its newest
    checkpoint or savepoint. Other jobs are gone on with by giving their command again.
    """


_MASTER = click.option(
    "--master", metavar="HOST:PORT", help="Flink's REST address. Default: that of `midstream cluster up flink`."
)
_NAME = click.argument("name")


@jobs.command("list", short_help="Show the jobs.")
@_MASTER
@AS_JSON
def list_jobs(master: str | None, as_json: bool) -> None:
    """Show the jobs, the newest first; behind them those that can be resumed and do not run."""
    from runners import flink_jobs, submissions

    found = flink_jobs.jobs(_master(master))
    rows: list[tuple[Any, ...]] = [(job.name, job.state, round(job.seconds), job.id) for job in found]
    alive = {job.name for job in found if job.alive}
    rows += [(one.job, _NOT_RUNNING, None, one.output) for one in submissions.remembered() if one.job not in alive]
    print_rows(("job", "state", "seconds", "id, or output folder"), rows, as_json)


@jobs.command("status", short_help="Show one job: state, checkpoints, what it has written.")
@_MASTER
@_NAME
@AS_JSON
def job_status(master: str | None, name: str, as_json: bool) -> None:
    """Show the job NAME: its state, its last checkpoint, and how many messages it has written since it began."""
    from runners import flink_jobs, submissions

    where = _master(master)
    found = [job for job in flink_jobs.jobs(where) if job.id == name or submissions.answers_to(job.name, name)]
    known = [one for one in submissions.remembered() if submissions.answers_to(one.job, found[0].name if found else name)]
    if not found and not known:
        submissions.find(name)  # says what there is
    told: dict[str, Any] = {"job": found[0].name if found else known[0].job, "state": found[0].state if found else _NOT_RUNNING}
    if found:
        told |= {"id": found[0].id, "seconds": round(found[0].seconds), **flink_jobs.checkpoints(where, found[0].id)}
    if known:
        told |= {"output": known[0].output, "written": _written(Path(known[0].output))}
    if as_json:
        click.echo(json.dumps(told))
        return
    print_rows(("", "found"), [(key, value) for key, value in told.items()], False)


@jobs.command("cancel", short_help="Stop a job.")
@_MASTER
@_NAME
def cancel_job(master: str | None, name: str) -> None:
    """Cancel the running job NAME. A command that waits for it ends. It can be resumed from its last checkpoint."""
    from runners import flink_jobs

    where = _master(master)
    flink_jobs.cancel(where, flink_jobs.running(where, name).id)
    click.echo(f"{name} is cancelled")


@jobs.command("savepoint", short_help="Save a job's state.")
@_MASTER
@_NAME
@click.option("--to", "folder", metavar="URI", help="Where to, as file:///savepoints. Default: the job's own folder.")
@click.option("--stop", is_flag=True, help="Cancel the job with it.")
def save_job(master: str | None, name: str, folder: str | None, stop: bool) -> None:
    """Take a savepoint of the running job NAME; prints where it is.

    In the job's own folder `jobs resume` finds it; Flink keeps it when the job is cancelled, whatever the cluster's settings.
    """
    from runners import flink_jobs, submissions

    where = _master(master)
    job = flink_jobs.running(where, name)
    own = [one.savepoints for one in submissions.remembered() if one.job == job.name]
    click.echo(flink_jobs.savepoint(where, job.id, folder or next(iter(own), None), stop=stop))


@jobs.command("resume", short_help="Go on with a continuous job.")
@_MASTER
@_NAME
@click.option("--workers", metavar="ADDRESS", help="host:port of the Python workers. Default: as before, or of `cluster up`.")
@click.option("--detach", is_flag=True, help="Leave the job to the cluster once it runs.")
@click.option("--quiet", is_flag=True, help="No progress; only the summary at the end.")
def resume_job(master: str | None, name: str, workers: str | None, detach: bool, quiet: bool) -> None:
    """Go on with the continuous job NAME from its newest savepoint or checkpoint; a new start of it ends one that runs.

    NAME may be its output folder, too. The command waits for the job as `submit` does.
    """
    from pipelines.commands.continuously import run_continuously
    from runners import cluster_state, flink_jobs, submissions

    found = submissions.find(name)
    local = cluster_state.status("flink")
    if master is None and local is not None:
        master, workers = local["address"], workers or local["workers"]
    settings = {"master": master or found.master} | ({} if workers is None else {"workers": workers})
    flink_jobs.jobs(settings["master"])  # says whether it is there before anything is loaded
    os.chdir(found.folder)
    run_continuously(_job_in(Path(found.output), settings), detach=detach, quiet=quiet)


def _job_in(output: Path, settings: dict[str, str]) -> Any:
    """The job that was saved in an output folder, on another cluster perhaps."""
    from pipelines.detection.job import DetectSpec
    from pipelines.job import JobSpec
    from pipelines.replay import JOB_FILE

    given = json.loads((output / JOB_FILE).read_text())
    kind = DetectSpec if given["kind"] == "detect" else JobSpec
    return kind.model_validate(given | {"run": given["run"] | settings})


def _written(output: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for file in (output / "checkpoint").glob("written-*.json"):
        for topic, count in json.loads(file.read_text()).items():
            counts[topic] = counts.get(topic, 0) + count
    return counts


def _master(given: str | None) -> str:
    from runners import cluster_state

    local = cluster_state.status("flink")
    if given is None and local is None:
        raise click.UsageError("give --master, or start a cluster here: midstream cluster up flink")
    return given or str(local and local["address"])
