"""`python -m bench.anomalies`: anomaly scores by the rules of the Numenta benchmark, beside Beam's own detectors and River's.

Eleven of the benchmark's 58 series are at hand (bench/nab_series), so the figures are of these eleven: some points more or less
than on all of them are chance. Every detector has one setting for all series, and the threshold that is best for it.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from bench import nab

SERIES = Path(__file__).parent / "nab_series"
RESULTS = Path(__file__).parent / "anomalies.json"
OURS = "Midstream detect-anomalies"
TRANSFORM_ROWS = 2000  # through Beam's own transform; it takes minutes for all
KEYS, KEY_ROWS = 4096, 200
COLUMNS, TABLE_ROWS = 8, 20_000


class Line(NamedTuple):
    """What a detector did on the eleven series: its scores by profile, and records/s."""

    name: str
    scores: dict[str, float]
    records_s: float
    by_series: dict[str, float]


def ours(corpus: list[nab.Series], folder: Path) -> Line:
    """From CSV files to CSV files, all start-up included but imports and compilation."""
    for given in corpus:
        write_series(folder / "in" / given.name, given.timestamps, {"value": given.values})
    rate = detect(folder / "in", folder / "warm")  # compiles
    rate = detect(folder / "in", folder / "out")
    scores = {}
    for given in corpus:
        with (folder / "out" / given.name).open(newline="") as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["timestamp", "value", "anomaly_score"], rows[0]
        assert [row[0] for row in rows[1:]] == given.timestamps, given.name
        scores[given.name] = np.array([float(row[2]) for row in rows[1:]])
    return line(OURS, corpus, scores, rate)


def detect(source: Path, output: Path, **params: Any) -> float:
    """Runs the template in this process; gives records/s."""
    from pipelines import template as templates
    from pipelines.detection.execute import DetectionExecution

    template, here = templates.load("detect-anomalies")
    given = {"input": str(source), "output": str(output)} | params
    started = time.perf_counter()
    outcome = DetectionExecution(template.fill(given, here)).run()  # type: ignore[arg-type]
    assert not outcome.problems, outcome.problems
    return outcome.counts["records"] / (time.perf_counter() - started)


def write_series(file: Path, timestamps: Iterable[str], columns: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["timestamp", *columns])
        writer.writerows(zip(timestamps, *(np.asarray(values).tolist() for values in columns.values()), strict=True))


def line(name: str, corpus: list[nab.Series], scores: dict[str, Any], records_s: float) -> Line:
    results = {profile: nab.score_corpus(corpus, scores, weights) for profile, weights in nab.PROFILES.items()}
    standard = results["standard"].by_series
    return Line(
        name,
        {profile: result.score for profile, result in results.items()},
        records_s,
        {name: raw - silent for name, (raw, silent, _) in standard.items()},
    )


def beam_detector(name: str, corpus: list[nab.Series]) -> Line:
    """One of Beam's own with its default settings, row by row as its transform does it; the transform is timed on few rows."""
    import apache_beam as beam
    from apache_beam.ml.anomaly.detectors import IQR, RobustZScore, ZScore

    detector = {"ZScore": ZScore, "RobustZScore": RobustZScore, "IQR": IQR}[name]
    scores = {}
    for given in corpus:
        own, found = detector(), np.zeros(len(given.values))
        for row, value in enumerate(given.values.tolist()):
            x = beam.Row(value=value)
            found[row] = own.score_one(x)
            own.learn_one(x)
        scores[given.name] = squashed(found)
    rate = beam_rate(detector(), corpus[-1].values[:TRANSFORM_ROWS])
    return line(f"Beam {name}", corpus, scores, rate)


def beam_rate(detector: Any, values: np.ndarray) -> float:
    """Records/s of Beam's transform on the in-process DirectRunner."""
    import apache_beam as beam
    from apache_beam.ml.anomaly.transforms import AnomalyDetection
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    rows = [(0, beam.Row(value=value)) for value in values.tolist()]
    started = time.perf_counter()
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = pipeline | beam.Create(rows) | AnomalyDetection(detector=detector)
    return len(rows) / (time.perf_counter() - started)


def half_space_trees(corpus: list[nab.Series]) -> Line:
    """River's, on values scaled to the range seen so far, as its documentation advises."""
    from river import anomaly, compose, preprocessing

    scores, started = {}, time.perf_counter()
    for given in corpus:
        model = compose.Pipeline(preprocessing.MinMaxScaler(), anomaly.HalfSpaceTrees(seed=42))
        found = np.zeros(len(given.values))
        for row, value in enumerate(given.values.tolist()):
            x = {"value": value}
            found[row] = model.score_one(x)
            model.learn_one(x)
        scores[given.name] = np.clip(found, 0.0, 1.0)
    rows = sum(len(given.values) for given in corpus)
    return line("River HalfSpaceTrees", corpus, scores, rows / (time.perf_counter() - started))


