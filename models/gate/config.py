"""What the gate asks of the versions of a model: limits and references, kept in `<registry>/<model>/gate.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from models import storage

GATE_FILE = "gate.json"
MEGABYTE = 1 << 20


class GateConfigError(ValueError):
    """Settings of the gate that cannot be; names them."""


@dataclass(frozen=True)
class GateConfig:
    """What is asked. The defaults suit a model of megabytes; give what yours may take.

    Attributes:
        max_bytes: of all files of a version together.
        max_files: how many files.
        load_timeout_s: loading, tracing and predicting must be done after this long.
        load_memory_bytes: what loading and predicting may take above what TensorFlow itself takes.
        latency_budget_ms: for a block of `block_rows` rows, the median of some calls; None for any.
        block_rows: rows TensorFlow is given at a time, as in serving.
        golden_rtol: how far a golden record's outputs may be off, relative to their size.
        golden_atol: and absolutely. Other machines have other kernels, so not to the last bit.
        holdout: a Parquet file of labelled rows that the candidate has not seen; None for no comparison.
        label: the holdout's label column.
        output: the output to compare with the label; equality for whole numbers and text, squared error for others.
        tolerance: how much worse than the live version a candidate may be: in accuracy, or relative in squared error.
        significance: a candidate is refused if it is worse by more than that and this improbable to be so by chance.
        seed: of the bootstrap.
    """

    max_bytes: int = 2048 * MEGABYTE
    max_files: int = 10_000
    load_timeout_s: float = 120.0
    load_memory_bytes: int = 4096 * MEGABYTE
    latency_budget_ms: float | None = None
    block_rows: int = 256
    golden_rtol: float = 1e-3
    golden_atol: float = 1e-4
    holdout: str | None = None
    label: str = "label"
    output: str = "prediction"
    tolerance: float = 0.0
    significance: float = 0.05
    seed: int = 7

    def changed(self, **settings: Any) -> GateConfig:
        """With other settings; those that are None stay as they are.

        Raises:
            GateConfigError: there is no such setting.
        """
        known = {field.name for field in fields(self)}
        if unknown := sorted(settings.keys() - known):
            raise GateConfigError(f"the gate has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return GateConfig(**vars(self) | {name: value for name, value in settings.items() if value is not None})


def load_config(registry_root: str, model: str) -> GateConfig:
    """The settings of a model's gate; the defaults where none are written down.

    Raises:
        GateConfigError: the file is garbled or has a setting that there is not.
    """
    file = storage.join(registry_root, model, GATE_FILE)
    try:
        settings = json.loads(storage.read_text(file))
        return GateConfig().changed(**settings)
    except FileNotFoundError:
        return GateConfig()
    except (TypeError, ValueError) as error:
        raise GateConfigError(f"{file}: {error}. Expected a JSON object of settings.") from error
