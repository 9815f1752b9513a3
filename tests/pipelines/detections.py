"""Series as files, and a way to detect anomalies in them in this process, for the tests of this folder."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import template as templates


def values(rows: int, seed: int) -> np.ndarray:
    """A day's rhythm and noise, with three decimals; some spikes."""
    draw = np.random.default_rng(seed)
    x = 20 + 8 * np.sin(np.arange(rows) / 288 * 2 * np.pi) + draw.normal(0, 0.7, rows)
    x[draw.integers(rows // 2, rows, 3)] += 30
    return x.round(3)


def times(rows: int) -> list[str]:
    start = np.datetime64("2026-03-02T00:00:00")
    return [str(start + np.timedelta64(300 * row, "s")).replace("T", " ") for row in range(rows)]


def write(file: Path, columns: dict[str, Any]) -> Path:
    """A CSV file; gzipped if its name says so."""
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    text = "\n".join(lines) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def series(file: Path, rows: int = 700, seed: int = 1) -> Path:
    return write(file, {"timestamp": times(rows), "value": values(rows, seed)})


def run(source: Path, output: Path, *, runner: str = "direct", **params: Any) -> dict[str, Any]:
    """Runs the template and gives its counts."""
    from pipelines.commands.run import on_runner
    from pipelines.detection.execute import DetectionExecution

    template, here = templates.load("detect-anomalies")
    given = {"input": str(source), "output": str(output)} | {name: str(value) for name, value in params.items()}
    job = on_runner(template.fill(given, here), runner=runner)  # type: ignore[type-var]
    outcome = DetectionExecution(job).run()
    assert not outcome.problems, outcome.problems
    return outcome.counts


def csv_files(folder: Path) -> dict[str, bytes]:
    """Every CSV file under a folder by its relative path, unpacked."""
    found = sorted([*folder.rglob("*.csv"), *folder.rglob("*.csv.gz")])
    read = lambda file: gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()  # noqa: E731
    return {str(file.relative_to(folder)): read(file) for file in found}


def scores(text: bytes) -> list[str]:
    """The last field of each line below the header."""
    return [line.rpartition(",")[2] for line in text.decode().splitlines()[1:]]


def swapped(output: Path, name: str, from_row: int) -> Path:
    """A job's registry as it is when another detector was activated from a row on: one that repeats alarms sooner."""
    from models.activation_log import ActivationLog
    from models.anomaly.detector import DetectorConfig
    from models.anomaly.saved import exported, save_detector
    from models.registry import Registry

    root, model = str(output / "registry"), "anomalies"
    registry, log = Registry(root), ActivationLog(root, model)
    first = registry.publish(model, exported(1, 7), publication=f"{name}/detector/1/7").version
    save_detector(DetectorConfig(quiet_rows=10, repeated=0.5), str(output / "other"))
    second = registry.publish(model, str(output / "other")).version
    log.activate(first, by=name, reason="the detector that this job began with")
    at = np.datetime64(times(from_row + 1)[-1].replace(" ", "T"), "us").astype(np.int64)
    log.activate(second, int(at), by="test", reason="repeat alarms sooner")
    return output
