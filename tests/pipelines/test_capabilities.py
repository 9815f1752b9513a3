"""What a runner cannot do is said in one sentence, with what to use instead."""

from typing import Any

import pytest

from pipelines.capabilities import CannotRun, check
from pipelines.job import RunSection


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "continuous", "runner": "direct"}, "mode=micro-batch, or --runner flink"),
        ({"mode": "continuous", "runner": "prism"}, "mode=micro-batch, or --runner flink"),
        ({"mode": "continuous", "runner": "spark"}, "without sources, side inputs and state: use mode=micro-batch"),
        ({"runner": "direct", "parallelism": 2}, "leave --parallelism out, or use --runner flink or spark"),
        ({"runner": "prism", "master": "host:8081"}, "has no clusters: use --runner flink"),
        ({"runner": "spark", "master": "host:7077"}, "spark://host:7077, got 'host:7077'"),
        ({"runner": "flink", "master": "spark://host:7077"}, "host:8081, its REST address"),
        ({"runner": "flink", "workers": "host:50000"}, "give its --master too"),
    ],
)
def test_what_cannot_be_run_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotRun) as refused:
        check(RunSection(**settings))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "continuous", "runner": "flink", "parallelism": 2},
        {"runner": "spark", "master": "spark://host:7077", "workers": "localhost:50000", "preinstalled": True},
        {"runner": "flink", "master": "host:8081", "workers": "localhost:50000"},
    ],
)
def test_what_can_be_run_is_not(settings: dict[str, Any]) -> None:
    check(RunSection(**settings))
