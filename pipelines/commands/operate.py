"""`midstream publish`, `activate`, `canary` ... `log`, `status`: what changes and shows what is live."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pipelines.commands.common import AS_JSON, DRY_RUN, MODEL, REGISTRY, hushed, parse_time, print_rows, time_text, who

FROM = click.option(
    "--from", "effective_from", metavar="TIME", help="From this event time on (ISO 8601). Default: as soon as possible."
)

if TYPE_CHECKING:
    from models.activations import Kind
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
@click.option("--reference", metavar="FILE", help="Training rows (CSV, JSON Lines, Parquet): what a monitor compares with.")
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
    reference: str | None,
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
        from pipelines.reference import training_rows

    opened = Registry(registry)
    config = load_config(registry, model).changed(
        holdout=holdout, label=label, tolerance=tolerance, latency_budget_ms=latency_ms
    )
    live = _live_or_newest(opened, model)
    try:
        if dry_run:
            manifest, report = None, check_copy(opened, model, saved_model, config, live)
        else:
            summary = None if reference is None else training_rows(reference)
            manifest, report = publish_checked(opened, model, saved_model, config, live, reference=summary)
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


def _decision(reason: str, *arguments: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Options of a command that appends a decision to the log from a moment on; they come to it as keyword arguments.

    Args:
        reason: noted where the user gives none.
        arguments: what only this command has.
    """
    noted = click.option("--reason", default=reason, show_default=True, help="Noted in the activation log.")

    def decorate(command: Any) -> Any:
        for option in reversed([REGISTRY, MODEL, *arguments, FROM, noted, DRY_RUN, AS_JSON]):
            command = option(command)
        return command

    return decorate


_VERSION = click.argument("version", type=int)
_SHARE = click.option("--share", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1, show_default=True)


@click.command(short_help="Make a published version live.")
@_decision("activated by hand", _VERSION)
def activate(**given: Any) -> None:
    """Make a published VERSION live, from a moment that no running job has served yet.

    A version that came into the registry by another way than the gate is tried out first.
    """
    _activate(**given)


@click.command(short_help="Let a version serve a share of the keys.")
@_decision("canary by hand", _VERSION, _SHARE)
def canary(**given: Any) -> None:
    """Let VERSION serve a share of the keys, beside the live version, up to the next entry of the log.

    Which keys follows from a stable hash of the job's `key`; a larger share keeps those of a smaller one. `promote` makes the
    version live for all, `rollback` ends the trial.
    """
    _activate(**given, kind="canary")


@click.command(short_help="Let a version predict beside the live one, for comparison only.")
@_decision("shadow by hand", _VERSION)
def shadow(**given: Any) -> None:
    """Let VERSION predict beside the live version, up to the next entry of the log.

    A job that runs with compare=true writes what it says into columns beside_..., for comparison only.
    """
    _activate(**given, kind="shadow", share=0.0)


@click.command(short_help="Make the version on trial live for all.")
@_decision("promoted by hand")
def promote(registry: str, model: str, **given: Any) -> None:
    """Make the version that is a canary or a shadow live for all keys."""
    from models.activation_log import ActivationLog, LogError

    timeline = ActivationLog(registry, model).timeline()
    version = int(timeline.challenger[-1]) if len(timeline) else 0
    if not version:
        raise LogError(f"{model} has no version on trial. `midstream activate` makes any version live.")
    _activate(registry, model, version, **given, kind="promote")


@click.command(short_help="Go back to the version that was live before, or end a trial.")
@REGISTRY
@MODEL
@click.option("--to", type=int, help="The version to go back to. Default: the one that was live before.")
@click.option("--reason", required=True, help="Noted in the activation log.")
@DRY_RUN
@AS_JSON
def rollback(registry: str, model: str, to: int | None, reason: str, dry_run: bool, as_json: bool) -> None:
    """Go back to the version that was live before, as soon as possible; while one is on trial, end the trial."""
    from models.activation_log import ActivationLog

    opened = ActivationLog(registry, model)
    entry = opened.rollback(by=who(), reason=reason, to=to, after=opened.last_decision(), preview=dry_run)
    if as_json:
        click.echo(json.dumps(asdict(entry) | {"dry_run": dry_run}))
        return
    would = "would be" if dry_run else "is"
    click.echo(f"{model} version {entry.version} {would} live again from {time_text(entry.effective_from_us)}")


