"""`midstream cluster` and `submit`: engines of many processes, and how a job gets to them."""

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
@click.option("--detach", is_flag=True, help="Leave a continuous job to the cluster once it runs; see `midstream jobs`.")
def submit(
    template: str, params: tuple[str, ...], fresh: bool, dry_run: bool, quiet: bool, detach: bool, **settings: Any
) -> None:
    """Run a template on a standalone cluster of Flink or Spark.

    Input, output and registry must be on a disk that all machines share. This command plans the micro-batches and waits for
    them; if it is ended, the same command goes on. A continuous job on Flink is the cluster's; the command waits for it and
    starts it again if Flink gives it up, unless --detach is given. Python workers: `python -m runners.worker_pool` on each
    machine, or the container of runners/container.
    """
    from runners import cluster_state
    from runners.reachable import check_reachable

    local = cluster_state.status(settings["runner"])
    if settings["master"] is None:
        if local is None:
            raise click.UsageError(f"give --master, or start a cluster here: midstream cluster up {settings['runner']}")
        settings |= {"master": local["address"], "workers": settings["workers"] or local["workers"], "preinstalled": True}
    elif settings["workers"] is None:
        raise click.UsageError("give --workers, the pool of Python workers as each machine of the cluster sees it")
    check_reachable(settings["runner"], settings["master"], settings["workers"])
    if dry_run:
        for line in _plan(template, settings):
            click.echo(line, err=True)
    run_template(template, params, settings, fresh=fresh, dry_run=dry_run, quiet=quiet, detach=detach)


def _plan(template: str, settings: dict[str, Any]) -> list[str]:
    sent = "nothing: the cluster has Beam's jars" if settings["preinstalled"] else "the jars of Beam's runner, with each job"
    return [
        f"plan: {template} on {settings['runner']} at {settings['master']}, {settings['parallelism']} tasks side by side",
        "  started here: Beam's job server, which ends with this command",
        f"  sent to the cluster: {sent}",
        f"  Python works in: the pool at {settings['workers']}; its environment must have this Midstream",
        "  read and written by the workers: input, registry and output, by the paths below",
    ]
