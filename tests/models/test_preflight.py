"""What cannot be loaded is taken back in the log before its rows are predicted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from models.activation_log import ActivationLog
from models.preflight import settle
from models.registry import Registry
from models.serving import ModelCache
from models.timeline import MIN_TIME_US
from tests.models import saved

SECOND = 1_000_000


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Versions 1 to 3; 2 is gone."""
    registry = Registry(str(tmp_path / "registry"))
    registry.publish("small", saved.save(saved.Small(), tmp_path / "small"))
    for _ in range(2):
        registry.publish_variables("small", 1, saved.write_like(tmp_path / "small", lambda key, value: value))
    shutil.move(registry.path("small", 2), tmp_path / "gone")
    return registry


@pytest.fixture
def log(registry: Registry, tmp_path: Path) -> ActivationLog:
    log = ActivationLog(registry.root, "small")
    log.activate(1, by="a", reason="start")
    return log


def activate_lost(registry: Registry, log: ActivationLog, tmp_path: Path, kind: str, at: int) -> None:
    """Version 2 is there when it is activated, and gone when it is wanted."""
    shutil.copytree(tmp_path / "gone", registry.path("small", 2))
    log.activate(2, at, by="a", reason="try", kind=kind, share={"canary": 0.5, "shadow": 0.0}.get(kind, 1.0))  # type: ignore[arg-type]
    shutil.rmtree(registry.path("small", 2))


@pytest.mark.parametrize("kind", ["activate", "canary", "shadow"])
def test_the_live_version_stays_from_the_same_boundary_on(
    registry: Registry, log: ActivationLog, tmp_path: Path, kind: str
) -> None:
    activate_lost(registry, log, tmp_path, kind, 10 * SECOND)
    log.seal(20 * SECOND, by="job")
    told = settle(log, ModelCache(registry, block_rows=8), "small", "job", MIN_TIME_US, 20 * SECOND)
    assert len(told) == 1
    assert "version 2 was requested and cannot be loaded" in told[0] and "version 1 stays live" in told[0]
    timeline = log.timeline()
    assert not timeline.wants(2, 10 * SECOND) and not timeline.wants(2, 15 * SECOND) and timeline.wants(1, 15 * SECOND)


def test_what_others_may_have_served_stays_in_the_log(registry: Registry, log: ActivationLog, tmp_path: Path) -> None:
    """A continuous job has workers side by side: one of them may have loaded it, and predicted by it up to the seal."""
    activate_lost(registry, log, tmp_path, "activate", 10 * SECOND)
    log.seal(15 * SECOND, by="job")
    cache = ModelCache(registry, block_rows=8)
    settle(log, cache, "small", "job", 15 * SECOND, 30 * SECOND, redone=False)
    timeline = log.timeline()
    assert timeline.wants(2, 12 * SECOND), "it was served there"
    assert timeline.wants(1, 15 * SECOND) and not timeline.wants(2, 20 * SECOND)
    assert settle(log, cache, "small", "job", 15 * SECOND, 30 * SECOND, redone=False) == [], "once is enough"


def test_the_first_version_has_nothing_to_go_back_to(registry: Registry, tmp_path: Path) -> None:
    log = ActivationLog(registry.root, "small")
    activate_lost(registry, log, tmp_path, "activate", 0)
    before = log.entries()
    assert settle(log, ModelCache(registry, block_rows=8), "small", "job", MIN_TIME_US, SECOND) == []
    assert log.entries() == before
