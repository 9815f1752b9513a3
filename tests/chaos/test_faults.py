"""The short form of the faults of `make chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS, Scene


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_doubled_or_mislabelled(tmp_path: Path, name: str) -> None:
    scene = Scene(tmp_path)
    said = FAULTS[name](scene, 1.0)
    counts = scene.counts()
    assert (counts.lost, counts.doubled, counts.mislabelled) == (0, 0, 0), (said, counts)
