"""The records, labels, versions and activations that all runners are given; the same for a given number of records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

from models.activation_log import ActivationLog
from models.registry import Registry
from tests.pipelines import jobs

SEED = 20260301
RECORDS_A_SECOND = 20
KEYS = 40
WINDOW_S = 4  # as in pipeline.yaml
MODEL = "line"
_LATE_EVERY, _BROKEN_EVERY = 997, 1009  # records that come too late, and that cannot be read
_START = np.datetime64("2026-03-01T00:00:00")


@dataclass(frozen=True)
class Workload:
    """Where it lies.

    Attributes:
        folder: with records.csv, labels.csv and registry/.
        records: how many.
        broken: how many of them cannot be read.
    """

    folder: Path
    records: int
    broken: int


def make(folder: Path, records: int) -> Workload:
    """Writes it into an empty folder.

    Args:
        folder: where to.
        records: how many; some thousand at least.
    """
    draw = np.random.default_rng(SEED)
    seconds = np.arange(records) / RECORDS_A_SECOND
    # Up to 4 s out of order, which the source allows; some by a minute, which it does not.
    shift = draw.uniform(0, 4, records) + np.where(np.arange(records) % _LATE_EVERY == _LATE_EVERY - 1, 60.0, 0.0)
    at = np.maximum(seconds - shift, 0).round(3)
    key = draw.integers(0, KEYS, records)
    slot = (at // WINDOW_S).astype(np.int64)
    value = draw.normal(size=records).round(3)
    text = [f"{number:.3f}" for number in value]
    broken = range(_BROKEN_EVERY - 1, records, _BROKEN_EVERY)
    for row in broken:
        text[row] = "broken"
    names = [f"k{number}" for number in key]
    _write(folder / "records.csv", time=_times(at), key=names, slot=slot, a=text)

    windows = np.unique(np.stack([slot, key]), axis=1)
    windows = windows[:, draw.random(windows.shape[1]) < 0.8]  # not every window gets its label
    known = (windows[0] + 1) * WINDOW_S + draw.uniform(30, 600, windows.shape[1]).round(3)
    order = np.argsort(known, kind="stable")
    truth = draw.integers(0, 2, len(order))
    labels = {"key": [f"k{number}" for number in windows[1][order]], "slot": windows[0][order], "label": truth}
    _write(folder / "labels.csv", time=_times(known[order]), **labels)

    _versions(folder, float(seconds[-1]))
    return Workload(folder, records, len(broken))


def _versions(folder: Path, seconds: float) -> None:
    """Cold start, three versions, a rollback, and a version again."""
    registry, log = folder / "registry", ActivationLog(str(folder / "registry"), MODEL)
    for number, slope in enumerate((1.0, -2.0, 0.5)):
        Registry(str(registry)).publish(MODEL, str(jobs.save_module(folder / f"saved-{number}", slope)))
    start_us = int(_START.astype("datetime64[us]").astype(np.int64))
    for part, version in ((0.1, 1), (0.3, 2), (0.5, 3), (0.6, 2), (0.85, 3)):
        at_us = start_us + int(part * seconds) * 1_000_000
        reason = "rollback" if part == 0.6 else "conformance"
        log.activate(version, at_us, by="conformance", reason=reason)


def _times(seconds: np.ndarray) -> np.ndarray:
    return np.datetime_as_string(_START + (seconds * 1000).round().astype("timedelta64[ms]"), unit="ms")


def _write(file: Path, **columns: object) -> None:
    csv.write_csv(
        pa.table({name: pa.array(column) for name, column in columns.items()}), file, csv.WriteOptions(quoting_style="none")
    )
