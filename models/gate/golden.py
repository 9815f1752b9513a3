"""Golden records: rows with the outputs that the version gave where it was trained, shipped in `assets.extra/golden.parquet`.

They catch what digests and signatures cannot: columns fed in another order, a preprocessing step left out, another kernel's
arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.gate.config import GateConfig
from models.gate.result import CheckResult, passed, refused

NAME = "golden"
GOLDEN_FILE = "assets.extra/golden.parquet"
EXPECTED = "expected_"  # prefix of the columns with what the version gave


def read_golden(path: str) -> pa.RecordBatch | None:
    """The golden records of the version in this folder; None where it ships none.

    Raises:
        ValueError: they cannot be read.
    """
    import pyarrow.parquet as pq

    file = Path(path, GOLDEN_FILE)
    if not file.exists():
        return None
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{GOLDEN_FILE} cannot be read: {error}. Write it again with models.gate.golden.write_golden."
        ) from error
    if not table.num_rows or not any(name.startswith(EXPECTED) for name in table.column_names):
        raise ValueError(f"{GOLDEN_FILE} wants at least one row and one column {EXPECTED}<output>; it has {table.column_names}")
    (batch,) = table.combine_chunks().to_batches()
    return batch


def write_golden(path: str, rows: pa.RecordBatch, outputs: Mapping[str, pa.Array]) -> None:
    """Puts golden records into a SavedModel's folder.

    Args:
        path: the folder.
        rows: what goes in.
        outputs: what came out, by output.
    """
    import pyarrow.parquet as pq

    for name, column in outputs.items():
        rows = rows.append_column(EXPECTED + name, column)
    file = Path(path, GOLDEN_FILE)
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_batches([rows]), file)


def check_golden(golden: pa.RecordBatch | None, outputs: Mapping[str, pa.Array], config: GateConfig) -> CheckResult:
    """Compares what the version gives now with what it gave then.

    Args:
        golden: what `read_golden` gave.
        outputs: the version's outputs for these rows, by name.
        config: `golden_rtol`, `golden_atol`.
    """
    if golden is None:
        return passed(NAME, "it ships no golden records; models.gate.golden.write_golden puts some in")
    wanted = [name for name in golden.schema.names if name.startswith(EXPECTED)]
    for name in wanted:
        output = name.removeprefix(EXPECTED)
        if output not in outputs:
            return refused(
                NAME, f"the golden records expect an output {output!r}, which the version has not. Write them again."
            )
        came, expected = _values(outputs[output]), _values(golden.column(name))
        if came.shape != expected.shape:
            same = np.zeros(golden.num_rows, bool)
        elif np.issubdtype(came.dtype, np.floating):
            same = np.isclose(came, expected, config.golden_rtol, config.golden_atol, equal_nan=True)
            same = same.reshape(golden.num_rows, -1).all(axis=1)
        else:
            same = (came == expected).reshape(golden.num_rows, -1).all(axis=1)
        if not same.all():
            row = int(np.flatnonzero(~same)[0])
            return refused(
                NAME,
                f"{int((~same).sum())} of {golden.num_rows} golden records come out otherwise: in row {row} output "
                f"{output!r} is "
                f"{outputs[output][row].as_py()}, expected {golden.column(name)[row].as_py()}. Are the columns fed in the "
                "order and "
                "the units of training? If the model was meant to change, write the golden records again.",
                differing=int((~same).sum()),
            )
    return passed(NAME, f"{golden.num_rows} golden records reproduced", rows=golden.num_rows)


def _values(column: pa.Array) -> np.ndarray:
    while pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False)
