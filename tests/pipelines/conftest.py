"""What the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines.jobs import Serve, World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def serve(world: World, tmp_path: Path) -> Serve:
    return Serve(world, tmp_path)
