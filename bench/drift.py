"""`python -m bench.drift`: how often the monitor cries wolf, and how soon it sees a drift.

Streams without drift of six kinds: independent rows, heavy tails, few values, texts, rows that depend on those before (AR(1),
0.9), and a daily season. Each has a training window of its own, and windows that are compared with it; what is counted is the
share of windows with an alarm in any of the columns. Then a drift is planted: how many rows until the first alarm, and in how
many streams there was none within 20 windows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from models.drift import Reference

REPORT = Path(__file__).with_suffix(".json")
COLUMNS, TRAINING_ROWS, WINDOW_ROWS, WINDOWS = 5, 2000, 1000, 20
SIGNIFICANCE, MIN_DISTANCE = 0.01, 0.1
Draw = Callable[[np.random.Generator, int], np.ndarray]


def _ar(rng: np.random.Generator, rows: int) -> np.ndarray:
    from scipy.signal import lfilter

    return lfilter([np.sqrt(1 - 0.81)], [1.0, -0.9], rng.normal(size=rows + 200))[200:]


KINDS: dict[str, Draw] = {
    "independent": lambda rng, rows: rng.normal(size=rows),
    "heavy tails": lambda rng, rows: rng.standard_t(2, rows),
    "few values": lambda rng, rows: rng.poisson(1.0, rows).astype(float),
    "texts": lambda rng, rows: rng.choice(np.array(["a", "b", "c", "d"]), rows, p=[0.5, 0.3, 0.15, 0.05]),
    "each on the one before": _ar,
    "daily season": lambda rng, rows: np.sin(np.arange(rows) * 2 * np.pi / 48) + 0.5 * rng.normal(size=rows),
}
# From the row on, in the first of the columns.
DRIFTS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "mean + 0.5 sd": lambda x, rng: x + 0.5,
    "mean + 1 sd": lambda x, rng: x + 1.0,
    "deviation x 2": lambda x, rng: x * 2.0,
    "a tenth is missing": lambda x, rng: np.where(rng.random(len(x)) < 0.15, np.nan, x),
}


def alarms(reference: Reference, columns: list[np.ndarray]) -> np.ndarray:
    """For each window whether a column has an alarm, as `transforms.drift_monitor` decides."""
    given = []
    for start in range(0, len(columns[0]) - WINDOW_ROWS + 1, WINDOW_ROWS):
        found = [
            finding
            for number, column in enumerate(columns)
            for finding in reference.columns[str(number)].compare(pa.array(column[start : start + WINDOW_ROWS]))
        ]
        threshold = SIGNIFICANCE / len(found)
        given.append(any(f.p_value < threshold and f.distance >= MIN_DISTANCE for f in found))
    return np.array(given)


def _reference(columns: list[np.ndarray]) -> Reference:
    table = pa.table({str(number): pa.array(column) for number, column in enumerate(columns)})
    return Reference.of(table, table.column_names)


def false_alarms(draw: Draw, streams: int, seed: int = 5) -> float:
    """Share of windows with an alarm."""
    found = []
    for stream in range(streams):
        rng = np.random.default_rng([seed, stream])
        columns = [draw(rng, TRAINING_ROWS + WINDOWS * WINDOW_ROWS) for _ in range(COLUMNS)]
        found.append(alarms(_reference([c[:TRAINING_ROWS] for c in columns]), [c[TRAINING_ROWS:] for c in columns]))
    return float(np.mean(found))


def delay(draw: Draw, change: Callable[[np.ndarray, np.random.Generator], np.ndarray], streams: int, seed: int = 6) -> tuple:
    """Median of the rows from a drift at a random place to the end of the first window with an alarm; share of those missed."""
    delays, missed = [], 0
    for stream in range(streams):
        rng = np.random.default_rng([seed, stream])
        columns = [draw(rng, TRAINING_ROWS + WINDOWS * WINDOW_ROWS) for _ in range(COLUMNS)]
        reference = _reference([c[:TRAINING_ROWS] for c in columns])
        columns = [c[TRAINING_ROWS:] for c in columns]
        at = int(rng.integers(WINDOW_ROWS, 2 * WINDOW_ROWS))
        columns[0] = np.concatenate([columns[0][:at], change(columns[0][at:], rng)])
        ends = (np.flatnonzero(alarms(reference, columns)) + 1) * WINDOW_ROWS
        after = ends[ends > at]
        missed += not len(after)
        delays += [int(after[0]) - at] if len(after) else []
    return (float(np.median(delays)) if delays else None), missed / streams


@click.command()
@click.option("--streams", default=100, show_default=True, help="Of each kind.")
@click.option("--short", is_flag=True, help="20 streams of each kind.")
def main(streams: int, short: bool) -> None:
    """Measure false alarms and delays of the drift monitor; write bench/drift.json."""
    streams = 20 if short else streams
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("stream", "windows with a false alarm", *(f"{name}: rows to alarm (missed)" for name in DRIFTS)):
        table.add_column(heading, justify="left" if heading == "stream" else "right")
    results = {}
    for kind, draw in KINDS.items():
        own = {"false_alarms": false_alarms(draw, streams)}
        if kind != "texts":
            own |= {name: delay(draw, change, max(streams // 4, 10)) for name, change in DRIFTS.items()}
        results[kind] = own
        cells = [f"{own[name][0]} ({own[name][1]:.0%})" if name in own else "" for name in DRIFTS]
        table.add_row(kind, f"{own['false_alarms']:.2%}", *cells)
    told = {"streams": streams, "windows": streams * WINDOWS, "window_rows": WINDOW_ROWS, "results": results}
    print(json.dumps(told))
    REPORT.write_text(json.dumps(told, indent=2) + "\n")
    Console(width=190).print(table)


if __name__ == "__main__":
    main()
