"""kill -9 of a job that learns on Spark and Flink, or of the engine: a few moments of `python -m tests.chaos.kills`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.kills import kill

MOMENTS = 2  # one of the job, one of the engine


@pytest.mark.timeout(400)
@pytest.mark.parametrize("runner", ["spark", "flink"])
def test_killed_while_it_learns(tmp_path: Path, runner: str) -> None:
    found = kill(tmp_path, runner, MOMENTS, tell=print)
    assert len(found.moments) == MOMENTS
    assert found.versions > 20
