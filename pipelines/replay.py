"""Replays a job: predicts again, each record with the version that was live at its event time, and compares.

Which version that is follows from the record and the activation log alone, so a replay of last month gives the predictions
that were made, bit for bit. Nothing is learnt, activated or sealed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.graph import PREDICTIONS
from pipelines.job import JobSpec
from pipelines.parts import Parts
from transforms.batches import SEQUENCE

JOB_FILE = "job.json"


class ReplayError(Exception):
    """A job that cannot be replayed; says why."""


@dataclass(frozen=True)
class Comparison:
    """A replay beside what it replayed.

    Attributes:
        identical: predictions that agree in every column, lineage included, to the last bit.
        differing: predictions of the same record that do not.
        missing: records that were predicted then and not in the replay.
        added: records that were not predicted then.
    """

    identical: int
    differing: int
    missing: int
    added: int

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @property
    def exact(self) -> bool:
        """Whether the replay gave what was predicted, no more and no less."""
        return not (self.differing or self.missing or self.added)


def save_job(job: JobSpec) -> None:
    """Leaves the job in its output folder, for a replay."""
    (Path(job.output) / JOB_FILE).write_text(job.model_dump_json(indent=2))


def replay_of(output: str, target: str) -> JobSpec:
    """The job that replays what is in an output folder.

    Args:
        output: folder of the job to replay.
        target: folder for the replay's own output.

    Raises:
        ReplayError: there is no job in that folder, or it made no predictions.
    """
    try:
        job = json.loads((Path(output) / JOB_FILE).read_text())
    except FileNotFoundError:
        raise ReplayError(f"{output} is no output folder of a job: it has no {JOB_FILE}") from None
    if job["kind"] == "learn":
        raise ReplayError(f"the job in {output} only learns: it made no predictions to replay")
    changed = {"kind": "serve", "learner": None, "seal": False, "output": target, "run": {"mode": "batch"}, "publish": None}
    changed["in_order"] = job["in_order"] or job["kind"] != "serve"
    return JobSpec.model_validate(job | changed)


def compare(output: str, target: str) -> Comparison:
    """Compares the predictions in two output folders, record by record."""
    before, after = _predictions(output), _predictions(target)
    names = [name for name in before.schema.names if name in after.schema.names]
    both = np.intersect1d(before.column(SEQUENCE).to_numpy(), after.column(SEQUENCE).to_numpy(), assume_unique=True)
    common = [table.filter(pc.is_in(table.column(SEQUENCE), value_set=pa.array(both))) for table in (before, after)]
    same = np.ones(len(both), bool)
    for name in names:
        same &= _agree(*(table.column(name) for table in common))
    identical = int(same.sum())
    return Comparison(identical, len(both) - identical, before.num_rows - len(both), after.num_rows - len(both))


def _agree(left: pa.ChunkedArray, right: pa.ChunkedArray) -> np.ndarray:
    """Where two columns have the same bits, or both nothing: (rows,) bool."""
    if left.type != right.type:
        return np.zeros(len(left), bool)
    missing = left.is_null().to_numpy(), right.is_null().to_numpy()
    if pa.types.is_floating(left.type):
        # As integers: NaN is NaN then, and 0.0 is not -0.0.
        bits = f"i{left.type.bit_width // 8}"
        values = [column.fill_null(0.0).to_numpy().view(bits) for column in (left, right)]
        return (missing[0] == missing[1]) & (values[0] == values[1])
    return (missing[0] & missing[1]) | pc.fill_null(pc.equal(left, right), False).to_numpy()


def _predictions(output: str) -> pa.Table:
    parts = Parts(output, PREDICTIONS)
    table = pa.Table.from_batches(parts.batches(list(parts.types)))
    return pa.table(
        {
            name: c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c
            for name, c in zip(table.schema.names, table.columns, strict=True)
        }
    ).sort_by(SEQUENCE)
