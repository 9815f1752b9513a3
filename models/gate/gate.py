"""The gate between a candidate and its publication: every check in turn, until one refuses.

Cheap checks that need no TensorFlow come first, in this process. Whatever reads the graph or loads it happens in a process
of its
own under limits. What is checked is the copy that will be published, so that nothing changes in between.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.digest import Digests
from models.gate import files, finite
from models.gate.config import GateConfig
from models.gate.contract import check_contract
from models.gate.holdout import NAME as HOLDOUT
from models.gate.holdout import check_holdout, compare
from models.gate.result import CheckResult, GateRefused, GateReport, refused
from models.isolated_names import HOLDOUT_FILE
from models.isolation import IsolatedFailure, Limits, run_isolated
from models.registry import Check, Manifest, Registry
from models.signature import Signature

_TODO = {
    "hung": "Make it load and predict faster, or raise load_timeout_s in gate.json.",
    "memory": "Make it smaller, or raise load_memory_bytes in gate.json.",
    "crashed": "Load it with tf.saved_model.load where it was made; save it with the release of TensorFlow that serves it.",
    "failed": "Load it with tf.saved_model.load where it was made, and save it again.",
}
Runner = Callable[[str, dict[str, Any], Limits, str], dict[str, Any]]


def check_candidate(
    path: str,
    config: GateConfig,
    signature: Signature | None = None,
    contract: Signature | None = None,
    live_path: str | None = None,
    run: Runner = run_isolated,
) -> GateReport:
    """Runs all checks on a SavedModel's folder.

    Args:
        path: the folder, local.
        config: what is asked.
        signature: the candidate's, if it was read already.
        contract: the live version's signature; None for a model's first version.
        live_path: the live version's folder, for the comparison on the holdout.
        run: runs the tasks of `models.isolated_tasks`; for tests.
    """
    # The child has another working folder.
    path, live_path = os.path.abspath(path), live_path and os.path.abspath(live_path)  # noqa: PTH100  links stay links
    if config.holdout is not None:
        config = config.changed(holdout=str(Path(config.holdout).absolute()))
    checks = [files.check_files(path, config)]
    if checks[-1].passed and signature is not None:
        checks.append(check_contract(signature, contract))
    if not checks[-1].passed:
        return GateReport(tuple(checks))
    limits = Limits(config.load_timeout_s, config.load_memory_bytes)
    with tempfile.TemporaryDirectory(prefix="midstream-gate-") as scratch:
        theirs, ours = str(Path(scratch, "live")), str(Path(scratch, "candidate"))
        for folder in (theirs, ours):
            Path(folder).mkdir()
        try:
            meant = list(finite.nonfinite_variables(live_path)) if live_path else []
            found = run("try_out", {"path": path, "config": vars(config), "meant": meant}, limits, ours)
            checks += [CheckResult(**check) for check in found["checks"]]
            if config.holdout is not None and live_path is not None and checks[-1].passed:
                run("holdout", {"path": live_path, "config": vars(config)}, limits, theirs)
                checks.append(_compared(config, ours, theirs))
        except IsolatedFailure as failure:
            checks.append(refused("load" if failure.kind != "hung" else "time", f"{failure}. {_TODO[failure.kind]}"))
    return GateReport(tuple(checks))


def _compared(config: GateConfig, ours: str, theirs: str) -> CheckResult:
    import numpy as np
    import pyarrow.parquet as pq

    label = pq.read_table(config.holdout, columns=[config.label]).column(0).to_numpy()
    label = label.astype(str) if label.dtype == object else label
    outputs = [np.load(Path(folder, HOLDOUT_FILE), allow_pickle=False) for folder in (ours, theirs)]
    if len({len(label), *map(len, outputs)}) > 1:
        return refused(HOLDOUT, "the versions give another number of rows than the holdout has")
    return check_holdout(compare(label, outputs[0], outputs[1], config.seed), config)


def publish_checked(
    registry: Registry,
    model: str,
    saved_model: str,
    config: GateConfig,
    live: int | None,
    run: Runner = run_isolated,
    **publication: Any,
) -> tuple[Manifest, GateReport]:
    """Publishes a SavedModel as a candidate, if the gate lets it pass.

    Args:
        registry: where to.
        model: name of the model.
        saved_model: the SavedModel's folder.
        config: what is asked.
        live: the version that is live, to compare with; None for a model's first version.
        run: see `check_candidate`.
        publication: see `Registry.publish`.

    Raises:
        GateRefused: says why, and what to do; nothing was published.
        DigestError, SignatureError, RegistryError, OSError: see `Registry.publish`.
    """
    reports: list[GateReport] = []
    check = _check(registry, model, saved_model, config, live, reports, run)
    return registry.publish(model, saved_model, check=check, **publication), reports[0]


def check_copy(registry: Registry, model: str, saved_model: str, config: GateConfig, live: int | None) -> GateReport:
    """What the gate says of a SavedModel, without publishing it; see `publish_checked`."""
    reports: list[GateReport] = []
    check = _check(registry, model, saved_model, config, live, reports)
    signature = Signature.from_saved_model(saved_model)
    check(saved_model, Manifest(model, 0, Digests("", "", ""), signature))
    return reports[0]


def check_published(registry: Registry, model: str, version: int, config: GateConfig, run: Runner = run_isolated) -> GateReport:
    """What the gate says of a version that is in the registry already, put there by another way.

    Raises:
        GateRefused: says why, and what to do.
        UnknownVersion, VersionDamaged, PathRefused, SignatureRefused: it is not what its manifest says.
    """
    what = f"version {version} of {model}"
    path = registry.path(model, version)
    if (first := files.check_files(path, config)) and not first.passed:
        raise GateRefused(what, GateReport((first,)))
    registry.trusted(model, version, graph=True)
    manifest = registry.verify(model, version)
    report = check_candidate(path, config, manifest.signature, run=run)
    if not report.passed:
        raise GateRefused(what, report)
    return report


def _check(
    registry: Registry,
    model: str,
    saved_model: str,
    config: GateConfig,
    live: int | None,
    reports: list[GateReport],
    run: Runner = run_isolated,
) -> Check:
    if not (first := files.check_files(saved_model, config)).passed:
        raise GateRefused(saved_model, GateReport((first,)))  # before anything is copied
    contract = registry.manifest(model, live).signature if live is not None else None
    live_path = registry.path(model, live) if live is not None else None

    def check(incoming: str, draft: Manifest) -> str:
        report = check_candidate(incoming, config, draft.signature, contract, live_path, run)
        if not report.passed:
            known = (replace(found, said=found.said.replace(incoming, saved_model)) for found in report.checks)
            raise GateRefused(saved_model, GateReport(tuple(known)))
        reports.append(report)
        return report.to_json()

    return check


def check_learnt(parent_path: str, served: Container[str], values: Mapping[str, Any] | None = None) -> Check:
    """The gate of a closed loop: cheap enough for every version that a learner makes. Its graph is its parent's, which passed.

    Args:
        parent_path: the parent's folder.
        served: the variables that predicting reads. What else a learner keeps, such as rows to rehearse, may have gaps.
        values: the variables by checkpoint key, where they are at hand and need not be read.

    Returns:
        A `check` for `Registry.publish_variables`; it raises GateRefused.
    """

    def check(incoming: str, draft: Manifest) -> str:
        found = finite.check_weights(incoming, (), served, values)
        if not found.passed:  # some learners keep bounds that are not set yet: what the parent had so may be so
            found = finite.check_weights(incoming, finite.nonfinite_variables(parent_path), served, values)
        report = GateReport((found,))
        if not report.passed:
            raise GateRefused(f"what {draft.model} learnt from version {draft.parent}", report)
        return report.to_json()

    return check
