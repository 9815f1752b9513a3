"""Context and learning a piece apart give what they give one after the other, however the stream and its pieces are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.learners.ensemble_classifier import EnsembleClassifier, EnsembleClassifierConfig
from models.learners.experts.inputs import CONTEXT
from models.learning import save_learner
from models.registry import Registry
from tests.transforms import cutting
from transforms.batches import SEQUENCE
from transforms.label_context import LabelContext
from transforms.label_join import LABEL_TIME, LabelJoin, own_labels
from transforms.operators import Chain
from transforms.overlapped_learning import OverlappedLearning
from transforms.training import Train

DELAY_US = 7


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seed") / "saved"
    small = {"memory_rows": 64, "trees": 2, "depth": 2, "grown": 1, "hidden": 4, "steps": 1, "batch_rows": 16}
    save_learner(EnsembleClassifier(EnsembleClassifierConfig(("x",), "y", context=True, **small)), str(folder))
    return folder


def stream(rows: int) -> dict[str, pa.Table]:
    """Records in order, some at the same time, and their labels; some have none, and one label has no record."""
    rng = np.random.default_rng(rows)
    x = rng.normal(size=rows)
    label = pa.array((x > 0).astype(np.int64), mask=rng.random(rows) < 0.1)
    times = np.sort(rng.integers(0, rows // 2, rows)).tolist()
    (batch,) = cutting.stream(times, {"x": pa.array(x), "y": label}, stamped=False).to_batches()
    records, labels = (pa.Table.from_batches([part]) for part in own_labels(batch, "y", DELAY_US))
    return {"records": records.filter(pa.array(np.arange(rows) != rows // 3)), "labels": labels}


def operators(folder: Path, seed: Path) -> tuple[LabelContext, Chain]:
    registry = Registry(str(folder))
    first = registry.publish("m", str(seed), publication="job/seed").version
    train = Train(str(folder), "m", first, LABEL_TIME, 1, 1, "job", every_rows=32)
    return LabelContext("y", ("x",), DELAY_US, 2), Chain(LabelJoin((SEQUENCE,), "y", DELAY_US), train)


def digests(folder: Path) -> list[str]:
    registry = Registry(str(folder))
    return [registry.manifest("m", version).digests.version for version in registry.versions("m")]


def _apart(tables: dict[str, pa.Table]) -> tuple[dict[str, pa.Table], list[bytes]]:
    """The tables without the context, and its bits: lists with NaN are equal to nothing."""
    rest, contexts = {}, []
    for tag, table in sorted(tables.items()):
        if CONTEXT in table.schema.names:
            contexts.append(table.column(CONTEXT).combine_chunks().flatten().to_numpy().tobytes())
            table = table.drop_columns([CONTEXT])
        rest[tag] = table
    return rest, contexts


@pytest.mark.parametrize(("piece_records", "cuts"), [(16, []), (16, [41, 160]), (1000, [100])])
def test_it_gives_what_one_after_the_other_gives(tmp_path: Path, seed: Path, piece_records: int, cuts: list[int]) -> None:
    inputs = stream(240)
    context, learn = operators(tmp_path / "one", seed)
    known = cutting.run(context, inputs, [])
    learnt = cutting.run(learn, {"records": known["out"], "labels": inputs["labels"]}, [])
    overlapped = OverlappedLearning(str(tmp_path / "two"), *operators(tmp_path / "two", seed), piece_records)
    given, expected = (_apart(tables) for tables in (cutting.run(overlapped, inputs, cuts), {**known, **learnt}))
    assert given[1] == expected[1]
    cutting.assert_same(given[0], expected[0])
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(digests(tmp_path / "one")) > 5
