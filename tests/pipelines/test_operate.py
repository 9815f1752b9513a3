"""The commands that change and show what is live."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from models.activation_log import ActivationLog, SomebodyWasFirst
from models.registry import Registry
from tests.pipelines import jobs
from tests.pipelines.test_cli import midstream


@pytest.fixture
def model(tmp_path: Path) -> list[Any]:
    registry = Registry(str(tmp_path / "models"))
    for slope in (1.0, 2.0, 3.0):
        saved_model = jobs.save_module(tmp_path / str(slope), slope)
        registry.publish("price", str(saved_model), check=lambda folder, manifest: "{}")  # as if through the gate
    return ["--registry", registry.root, "--model", "price"]


def entries(model: list[Any]) -> list[tuple[int | None, str, str | None]]:
    return [(e["version"], e["kind"], e["share"]) for e in json.loads(midstream("log", *model, "--json").stdout)]


def test_through_a_trial_and_back(model: list[Any]) -> None:
    midstream("activate", *model, 1)
    assert "would be a canary for 10% of the keys" in midstream("canary", *model, 2, "--dry-run").stdout
    assert "is a canary for 25% of the keys" in midstream("canary", *model, 2, "--share", 0.25).stdout
    [row] = json.loads(midstream("status", *model[:2], "--json").stdout)
    assert (row["live"], row["on trial"], row["newest version"], row["paused by"]) == (1, "2 (canary 25%)", 3, None)
    assert "version 2 is live from" in midstream("promote", *model).stdout
    midstream("shadow", *model, 3)
    assert "2 (" not in midstream("status", *model[:2]).stdout
    midstream("rollback", *model, "--reason", "end of the trial")
    midstream("rollback", *model, "--reason", "worse", "--dry-run")
    assert json.loads(midstream("rollback", *model, "--reason", "worse", "--json").stdout)["version"] == 1
    assert "decide nothing" in midstream("pause", *model, "--reason", "holidays").stdout
    [row] = json.loads(midstream("status", *model[:2], "--json").stdout)
    assert row["paused by"].endswith(": holidays")
    midstream("pause", *model, "--resume")
    assert entries(model) == [
        *[(1, "activate", None), (2, "canary", "25%"), (2, "promote", None), (3, "shadow", "0%")],
        *[(2, "rollback", None), (1, "rollback", None), (None, "pause", None), (None, "resume", None)],
    ]
    assert len(json.loads(midstream("log", *model, "--json", "--last", 2).stdout)) == 2


def test_mistakes_say_what_to_do(model: list[Any]) -> None:
    assert "no version on trial" in midstream("promote", *model, status=1).stderr
    assert "nothing is live" in midstream("canary", *model, 2, status=1).stderr
    midstream("activate", *model, 1)
    assert "version 1 is live" in midstream("shadow", *model, 1, status=1).stderr
    midstream("canary", *model, 2, "--share", 1, status=2)
    assert "it has 1 to 3" in midstream("canary", *model, 9, status=1).stderr or "it has 1, 2, 3" in (
        midstream("canary", *model, 9, status=1).stderr
    )


def test_of_two_people_at_once_one_is_told_who_was_first(model: list[Any]) -> None:
    """Both looked at the same log; both decide; only one decision is made, whoever wins."""
    root = model[1]
    ActivationLog(root, "price").activate(1, by="test", reason="start")
    seen = ActivationLog(root, "price").last_decision()
    ready, told = threading.Barrier(8), []

    def decide(name: str, version: int) -> None:
        log = ActivationLog(root, "price")
        ready.wait()
        try:
            log.activate(version, by=name, reason=f"{name} thinks so", after=seen)
        except SomebodyWasFirst as error:
            told.append(str(error))

    people = [threading.Thread(target=decide, args=(f"person {n}", 2 + n % 2)) for n in range(8)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    found = ActivationLog(root, "price").entries()
    assert len(found) == 2
    assert len(told) == 7
    assert all(f"{found[1].by} was first" in text and "Nothing was changed" in text for text in told)
