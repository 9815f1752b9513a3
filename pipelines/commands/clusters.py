"""`midstream cluster`, `submit` and `jobs`: engines of many processes, and what runs on them."""

from __future__ import annotations

import json
from typing import Any

import click

from pipelines.commands.common import AS_JSON, print_rows
from pipelines.commands.run import run_template

ENGINES = ("flink", "spark", "kafka")
_NAME = click.argument("name", type=click.Choice(ENGINES))


@click.group(short_help="Start and stop a Flink, Spark or Kafka of real processes.")
def cluster() -> None:
    """Start and stop a standalone Flink or Spark, with Python workers, or a Kafka broker, on this machine."""


@cluster.command("up", short_help="Start one.")
@_NAME
@click.option("--port", type=click.IntRange(1, 65535), help="Where it takes jobs or clients. Default: a free one.")
def cluster_up(name: str, port: int | None) -> None:
    """Start a cluster; it runs until `midstream cluster down`. The last line is a JSON object with its addresses."""
    from runners import cluster_state

    click.echo(json.dumps(cluster_state.up(name, port=port)))


@cluster.command("down", short_help="Stop one, and just that.")
@_NAME
def cluster_down(name: str) -> None:
    """Stop a cluster that was started by `midstream cluster up`, and nothing else; its data go with it."""
    from runners import cluster_state

    click.echo(f"{name} is down" if cluster_state.down(name) else f"{name} was not up")


@cluster.command("status", short_help="Show which are up.")
@AS_JSON
def cluster_status(as_json: bool) -> None:
    """Show which clusters are up, where they take jobs or clients, and their processes."""
    from runners import cluster_state

    states = [(name, cluster_state.status(name)) for name in ENGINES]
    rows = [
        (name, state["address"], state.get("workers"), " ".join(f"{part}={pid}" for part, pid in state["processes"].items()))
        if state
        else (name, "down", None, None)
        for name, state in states
    ]
    print_rows(("cluster", "address", "Python workers", "processes"), rows, as_json)


@click.command(short_help="Run a template on a cluster.")
@click.argument("template")
@click.option(
    "--param", "-p", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of the template; may be repeated."
)
@click.option("--runner", type=click.Choice(("flink", "spark")), required=True, help="What the cluster is.")
@click.option(
    "--master", metavar="ADDRESS", help="host:8081 of Flink, spark://host:7077 of Spark. Default: that of `cluster up`."
)
@click.option(
    "--workers", metavar="ADDRESS", help="host:port of the Python workers as each machine sees it, as localhost:50000."
)
@click.option("--preinstalled", is_flag=True, help="The cluster has Beam's jars: do not send them with each job.")
@click.option("--parallelism", type=click.IntRange(1), default=1, show_default=True, help="Tasks side by side.")
@click.option("--fresh", is_flag=True, help="Begin anew: first delete what an earlier run left in the output folder.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan and the job, run nothing.")
@click.option("--quiet", is_flag=True, help="No progress; only the summary at the end.")
def submit(template: str, params: tuple[str, ...], fresh: bool, dry_run: bool, quiet: bool, **settings: Any) -> None:
    """Run a template on a standalone cluster of Flink or Spark.

    Input, output and registry must be on a disk that all machines share. This command plans the micro-batches and waits for
    them; if it is ended, the same command goes on. Python workers: `python -m runners.worker_pool` on each machine, or the
    container of runners/container.
    """
    from runners import cluster_state

    local = cluster_state.status(settings["runner"])
    if settings["master"] is None:
        if local is None:
            raise click.UsageError(f"give --master, or start a cluster here: midstream cluster up {settings['runner']}")
        settings |= {"master": local["address"], "workers": settings["workers"] or local["workers"], "preinstalled": True}
    elif settings["workers"] is None:
        raise click.UsageError("give --workers, the pool of Python workers as each machine of the cluster sees it")
    if dry_run:
        for line in _plan(template, settings):
            click.echo(line, err=True)
    run_template(template, params, settings, fresh=fresh, dry_run=dry_run, quiet=quiet)


def _plan(template: str, settings: dict[str, Any]) -> list[str]:
    sent = "nothing: the cluster has Beam's jars" if settings["preinstalled"] else "the jars of Beam's runner, with each job"
    return [
        f"plan: {template} on {settings['runner']} at {settings['master']}, {settings['parallelism']} tasks side by side",
        "  started here: Beam's job server, which ends with this command",
        f"  sent to the cluster: {sent}",
        f"  Python works in: the pool at {settings['workers']}; its environment must have this Midstream",
        "  read and written by the workers: input, registry and output, by the paths below",
    ]


@click.group(short_help="See and stop the jobs of a Flink cluster.")
def jobs() -> None:
    """See, stop and save the jobs of a Flink cluster. A job is gone on with by submitting it again."""


_MASTER = click.option(
    "--master", metavar="HOST:PORT", help="Flink's REST address. Default: that of `midstream cluster up flink`."
)


@jobs.command("list")
@_MASTER
@AS_JSON
def list_jobs(master: str | None, as_json: bool) -> None:
    """Show the jobs, the newest first."""
    from runners import flink_jobs

    rows = [(job.name, job.state, round(job.seconds), job.id) for job in flink_jobs.jobs(_master(master))]
    print_rows(("job", "state", "seconds", "id"), rows, as_json)


@jobs.command("cancel")
@_MASTER
@click.argument("name")
def cancel_job(master: str | None, name: str) -> None:
    """Cancel the running job NAME (or of that id). Submitted again, it goes on from its last checkpoint."""
    from runners import flink_jobs

    where = _master(master)
    flink_jobs.cancel(where, flink_jobs.running(where, name).id)
    click.echo(f"{name} is cancelled")


@jobs.command("savepoint")
@_MASTER
@click.argument("name")
@click.option("--to", "folder", metavar="URI", help="Where to, as file:///savepoints. Default: the cluster's own.")
@click.option("--stop", is_flag=True, help="Cancel the job with it.")
def save_job(master: str | None, name: str, folder: str | None, stop: bool) -> None:
    """Take a savepoint of the running job NAME (or of that id); prints where it is."""
    from runners import flink_jobs

    where = _master(master)
    click.echo(flink_jobs.savepoint(where, flink_jobs.running(where, name).id, folder, stop=stop))


def _master(given: str | None) -> str:
    from runners import cluster_state

    local = cluster_state.status("flink")
    if given is None and local is None:
        raise click.UsageError("give --master, or start a cluster here: midstream cluster up flink")
    return given or str(local and local["address"])
