"""`midstream publish`, `activate`, `rollback`, `log` and `versions`: what changes and shows what is live."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from pipelines.commands.common import AS_JSON, DRY_RUN, MODEL, REGISTRY, hushed, parse_time, print_rows, time_text, who

if TYPE_CHECKING:
    from models.gate.result import GateReport
    from models.registry import Registry


@click.command(short_help="Publish a SavedModel as the next version, if the gate lets it pass.")
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
@click.option("--holdout", metavar="FILE", help="Parquet file of labelled rows, to compare with the live version.")
@click.option("--label", metavar="COLUMN", help="The holdout's label column. Default: label.")
@click.option("--tolerance", type=float, help="How much worse than the live version it may be. Default: 0.")
@click.option("--latency-ms", type=float, help="Refuse it if a block of rows takes longer.")
@DRY_RUN
@AS_JSON
def publish(
    registry: str,
    model: str,
    saved_model: str,
    activate: bool,
    effective_from: str | None,
    reason: str,
    holdout: str | None,
    label: str | None,
    tolerance: float | None,
    latency_ms: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish a SavedModel with a serving signature over named columns as the next version of a model.

    The gate tries it out first, in a process of its own: that it loads and predicts in time and memory, reads and writes no
    files and runs no Python, has the live version's signature, finite weights and outputs, the same bits for the same rows,
    reproduces the golden records that it ships, and is no worse than the live version on a holdout. Its settings, for good,
    are in
    REGISTRY/MODEL/gate.json, as {"max_bytes": 50000000, "latency_budget_ms": 20, "holdout": "holdout.parquet"}.

    A version is a candidate until it is activated.
    """
    with hushed():
        import tensorflow  # noqa: F401  here, where what it says is not heard

        from models.gate.config import load_config
        from models.gate.gate import check_copy, publish_checked
        from models.gate.result import GateRefused
        from models.registry import Registry

    opened = Registry(registry)
    config = load_config(registry, model).changed(
        holdout=holdout, label=label, tolerance=tolerance, latency_budget_ms=latency_ms
    )
    live = _live_or_newest(opened, model)
    try:
        if dry_run:
            manifest, report = None, check_copy(opened, model, saved_model, config, live)
        else:
            manifest, report = publish_checked(opened, model, saved_model, config, live)
    except GateRefused as refusal:
        _print_checks(refusal.report, as_json)
        raise
    if as_json or dry_run:
        _print_checks(report, as_json, None if manifest is None else manifest.version)
    if manifest is None:
        return
    if not as_json:
        inputs = (f"{name} {field.dtype}{list(field.shape) or ''}" for name, field in manifest.signature.inputs.items())
        click.echo(f"{model} version {manifest.version}, digest {manifest.digests.version[:12]}, takes {', '.join(inputs)}")
    if activate:
        _activate(registry, model, manifest.version, effective_from, reason, quiet=as_json)


@click.command(short_help="Make a published version live.")
@REGISTRY
@MODEL
@click.argument("version", type=int)
@click.option(
    "--from", "effective_from", metavar="TIME", help="From this event time on (ISO 8601). Default: as soon as possible."
)
@click.option("--reason", default="activated by hand", show_default=True, help="Noted in the activation log.")
@DRY_RUN
@AS_JSON
def activate(
    registry: str, model: str, version: int, effective_from: str | None, reason: str, dry_run: bool, as_json: bool
) -> None:
    """Make a published VERSION live, from a moment that no running job has served yet.

    A version that came into the registry by another way than the gate is tried out first.
    """
    _activate(registry, model, version, effective_from, reason, dry_run=dry_run, as_json=as_json)


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


def _activate(
    registry: str,
    model: str,
    version: int,
    effective_from: str | None,
    reason: str,
    *,
    dry_run: bool = False,
    as_json: bool = False,
    quiet: bool = False,
) -> None:
    from models.activation_log import ActivationLog

    at_us = None if effective_from is None else parse_time(effective_from)
    log = ActivationLog(registry, model)
    log.preview(version, at_us, by=who(), reason=reason)  # what can be refused at once is
    _try_out_if_unknown(registry, model, version)
    entry = (log.preview if dry_run else log.activate)(version, at_us, by=who(), reason=reason)
    if as_json:
        click.echo(json.dumps(asdict(entry) | {"dry_run": dry_run}))
    elif not quiet:
        would = "would be" if dry_run else "is"
        click.echo(f"{model} version {entry.version} {would} live from {time_text(entry.effective_from_us)} (event time) on")


def _try_out_if_unknown(registry: str, model: str, version: int) -> None:
    """Lets the gate try out a version that was not published through it."""
    with hushed():
        from models.gate.config import load_config
        from models.gate.gate import check_published
        from models.registry import Registry

    opened = Registry(registry)
    if opened.gate_report(model, version) is None:
        check_published(opened, model, version, load_config(registry, model))


def _live_or_newest(registry: Registry, model: str) -> int | None:
    """The version to compare with: the one that is live last; the newest one where none is; None in an empty registry."""
    from models.activation_log import ActivationLog

    timeline = ActivationLog(registry.root, model).timeline()
    if len(timeline):
        return int(timeline.version[-1])
    return max(registry.versions(model), default=None)


def _print_checks(report: GateReport, as_json: bool, version: int | None = None) -> None:
    if as_json:
        click.echo(json.dumps({"version": version, **json.loads(report.to_json())}))
        return
    print_rows(("check", "", "found"), [(c.name, "ok" if c.passed else "REFUSED", c.said) for c in report.checks], False)