def squashed(score: np.ndarray) -> np.ndarray:
    """Scores from 0 up to 0..1, in the same order; what is not a number (no spread yet) is 0."""
    score = np.where(np.isnan(score), 0.0, np.maximum(score, 0.0))
    return np.where(np.isinf(score), 1.0, score / (1.0 + np.where(np.isinf(score), 0.0, score)))


def keyed(folder: Path) -> float:
    """Records/s with thousands of keys in one stream."""
    draw = np.random.default_rng(1)
    key = np.tile(np.arange(KEYS), KEY_ROWS)
    minutes = np.repeat(np.arange(KEY_ROWS), KEYS).astype("timedelta64[m]")
    times = np.datetime_as_string(np.datetime64("2026-01-01T00:00:00") + minutes, unit="s")
    write_series(folder / "keyed" / "all.csv", times, {"key": key, "value": draw.normal(size=len(key)).round(4) + key})
    return detect(folder / "keyed", folder / "keyed-out", by="key", micro_batch_records=10**6)


def several_columns(folder: Path) -> dict[str, float]:
    """ROC AUC on rows of columns with a common rhythm; 0.5 % of the rows break with it, each column as usual by itself."""
    from river import anomaly, compose, preprocessing

    draw = np.random.default_rng(3)
    common = np.sin(np.arange(TABLE_ROWS) / 144 * np.pi) * 3 + draw.normal(size=TABLE_ROWS)
    x = common[:, None] * draw.uniform(0.5, 2, COLUMNS) + 0.4 * draw.normal(size=(TABLE_ROWS, COLUMNS))
    odd = draw.random(TABLE_ROWS) < 0.005
    for row in np.flatnonzero(odd):
        broken = draw.choice(COLUMNS, 2, replace=False)
        x[row, broken] = x[draw.integers(0, TABLE_ROWS, 2), broken]
    x = x.round(5)
    minutes = (5 * np.arange(TABLE_ROWS)).astype("timedelta64[m]")
    times = np.datetime_as_string(np.datetime64("2026-01-01T00:00:00") + minutes, unit="s")
    columns = {f"c{number}": x[:, number] for number in range(COLUMNS)}
    write_series(folder / "several" / "all.csv", times, columns)
    detect(folder / "several", folder / "several-out")
    import pyarrow.parquet as pq

    p = pq.read_table(folder / "several-out" / "scores").sort_by("row").column("p_value").to_numpy()
    scaled = compose.Pipeline(preprocessing.MinMaxScaler(), anomaly.HalfSpaceTrees(seed=42))
    trees = np.zeros(TABLE_ROWS)
    for row, values in enumerate(x.tolist()):
        record = dict(zip(columns, values, strict=True))
        trees[row] = scaled.score_one(record)
        scaled.learn_one(record)
    late = slice(500, None)
    return {OURS: auc(-p[late], odd[late]), "River HalfSpaceTrees": auc(trees[late], odd[late])}


def auc(score: np.ndarray, odd: np.ndarray) -> float:
    """The probability that an odd row scores above another one; ties count half."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    positive, negative = odd.sum(), (~odd).sum()
    return float((rank[odd].sum() - positive * (positive + 1) / 2) / (positive * negative))


@click.command()
@click.option("--quick", is_flag=True, help="Only the eleven series, without the slowest rivals.")
def main(quick: bool) -> None:
    """Score the detectors, print a table and a line of JSON."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow is imported later
    logging.disable(logging.WARNING)
    console, started = Console(width=128), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="midstream-anomalies-"))
    corpus = nab.read_corpus(SERIES)
    rivals: list[Callable[[], Line]] = [lambda: beam_detector("ZScore", corpus)]
    if not quick:
        rivals += [lambda name=name: beam_detector(name, corpus) for name in ("RobustZScore", "IQR")]
        rivals += [lambda: half_space_trees(corpus)]
    try:
        lines = [ours(corpus, folder), *(rival() for rival in rivals)]
        extra: dict[str, Any] = {}
        if not quick:
            extra["keyed_records_s"] = keyed(folder)
            extra["several_columns_auc"] = several_columns(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(console, lines, extra)
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {time.monotonic() - started:.0f} s", highlight=False)
    found = {"bench": "anomalies", "lines": [each._asdict() for each in lines], **extra}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


def show(console: Console, lines: list[Line], extra: dict[str, Any]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("11 NAB series", *nab.PROFILES, "records/s"):
        table.add_column(heading, justify="left" if heading == "11 NAB series" else "right")
    for each in lines:
        table.add_row(each.name, *(f"{each.scores[profile]:.1f}" for profile in nab.PROFILES), f"{each.records_s:,.0f}")
    console.print(table)
    if extra:
        console.print(f"{KEYS:,} keys, {KEY_ROWS} rows each: {extra['keyed_records_s']:,.0f} records/s", highlight=False)
        found = ", ".join(f"{name} {value:.3f}" for name, value in extra["several_columns_auc"].items())
        console.print(f"{COLUMNS} columns that no longer go together, ROC AUC: {found}", highlight=False)


if __name__ == "__main__":
    main()