@click.command(short_help="Forbid jobs to decide what is live, or let them again.")
@REGISTRY
@MODEL
@click.option("--resume", is_flag=True, help="End the pause.")
@click.option("--reason", default="by hand", show_default=True, help="Noted in the activation log.")
@DRY_RUN
@AS_JSON
def pause(registry: str, model: str, resume: bool, reason: str, dry_run: bool, as_json: bool) -> None:
    """Forbid jobs to decide what is live: what a learner makes stays a candidate, rules act on nothing. People may go on."""
    from models.activation_log import ActivationLog

    opened = ActivationLog(registry, model)
    if not dry_run:
        opened.pause(not resume, by=who(), reason=reason)
    if as_json:
        click.echo(json.dumps({"model": model, "paused": not resume, "reason": reason, "dry_run": dry_run}))
    else:
        click.echo(f"jobs {'may decide again' if resume else 'decide nothing'} about {model}{' (dry run)' if dry_run else ''}")


@click.command(short_help="Show what was live from when on, and why.")
@REGISTRY
@MODEL
@click.option("--last", type=click.IntRange(1), help="Only so many of the latest entries.")
@AS_JSON
def log(registry: str, model: str, last: int | None, as_json: bool) -> None:
    """Show the activation log of a model: what was live or on trial from when on, by whom, and why."""
    from models.activation_log import Activation, ActivationLog

    rows: list[tuple[Any, ...]] = []
    for entry in ActivationLog(registry, model).decisions():
        if isinstance(entry, Activation):
            share = None if entry.share == 1.0 else f"{entry.share:.0%}"
            when = time_text(entry.effective_from_us)
            rows.append(
                (entry.sequence, entry.version, when, entry.kind, share, entry.reason, entry.by, entry.at, entry.evidence)
            )
        else:
            kind = "pause" if entry.paused else "resume"
            rows.append((entry.sequence, None, None, kind, None, entry.reason, entry.by, entry.at, None))
    names: tuple[str, ...] = ("entry", "version", "live from (event time)", "kind", "share", "reason", "by", "at", "evidence")
    if last is not None:
        rows = rows[-last:]
    if not as_json:  # the evidence is for programs; its essence is in the reason
        names, rows = names[:-1], [row[:-1] for row in rows]
    print_rows(names, rows, as_json)


@click.command(short_help="Show what is live, on trial, waiting and paused.")
@REGISTRY
@click.option("--model", metavar="NAME", help="Only this model.")
@AS_JSON
def status(registry: str, model: str | None, as_json: bool) -> None:
    """Show of every model what is live, what is on trial, the newest candidate, and how far jobs have served."""
    from models.activation_log import ActivationLog
    from models.registry import Registry

    opened = Registry(registry)
    rows = []
    for name in [model] if model else opened.models():
        activations = ActivationLog(registry, name)
        timeline, earliest = activations.timeline(), activations.earliest_us()
        at = int(timeline.effective_from_us.searchsorted(earliest, side="right")) - 1
        trial = None
        if at >= 0 and timeline.challenger[at]:
            share = timeline.share_ppm[at] / 1e6
            trial = f"{timeline.challenger[at]} ({f'canary {share:.0%}' if share else 'shadow'})"
        scheduled = ", ".join(
            f"{change.version} from {time_text(change.effective_from_us)}"
            for change in timeline.changes_between(earliest + 1, 2**62)[:3]
        )
        paused = activations.paused()
        rows.append(
            (
                name,
                int(timeline.version[at]) or None if at >= 0 else None,
                trial,
                scheduled or None,
                opened.newest(name),
                time_text(earliest),
                f"{paused.by}: {paused.reason}" if paused else None,
                activations.last_decision(),
            )
        )
    names = ("model", "live", "on trial", "scheduled", "newest version", "served up to", "paused by", "last entry")
    print_rows(names, rows, as_json)


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
    kind: Kind = "activate",
    share: float = 1.0,
    dry_run: bool = False,
    as_json: bool = False,
    quiet: bool = False,
) -> None:
    from models.activation_log import ActivationLog

    at_us = None if effective_from is None else parse_time(effective_from)
    log = ActivationLog(registry, model)
    after = log.last_decision()
    # What can be refused at once is.
    entry = log.preview(version, at_us, by=who(), reason=reason, kind=kind, share=share)
    _try_out_if_unknown(registry, model, version)
    if not dry_run:
        entry = log.activate(version, at_us, by=who(), reason=reason, kind=kind, share=share, after=after)
    if as_json:
        click.echo(json.dumps(asdict(entry) | {"dry_run": dry_run}))
    elif not quiet:
        what = {"canary": f"a canary for {share:.0%} of the keys", "shadow": "a shadow"}.get(kind, "live")
        would = "would be" if dry_run else "is"
        click.echo(f"{model} version {entry.version} {would} {what} from {time_text(entry.effective_from_us)} (event time) on")


def _try_out_if_unknown(registry: str, model: str, version: int) -> None:
    """Lets the gate try out a version that was not published through it."""
    with hushed():
        from models.gate.config import load_config
        from models.gate.gate import check_published
        from models.registry import GATE_REPORT, Registry

    opened = Registry(registry)
    if opened.note(model, version, GATE_REPORT) is None:
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
