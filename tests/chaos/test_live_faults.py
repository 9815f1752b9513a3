"""The short form of the faults of `make chaos` under a continuous job on Flink."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.live_faults import FAULTS, SLOW, run_live_faults
from tests.kafka import Cluster


@pytest.mark.timeout(300)
def test_nothing_is_lost_doubled_or_mislabelled(kafka: Cluster, tmp_path: Path) -> None:
    found = list(run_live_faults(tmp_path / "live", kafka, quick=True))
    assert [fault.name for fault in found] == [name for name in FAULTS if name not in SLOW]
    for fault in found:
        if fault.counts is None:
            print(f"{fault.name}: {fault.said}")  # this machine has no compiler, or lets nobody mount
            continue
        assert fault.counts.records > 0
        assert (fault.counts.lost, fault.counts.doubled, fault.counts.mislabelled) == (0, 0, 0), fault
