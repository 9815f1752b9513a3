"""What `models.isolated` can be asked to do.

Each task takes JSON-able arguments, the folder to leave files in, and a function to tell the step it is in.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.anomaly.saved import EMPTY_SIGNATURE
from models.digest import version_digest
from models.gate import behaviour, finite, golden, ops
from models.gate.config import GateConfig
from models.gate.result import CheckResult, refused
from models.gate.series import check_scores
from models.isolated import Step
from models.isolated_names import HOLDOUT_FILE
from models.registry import Manifest
from models.serving import LoadedGraph, ModelError, ServedModel
from models.signature import Signature


def export(path: str, block_rows: int, tag: str, folder: str, step: Step) -> dict[str, Any]:
    """Makes a graph ready for another process; see `models.exported_graph`."""
    from models import exported_graph

    step("loading and tracing")
    try:
        exported_graph.export(path, block_rows, tag, folder)
    except exported_graph.NotExportable as error:
        return {"exported": False, "why": str(error)}
    return {"exported": True}


def try_out(path: str, config: dict[str, Any], meant: list[str], folder: str, step: Step) -> dict[str, Any]:
    """All checks that need the candidate's graph or weights. The first refusal ends it: what comes after may not be safe.

    Args:
        path: the candidate's folder.
        config: a `GateConfig`.
        meant: variables that may be NaN or infinite.
        folder: gets the outputs for the holdout.
        step: told where it is.
    """
    settings = GateConfig(**config)
    checks: list[CheckResult] = []
    for check in _checks(path, settings, meant, folder, step):
        checks.append(check)
        if not check.passed:
            break
    return {"checks": [asdict(check) for check in checks]}


def _checks(path: str, config: GateConfig, meant: list[str], folder: str, step: Step) -> Any:
    step("reading the graph")
    yield ops.check_graph(path)
    step("reading the weights")
    yield finite.check_weights(path, meant)
    step("loading it")
    try:
        signature = Signature.from_saved_model(path)
        graph = LoadedGraph(path, config.block_rows)
        model = ServedModel(graph, Manifest("candidate", 1, version_digest(path), signature), path)
        records = golden.read_golden(path)
    except (ModelError, ValueError) as error:
        yield refused("load", f"{error}. Load it with tf.saved_model.load where it was made, and save it again.")
        return
    yield CheckResult("load", True, "it loads")
    if EMPTY_SIGNATURE in graph.signatures:
        step("scoring made-up series")
        yield check_scores(path, signature.inputs["x"].shape[-1] or 1)
        return
    rows = records if records is not None else behaviour.made_up_rows(signature, config.block_rows)
    what = "its golden records" if records is not None else "made-up rows"
    step("predicting")
    try:
        given = model.predict(rows)
        yield behaviour.check_outputs(given, what)
        yield golden.check_golden(records, given, config)
        yield behaviour.check_reproducible(model, rows)
        step("measuring its latency")
        block = rows if rows.num_rows <= config.block_rows else rows.slice(0, config.block_rows)
        yield behaviour.check_latency(model, block, config)
        if config.holdout is not None:
            step("predicting the holdout")
            yield predict_holdout(model, config, Path(folder, HOLDOUT_FILE))
    except (ModelError, ValueError) as error:
        if "OOM" in str(error) or "ResourceExhausted" in str(error):
            yield refused(
                "memory",
                f"predicting {what} takes more than the {config.load_memory_bytes:,} bytes that are allowed. Make it "
                "smaller, or "
                "raise load_memory_bytes in gate.json.",
            )
            return
        yield refused("predict", f"it refuses {what}: {error}. Give every row of the input one row of every output.")


def predict_holdout(model: ServedModel, config: GateConfig, file: Path) -> CheckResult:
    """Writes a version's output for the rows of the holdout into a file."""
    import numpy as np
    import pyarrow.parquet as pq

    (batch,) = pq.read_table(config.holdout).combine_chunks().to_batches()
    given = model.predict(batch)
    if config.output not in given:
        return refused("holdout", f"there is no output {config.output!r} to compare; the version gives {', '.join(given)}")
    check = behaviour.check_outputs(given, "the holdout")
    values = given[config.output].to_numpy(zero_copy_only=False)
    np.save(file, values.astype(str) if values.dtype == object else values, allow_pickle=False)
    return check if not check.passed else CheckResult("holdout rows", True, f"predicted {batch.num_rows:,} rows of the holdout")


def holdout(path: str, config: dict[str, Any], folder: str, step: Step) -> dict[str, Any]:
    """Predicts the holdout with a version that is published already."""
    settings = GateConfig(**config)
    step("predicting the holdout with the live version")
    signature = Signature.from_saved_model(path)
    model = ServedModel(LoadedGraph(path, settings.block_rows), Manifest("live", 1, version_digest(path), signature), path)
    return asdict(predict_holdout(model, settings, Path(folder, HOLDOUT_FILE)))
