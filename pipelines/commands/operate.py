"""`midstream publish`, `activate`, `rollback`, `log` and `versions`: what changes and shows what is live."""

from __future__ import annotations

import click

from pipelines.commands.common import AS_JSON, MODEL, REGISTRY, hushed, parse_time, print_rows, time_text, who


@click.command(short_help="Publish a SavedModel as the next version of a model.")
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
    with hushed():
        import tensorflow  # noqa: F401  here, where what it says is not heard

        from models.registry import Registry

    manifest = Registry(registry).publish(model, saved_model)
    inputs = ", ".join(f"{name} {field.dtype}{list(field.shape) or ''}" for name, field in manifest.signature.inputs.items())
    click.echo(f"{model} version {manifest.version}, digest {manifest.digests.version[:12]}, takes {inputs}")
    if activate:
        _activate(registry, model, manifest.version, effective_from, reason)


@click.command(short_help="Make a published version live.")
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


@click.command(short_help="Go back to the version that was live before.")
@REGISTRY
@MODEL
@click.option("--to", type=int, help="The version to go back to. Default: the one that was live before.")
@click.option("--reason", required=True, help="Noted in the activation log.")
def rollback(registry: str, model: str, to: int | None, reason: str) -> None:
    """Go back to the version that was live before, as soon as possible."""
    from models.activation_log import ActivationLog

    entry = ActivationLog(registry, model).rollback(by=who(), reason=reason, to=to)
    click.echo(f"{model} version {entry.version} is live again from {time_text(entry.effective_from_us)}")


@click.command(short_help="Show what was live from when on, and why.")
@REGISTRY
@MODEL
@AS_JSON
def log(registry: str, model: str, as_json: bool) -> None:
    """Show the activation log of a model: what was live from when on, and why."""
    from models.activation_log import Activation, ActivationLog

    entries = [e for e in ActivationLog(registry, model).entries() if isinstance(e, Activation)]
    rows = [(e.sequence, e.version, time_text(e.effective_from_us), e.kind, e.reason, e.by, e.at) for e in entries]
    print_rows(("entry", "version", "live from (event time)", "kind", "reason", "by", "at"), rows, as_json)


@click.command(short_help="Show the versions in a registry.")
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
    print_rows(("model", "version", "parent", "digest", "created", "learnt from rows"), rows, as_json)


def _activate(registry: str, model: str, version: int, effective_from: str | None, reason: str) -> None:
    from models.activation_log import ActivationLog

    at_us = None if effective_from is None else parse_time(effective_from)
    entry = ActivationLog(registry, model).activate(version, at_us, by=who(), reason=reason)
    click.echo(f"{model} version {entry.version} is live from {time_text(entry.effective_from_us)} (event time) on")
