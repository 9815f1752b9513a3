"""The short form of the faults of `make chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS, Scene
from tests.chaos.live_faults import run_live_faults
from tests.chaos.surroundings import Unavailable
from tests.kafka import Cluster


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_doubled_or_mislabelled(tmp_path: Path, name: str) -> None:
    scene = Scene(tmp_path)
    try:
        said = FAULTS[name](scene, 1.0)
    except Unavailable as lack:
        pytest.skip(str(lack))
    counts = scene.counts()
    assert (counts.lost, counts.doubled, counts.mislabelled) == (0, 0, 0), (said, counts)


@pytest.mark.timeout(600)
def test_nothing_is_lost_doubled_or_mislabelled_on_flink(tmp_path: Path, kafka: Cluster) -> None:
    faults = list(run_live_faults(tmp_path / "live", kafka, quick=True))
    counted = {fault.name: fault.counts for fault in faults if fault.counts is not None}
    assert {name: (counts.lost, counts.doubled, counts.mislabelled) for name, counts in counted.items()} == dict.fromkeys(
        counted, (0, 0, 0)
    ), faults
    assert {"registry unreachable", "worker killed while it loads a version"} <= set(counted)
