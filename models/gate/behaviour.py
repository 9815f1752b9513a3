"""How a loaded version behaves: finite outputs, the same for the same rows, in time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import pyarrow as pa

from models.gate.config import GateConfig
from models.gate.result import CheckResult, passed, refused
from models.signature import Signature

OUTPUTS, REPRODUCIBLE, LATENCY = "outputs", "reproducible", "latency"
_CALLS = 9  # whose median is the latency


class Predictor(Protocol):
    """What predicts."""

    def predict(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """One array per output."""


def made_up_rows(signature: Signature, rows: int, seed: int = 7) -> pa.RecordBatch:
    """Rows that fit a signature: standard normal numbers, small whole numbers, short texts. Open lengths are taken as 4."""
    draw = np.random.default_rng(seed)
    columns = {}
    for name, field in signature.inputs.items():
        sizes = [4 if size is None else size for size in field.shape]
        count = rows * int(np.prod(sizes, dtype=np.int64))
        if field.dtype == "string":
            values = pa.array([f"w{number}" for number in draw.integers(0, 9, count)])
        elif field.dtype == "bool":
            values = pa.array(draw.integers(0, 2, count).astype(bool))
        elif field.dtype.startswith("float"):
            values = pa.array(draw.normal(size=count).astype(field.dtype))
        else:
            values = pa.array(draw.integers(0, 9, count).astype(field.dtype))
        for size in reversed(sizes if field.shape != (1,) else []):
            values = pa.FixedSizeListArray.from_arrays(values, size)
        columns[name] = values
    return pa.RecordBatch.from_pydict(columns)


def check_outputs(outputs: Mapping[str, pa.Array], what: str) -> CheckResult:
    """No NaN and no infinity in the outputs.

    Args:
        outputs: by name.
        what: which rows went in, for people.
    """
    for name, column in outputs.items():
        while pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        if pa.types.is_floating(column.type):
            values = column.to_numpy(zero_copy_only=False)
            if bad := int(values.size - np.isfinite(values).sum()):
                return refused(
                    OUTPUTS,
                    f"output {name!r} has {bad:,} of {values.size:,} values NaN or infinite for {what}. Look for a "
                    "logarithm, root or "
                    "division without a guard; ship golden records if such rows never come.",
                    nonfinite=bad,
                )
    return passed(OUTPUTS, f"finite for {what}")


def check_reproducible(model: Predictor, batch: pa.RecordBatch) -> CheckResult:
    """The same rows again, and some of them alone, give the same bits; and a call changes nothing for the next."""
    whole, again = model.predict(batch), model.predict(batch)
    part = model.predict(batch.slice(1, 3))
    for name in whole:
        if not _same(whole[name], again[name]):
            return refused(
                REPRODUCIBLE,
                f"output {name!r} differs from call to call. Save the model with dropout off and without random numbers or "
                "counters, "
                "or no replay can give what was predicted.",
            )
        if not _same(whole[name].slice(1, len(part[name])), part[name]):
            return refused(
                REPRODUCIBLE,
                f"output {name!r} of a row depends on the rows beside it. Compute nothing over the batch: normalise with "
                "stored "
                "moments.",
            )
    return passed(REPRODUCIBLE, "the same rows give the same bits, alone or beside others")


def _same(left: pa.Array, right: pa.Array) -> bool:
    """To the last bit, NaN included."""
    while pa.types.is_fixed_size_list(left.type):
        left, right = left.flatten(), right.flatten()
    if pa.types.is_floating(left.type):
        return left.to_numpy(zero_copy_only=False).tobytes() == right.to_numpy(zero_copy_only=False).tobytes()
    return bool(left.equals(right))


def check_latency(model: Predictor, batch: pa.RecordBatch, config: GateConfig) -> CheckResult:
    """The median time for a batch, warmed up, is within the budget."""
    times = []
    for _ in range(_CALLS):
        begun = time.perf_counter()
        model.predict(batch)
        times.append((time.perf_counter() - begun) * 1e3)
    median = statistics.median(times)
    budget = config.latency_budget_ms
    if budget is not None and median > budget:
        return refused(
            LATENCY,
            f"{median:.1f} ms for {batch.num_rows} rows, allowed are {budget:g}. Make the model smaller, or raise "
            "latency_budget_ms in "
            "gate.json.",
            median_ms=median,
        )
    return passed(LATENCY, f"{median:.2f} ms for {batch.num_rows} rows", median_ms=median)
