"""The `midstream` command."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

# TensorFlow and Beam say much at start that a user can do nothing about; their errors still come through.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import click

from pipelines import template as templates

if TYPE_CHECKING:
    from pipelines.job import JobSpec

REGISTRY = click.option("--registry", required=True, metavar="DIR", help="Root folder of the model registry.")
MODEL = click.option("--model", required=True, metavar="NAME", help="Name of the model.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


class _Errors(click.Group):
    """Expected errors end the command with one clear message instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
        except Exception as error:
            if type(error).__module__.split(".")[0] in ("models", "transforms", "runners", "pipelines"):
                raise click.ClickException(str(error)) from error
            raise


@click.group(cls=_Errors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="midstream")
def main() -> None:
    """Keep a TensorFlow model predicting on a stream while the model is replaced.

    \b
    See it work:              midstream run electricity
    What a template takes:    midstream run serve --help
    Serve a model of yours:   midstream publish --registry models --model price --activate SAVED_MODEL
                              midstream run serve --param registry=models --param model=price --param input=data.csv
    Replace it, live:         midstream publish --registry models --model price --activate BETTER_MODEL
    """


class _RunCommand(click.Command):
    """`run`, whose help shows the parameters of the template that was named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = next((arg for arg in args if not arg.startswith("-")), None)
        if named is not None and {"-h", "--help"} & set(args):
            click.echo(_template_help(named))
            ctx.exit()
        return super().parse_args(ctx, args)


@main.command(cls=_RunCommand, short_help="Run a template.")
@click.argument("template")
@click.option(
    "--param", "-p", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of the template; may be repeated."
)
@click.option("--fresh", is_flag=True, help="Begin anew: first delete what an earlier run left in the output folder.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the job, run nothing.")
@click.option("--quiet", is_flag=True, help="No progress; only the summary at the end.")
def run(template: str, params: tuple[str, ...], fresh: bool, dry_run: bool, quiet: bool) -> None:
    """Run a template: one of those listed by `midstream templates`, or the path of a .yaml file.

    A run that was stopped or killed is gone on with when the same command is given again. The last line of the output is a
    JSON object with the counts. `midstream run TEMPLATE --help` shows what the template takes.
    """
    found, here = templates.load(template)
    job = found.fill(_read_params(params), here)
    if fresh and not dry_run:
        _clear(job)
    with _hushed():  # TensorFlow and Beam take seconds to import: not for `--help`
        from pipelines.execute import Execution
        from pipelines.progress import ConsoleProgress
        from pipelines.resolve import resolve

    if dry_run:
        _try_out(job, resolve)
        click.echo(json.dumps(job.model_dump(mode="json"), indent=2))
        return
    with ConsoleProgress(quiet=quiet) as progress:
        execution = Execution(job, progress=progress)
        progress.begin(execution.resolved)
        outcome = execution.run()
    if outcome.report is not None:
        click.echo(f"report: {outcome.report}", err=True)
    if not outcome.finished:
        click.echo("stopped; give the same command again to go on", err=True)
    for notice in outcome.notices:
        click.echo(f"note: {notice}", err=True)
    for problem in outcome.problems:
        click.echo(f"PROBLEM: {problem}", err=True)
    click.echo(outcome.to_json())
    if outcome.problems:
        sys.exit(1)


@main.command(short_help="Predict again what a job predicted, and compare.")
@click.argument("output", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--to", "target", metavar="DIR", help="Folder for the replay's own output. Default: OUTPUT with -replay behind it."
)
@click.option("--quiet", is_flag=True, help="No progress; only the comparison at the end.")
def replay(output: str, target: str | None, quiet: bool) -> None:
    """Predict again what the job in the folder OUTPUT predicted, and compare, bit for bit.

    Each record gets the version that was live at its event time; nothing is learnt, activated or sealed. The last line of the
    output is a JSON object with the counts; the exit status is 1 if a prediction differs.
    """
    with _hushed():
        from pipelines.execute import Execution
        from pipelines.progress import ConsoleProgress
        from pipelines.replay import compare, replay_of

    target = target or f"{output.rstrip('/')}-replay"
    job = replay_of(output, target)
    _clear(job)
    with ConsoleProgress(quiet=quiet) as progress:
        execution = Execution(job, progress=progress)
        progress.begin(execution.resolved)
        execution.run()
    comparison = compare(output, target)
    click.echo(comparison.to_json())
    if not comparison.exact:
        sys.exit(1)


@main.command("templates")
def list_templates() -> None:
    """List the templates that come with Midstream."""
    table = _table("template", "what it does")
    for name in templates.names():
        table.add_row(name, " ".join(templates.load(name)[0].description.split()))
    _show(table)


@main.command(short_help="Publish a SavedModel as the next version of a model.")
@REGISTRY
@MODEL
@click.argument("saved_model", metavar="PATH", type=click.Path(exists=True, file_okay=False))
@click.option("--activate", is_flag=True, help="Make it live, too.")
@click.option(
    "--from",
    "effective_from",
    metavar="TIME",
    help="With --activate: from this event time on (ISO 8601). Default: as soon as possible.",
)
@click.option("--reason", default="published by hand", show_default=True, help="Noted in the activation log.")
def publish(registry: str, model: str, saved_model: str, activate: bool, effective_from: str | None, reason: str) -> None:
    """Publish a SavedModel with a serving signature over named columns as the next version of a model.

    A version is a candidate until it is activated.
    """
    with _hushed():
        import tensorflow  # noqa: F401  here, where what it says is not heard

        from models.registry import Registry

    manifest = Registry(registry).publish(model, saved_model)
    inputs = ", ".join(f"{name} {field.dtype}{list(field.shape) or ''}" for name, field in manifest.signature.inputs.items())
    click.echo(f"{model} version {manifest.version}, digest {manifest.digests.version[:12]}, takes {inputs}")
    if activate:
        _activate(registry, model, manifest.version, effective_from, reason)


@main.command(short_help="Make a published version live.")
@REGISTRY
@MODEL
@click.argument("version", type=int)
@click.option(
    "--from", "effective_from", metavar="TIME", help="From this event time on (ISO 8601). Default: as soon as possible."
)
@click.option("--reason", default="activated by hand", show_default=True, help="Noted in the activation log.")
def activate(registry: str, model: str, version: int, effective_from: str | None, reason: str) -> None:
    """Make a published VERSION live, from a moment that no running job has served yet."""
    _activate(registry, model, version, effective_from, reason)


@main.command(short_help="Go back to the version that was live before.")
@REGISTRY
@MODEL
@click.option("--to", type=int, help="The version to go back to. Default: the one that was live before.")
@click.option("--reason", required=True, help="Noted in the activation log.")
def rollback(registry: str, model: str, to: int | None, reason: str) -> None:
    """Go back to the version that was live before, as soon as possible."""
    from models.activation_log import ActivationLog

    entry = ActivationLog(registry, model).rollback(by=_who(), reason=reason, to=to)
    click.echo(f"{model} version {entry.version} is live again from {_time(entry.effective_from_us)}")


@main.command(short_help="Show what was live from when on, and why.")
@REGISTRY
@MODEL
@AS_JSON
def log(registry: str, model: str, as_json: bool) -> None:
    """Show the activation log of a model: what was live from when on, and why."""
    from models.activation_log import Activation, ActivationLog

    entries = [e for e in ActivationLog(registry, model).entries() if isinstance(e, Activation)]
    rows = [(e.sequence, e.version, _time(e.effective_from_us), e.kind, e.reason, e.by, e.at) for e in entries]
    _print_rows(("entry", "version", "live from (event time)", "kind", "reason", "by", "at"), rows, as_json)


@main.command(short_help="Show the versions in a registry.")
@REGISTRY
@click.option("--model", metavar="NAME", help="Only this model.")
@AS_JSON
def versions(registry: str, model: str | None, as_json: bool) -> None:
    """Show the versions in a registry."""
    from models.registry import Registry

    opened = Registry(registry)
    manifests = [opened.manifest(name, v) for name in ([model] if model else opened.models()) for v in opened.versions(name)]
    rows = [
        (m.model, m.version, m.parent, m.digests.version[:12], m.created, m.training.rows if m.training else None)
        for m in manifests
    ]
    _print_rows(("model", "version", "parent", "digest", "created", "learnt from rows"), rows, as_json)


def _activate(registry: str, model: str, version: int, effective_from: str | None, reason: str) -> None:
    from models.activation_log import ActivationLog

    at_us = None if effective_from is None else _parse_time(effective_from)
    entry = ActivationLog(registry, model).activate(version, at_us, by=_who(), reason=reason)
    click.echo(f"{model} version {entry.version} is live from {_time(entry.effective_from_us)} (event time) on")


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


def _clear(job: JobSpec) -> None:
    """Deletes what a job left, and nothing else; a folder that is not a job's stays untouched."""
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
        for name in ("predictions", "evaluations", "dead_letters", "events"):
            shutil.rmtree(output / name, ignore_errors=True)
        for name in ("report.html", "job.json"):
            (output / name).unlink(missing_ok=True)
        # A job that learns begins with a model of its own; one that serves does not own the registry.
        registry = Path(job.model.registry)
        if job.learner is not None and registry.absolute().is_relative_to(output.absolute()):
            shutil.rmtree(registry, ignore_errors=True)
        shutil.rmtree(checkpoint)


@contextmanager
def _hushed() -> Iterator[None]:
    """Drops what libraries say past Python while they are imported, and later on Beam's own account of errors."""
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # what a step raises is raised here, too
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123  a device, not a path
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _who() -> str:
    import getpass
    import socket

    return f"{getpass.getuser()}@{socket.gethostname()}"


def _parse_time(text: str) -> int:
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"expected a time such as 2026-03-01T12:00:00Z, got {text!r}", param_hint="--from") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)


def _time(time_us: int) -> str:
    from models.timeline import MIN_TIME_US

    if time_us <= MIN_TIME_US:
        return "the beginning"
    from datetime import UTC, datetime, timedelta

    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat().replace("+00:00", "Z")


def _print_rows(names: tuple[str, ...], rows: list[tuple[Any, ...]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
        return
    table = _table(*names)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    _show(table)


def _table(*names: str) -> Any:
    from rich.table import Table

    return Table(*names, box=None, header_style="bold", pad_edge=False)


def _show(table: Any) -> None:
    from rich.console import Console

    Console().print(table)


if __name__ == "__main__":
    main(prog_name="midstream")
