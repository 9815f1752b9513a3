"""A detector is published through the gate: one that works passes, whatever its settings; one that does not is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf
from click.testing import CliRunner

from models.anomaly.detector import Detector, DetectorConfig
from models.anomaly.saved import save_detector
from models.registry import Registry
from pipelines.cli import main


def publish(tmp_path: Path, folder: Path) -> tuple[int, str]:
    ran = CliRunner().invoke(main, ["publish", "--registry", str(tmp_path / "registry"), "--model", "anomalies", str(folder)])
    return ran.exit_code, " ".join(ran.output.split())


def test_one_with_other_settings_passes(tmp_path: Path) -> None:
    options = ["--columns", "3", "--quiet-rows", "10", "--repeated", "0.5"]
    ran = CliRunner().invoke(main, ["save-detector", str(tmp_path / "calm"), *options])
    assert ran.exit_code == 0, ran.output
    status, told = publish(tmp_path, tmp_path / "calm")
    assert status == 0 and "anomalies version 1" in told
    again = CliRunner().invoke(main, ["save-detector", str(tmp_path / "calm")])
    assert again.exit_code == 1 and "is there already; nothing was written" in again.output


BAD = {
    "too high": (lambda scores: scores * 3.0, "not from 0 to 1"),
    "all the same": (
        lambda scores: tf.where(tf.math.is_nan(scores), scores, 0.5 * tf.ones_like(scores)),
        "tells nothing apart",
    ),
    "where there is no value": (
        lambda scores: tf.where(tf.math.is_nan(scores), tf.zeros_like(scores), scores),
        "without a value",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_one_that_does_not_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    change, reason = BAD[how]
    step = Detector.step
    monkeypatch.setattr(Detector, "step", lambda *given: (lambda state, scores: (state, change(scores)))(*step(*given)))
    save_detector(DetectorConfig(), str(tmp_path / "bad"))
    status, told = publish(tmp_path, tmp_path / "bad")
    assert status == 1 and reason in told, told
    assert Registry(str(tmp_path / "registry")).versions("anomalies") == []
