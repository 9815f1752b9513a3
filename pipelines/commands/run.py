"""`midstream run`, `replay` and `templates`: what runs a job."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipelines import template as templates
from pipelines.capabilities import check
from pipelines.commands.common import hushed, show, table
from pipelines.commands.continuously import run_continuously
from pipelines.commands.detect import conclude, detect, try_out
from pipelines.detection.job import DetectSpec
from pipelines.paths import absolute

if TYPE_CHECKING:
    from pipelines.job import JobSpec

AnyJob = TypeVar("AnyJob", "JobSpec", DetectSpec)


class _RunCommand(click.Command):
    """`run`, whose help shows the parameters of the template that was named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = next((arg for arg in args if not arg.startswith("-")), None)
        if named is not None and {"-h", "--help"} & set(args):
            click.echo(_template_help(named))
            ctx.exit()
        return super().parse_args(ctx, args)


RUNNERS = ("direct", "prism", "flink", "spark")
_RUNNER = click.option(
    "--runner", type=click.Choice(RUNNERS), help="What runs it; started and stopped with the job. Default: direct."
)
_PARALLELISM = click.option(
    "--parallelism", type=click.IntRange(1), help="Tasks side by side, where the runner can. Default: 1."
)


@click.command(cls=_RunCommand, short_help="Run a template.")
@click.argument("template")
@click.option(
    "--param", "-p", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of the template; may be repeated."
)
@_RUNNER
@_PARALLELISM
@click.option("--fresh", is_flag=True, help="Begin anew: first delete what an earlier run left in the output folder.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the job, run nothing.")
@click.option("--quiet", is_flag=True, help="No progress; only the summary at the end.")
def run(
    template: str,
    params: tuple[str, ...],
    runner: str | None,
    parallelism: int | None,
    fresh: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Run a template: one of those listed by `midstream templates`, or the path of a .yaml file.

    A run that was stopped or killed is gone on with when the same command is given again. The last line of the output is a
    JSON object with the counts. `midstream run TEMPLATE --help` shows what the template takes.
    """
    settings = {"runner": runner, "parallelism": parallelism}
    run_template(template, params, settings, fresh=fresh, dry_run=dry_run, quiet=quiet)


def run_template(
    template: str,
    params: tuple[str, ...],
    settings: dict[str, Any],
    *,
    fresh: bool,
    dry_run: bool,
    quiet: bool,
    detach: bool = False,
) -> None:
    """Fills a template and runs it; `settings` of what runs it that are None leave what the template says."""
    found, here = templates.load(template)
    filled = found.fill(_read_params(params), here)
    if detach and filled.run.mode != "continuous":
        raise click.UsageError("--detach is for continuous jobs: this command cuts the micro-batches, and has to stay")
    if isinstance(filled, DetectSpec):
        _detect(on_runner(filled, **settings), fresh=fresh, dry_run=dry_run, quiet=quiet, detach=detach)
        return
    job = on_runner(filled, **settings)
    if fresh and not dry_run:
        clear(job)
    with hushed():  # TensorFlow and Beam take seconds to import: not for `--help`
        from pipelines.execute import Execution
        from pipelines.progress import ConsoleProgress
        from pipelines.resolve import resolve

    if dry_run:
        _try_out(job, resolve)
        click.echo(json.dumps(job.model_dump(mode="json"), indent=2))
        return
    if job.run.mode == "continuous":
        run_continuously(job, detach=detach, quiet=quiet)
        return
    with ConsoleProgress(quiet=quiet) as progress:
        execution = Execution(job, progress=progress)
        progress.begin(execution.resolved)
        outcome = execution.run()
    if outcome.report is not None:
        click.echo(f"report: {outcome.report}", err=True)
    conclude(outcome)


def _detect(job: DetectSpec, *, fresh: bool, dry_run: bool, quiet: bool, detach: bool) -> None:
    if dry_run:
        try_out(job)
    elif job.run.mode == "continuous":
        run_continuously(job, detach=detach, quiet=quiet)
    else:
        detect(job, fresh=fresh)


@click.command(short_help="Predict again what a job predicted, and compare.")
@click.argument("output", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--to", "target", metavar="DIR", help="Folder for the replay's own output. Default: OUTPUT with -replay behind it."
)
@_RUNNER
@_PARALLELISM
@click.option("--quiet", is_flag=True, help="No progress; only the comparison at the end.")
def replay(output: str, target: str | None, runner: str | None, parallelism: int | None, quiet: bool) -> None:
    """Predict again what the job in the folder OUTPUT predicted, and compare, bit for bit.

    Each record gets the version that was live at its event time; nothing is learnt, activated or sealed. The last line of the
    output is a JSON object with the counts; the exit status is 1 if a prediction differs.
    """
    with hushed():
        from pipelines.execute import Execution
        from pipelines.progress import ConsoleProgress
        from pipelines.replay import compare, replay_of

    target = target or f"{output.rstrip('/')}-replay"
    job = on_runner(replay_of(output, target), runner=runner, parallelism=parallelism)
    clear(job)
    with ConsoleProgress(quiet=quiet) as progress:
        execution = Execution(job, progress=progress)
        progress.begin(execution.resolved)
        execution.run()
    comparison = compare(output, target)
    click.echo(comparison.to_json())
    if not comparison.exact:
        sys.exit(1)


def on_runner(job: AnyJob, **given: Any) -> AnyJob:
    """The job with settings of what runs it; None leaves what the template says.

    Raises:
        CannotRun: the runner cannot do that.
    """
    settings = {name: value for name, value in given.items() if value is not None}
    changed = job.model_copy(update={"run": job.run.model_copy(update=settings)})
    check(changed.run)
    return changed if changed.run.master is None else absolute(changed)


@click.command("templates")
def list_templates() -> None:
    """List the templates that come with Midstream."""
    rows = table("template", "what it does")
    for name in templates.names():
        rows.add_row(name, " ".join(templates.load(name)[0].description.split()))
    show(rows)


def _try_out(job: JobSpec, resolve: Callable[[JobSpec], object]) -> None:
    """Checks a job and leaves no trace: a learner's first version goes into a registry that is thrown away."""
    output = Path(job.output)
    before = output.exists()
    with tempfile.TemporaryDirectory() as registry:
        if job.learner is not None:
            job = job.model_copy(update={"model": job.model.model_copy(update={"registry": registry})})
        resolve(job)
    if not before:
        output.rmdir()


def _read_params(params: tuple[str, ...]) -> dict[str, str]:
    given = {}
    for param in params:
        name, equals, value = param.partition("=")
        if not equals:
            raise click.BadParameter(f"expected NAME=VALUE, got {param!r}", param_hint="--param")
        if name.strip() in given:
            raise click.BadParameter(f"{name.strip()} is given twice", param_hint="--param")
        given[name.strip()] = value.strip()
    return given


def _template_help(name: str) -> str:
    found, _ = templates.load(name)
    columns = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
    about = textwrap.wrap(" ".join(found.description.split()), columns)
    lines = [f"Usage: midstream run {name} [--param NAME=VALUE]...", "", *about, "", "Parameters:"]
    width = max((len(name) for name in found.parameters), default=0)
    for parameter_name, parameter in found.parameters.items():
        text = f"{parameter.description} ({parameter.notes})"
        first, *rest = textwrap.wrap(text, columns - width - 4, break_long_words=False, break_on_hyphens=False)
        lines += [f"  {parameter_name:<{width}}  {first}", *(" " * (width + 4) + line for line in rest)]
    lines += ["", "Options: --fresh, --dry-run, --quiet; see midstream run --help"]
    return "\n".join(lines)


def clear(job: JobSpec) -> None:
    """Deletes what a job left, and nothing else; a folder that is not a job's stays untouched."""
    from models.opened import forget
    from pipelines.labelled import CLASSES_FILE, TEXTS_FILE
    from runners.checkpoint import LOCK, lock

    output = Path(job.output)
    if not output.exists() or not any(output.iterdir()):
        return
    checkpoint = output / "checkpoint"
    if not (checkpoint / "job.json").exists():
        raise click.ClickException(
            f"{output} holds files but is no output folder of Midstream; nothing was deleted. Choose another output."
        )
    with lock(checkpoint / LOCK):
        for name in ("predictions", "evaluations", "dead_letters", "events", "metrics", "drift"):
            shutil.rmtree(output / name, ignore_errors=True)
        for name in ("report.html", "job.json", CLASSES_FILE, TEXTS_FILE):
            (output / name).unlink(missing_ok=True)
        # A job that learns begins with a model of its own; one that serves does not own the registry.
        registry = Path(job.model.registry)
        if job.learner is not None and registry.absolute().is_relative_to(output.absolute()):
            shutil.rmtree(registry, ignore_errors=True)
        shutil.rmtree(checkpoint)
    forget()
