"""The demonstration on a part of its data, for tests that run it over and over."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.registry import Registry
from pipelines import template as templates
from pipelines.execute import Execution, Outcome
from pipelines.job import JobSpec
from transforms.batches import SEQUENCE

DATA = templates.FOLDER.parent / "data" / "elec2.csv.gz"
RECORDS_A_DAY = 48


def write_days(file: Path, days: int, *, spoil: bool = False) -> Path:
    """The first days of the data; spoilt, with some records that cannot be used and some that come late."""
    with gzip.open(DATA, "rt") as lines:
        header, *rows = [next(lines) for _ in range(1 + days * RECORDS_A_DAY)]
    if spoil:
        for place in range(40, len(rows), 97):
            rows[place] = rows[place].replace(",", ",x", 1)
        for place in range(70, len(rows), 131):
            rows[place], rows[place - 5] = rows[place - 5], rows[place]
    file.write_text(header + "".join(rows))
    return file


def job(output: Path, input_file: Path, changes: dict[str, Any] | None = None, **params: Any) -> JobSpec:
    """The template's job; `changes` are made behind the template's back, as {"source": {"batch_rows": 7}}."""
    template, here = templates.load("electricity")
    filled = template.fill({"output": str(output), "input": str(input_file), **params}, here)
    content = filled.model_dump(mode="json")
    for section, settings in (changes or {}).items():
        content[section].update(settings)
    return JobSpec.model_validate(content)


def run(spec: JobSpec) -> Outcome:
    return Execution(spec).run()


def read(output: Path, name: str) -> pa.Table:
    """An output as one table in order of `sequence`, dictionaries as plain text, so that tables can be compared."""
    tables = [pq.read_table(part) for part in sorted((output / name).glob("part-*.parquet"))]
    if not tables:
        return pa.table({})
    plain = [
        pa.table(
            {
                n: c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c
                for n, c in zip(t.schema.names, t.columns, strict=True)
            }
        )
        for t in tables
    ]
    return pa.concat_tables(plain).sort_by(SEQUENCE).combine_chunks()


def digests(output: Path) -> list[tuple[int, str]]:
    registry = Registry(str(output / "registry"))
    return [(v, registry.manifest("electricity", v).digests.version) for v in registry.versions("electricity")]


def assert_same_outputs(left: Path, right: Path) -> None:
    """Predictions, lineage, evaluations, dead letters and versions are the same, to the last bit."""
    for name in ("predictions", "evaluations", "dead_letters"):
        ours, theirs = read(left, name), read(right, name)
        assert ours.schema.equals(theirs.schema), name
        assert ours.equals(theirs), f"{name} differ: {ours.num_rows} rows here, {theirs.num_rows} there"
    assert digests(left) == digests(right)
