"""`python -m bench.cold_start`: 2,000 keys that appear over time; each gets its own model once it has labels enough.

Three runs of the same learner: with parent and graduation, the parent alone (one model for all keys), and keys alone (no
parent). Prequential: a window of 100 records is predicted before it is learnt. Accuracy by age: how many records of its key
came before a record. Seed 5.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from models.learners.keyed_classifier import KeyedClassifier, KeyedClassifierConfig

REPORT = Path(__file__).with_suffix(".json")
KEYS, FEATURES, WINDOW_ROWS, NOISE = 2_000, 5, 100, 0.05
AGES = (0, 5, 10, 20, 50, 100)
RUNS = {"parent and graduation": {}, "one model for all": {"graduate_rows": 10**9}, "keys alone": {"parent": False}}


def records(rows: int, seed: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Columns, keys, labels, and how many records of its key came before each record."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=FEATURES) + 1.2 * rng.normal(size=(KEYS, FEATURES))
    appeared = np.minimum(np.arange(rows) * KEYS // (rows * 9 // 10) + 1, KEYS)
    # The new ones come more often than the old ones.
    key = np.maximum(appeared - 1 - np.floor(rng.exponential(KEYS / 8, rows)).astype(np.int64), 0)
    x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    label = ((x * weights[key]).sum(axis=1) > 0) ^ (rng.random(rows) < NOISE)
    order = np.argsort(key, kind="stable")
    first = np.searchsorted(key[order], key[order])
    age = np.empty(rows, np.int64)
    age[order] = np.arange(rows) - first
    return x, key, label.astype(np.int64), age


def prequential(x: np.ndarray, key: np.ndarray, label: np.ndarray, **options: object) -> np.ndarray:
    """Whether each record was predicted right."""
    names = [f"f{place}" for place in range(FEATURES)]
    signatures = KeyedClassifier(KeyedClassifierConfig(features=tuple(names), **options)).signatures()  # type: ignore[arg-type]
    text = pa.array(key).cast(pa.string()).to_numpy(zero_copy_only=False)
    right = np.zeros(len(label), bool)
    for start in range(0, len(label), WINDOW_ROWS):
        rows = slice(start, start + WINDOW_ROWS)
        given = {name: tf.constant(x[rows, place]) for place, name in enumerate(names)} | {"key": tf.constant(text[rows])}
        right[rows] = signatures["serving_default"](**given)["prediction"].numpy() == label[rows]  # type: ignore[operator]
        signatures["learn"](**given, label=tf.constant(label[rows]))  # type: ignore[operator]
    return right


def compare(rows: int) -> dict[str, dict[str, float]]:
    """Accuracy of each run, overall and by age."""
    x, key, label, age = records(rows)
    found = {}
    for name, options in RUNS.items():
        started = time.perf_counter()
        right = prequential(x, key, label, **options)
        by_age = {
            f"{low}+" if high is None else f"{low}-{high - 1}": float(right[(age >= low) & (age < (high or rows))].mean())
            for low, high in zip(AGES, [*AGES[1:], None], strict=True)
        }
        found[name] = {"accuracy": float(right.mean())} | by_age | {"records_per_s": rows / (time.perf_counter() - started)}
    return found


@click.command()
@click.option("--records", "rows", default=100_000, show_default=True)
def main(rows: int) -> None:
    """Compare keyed models with one model for all and with keys alone; write bench/cold_start.json."""
    found = compare(rows)
    print(json.dumps({"records": rows, "keys": KEYS, "results": found}))
    REPORT.write_text(json.dumps({"records": rows, "keys": KEYS, "results": found}, indent=2) + "\n")
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = next(iter(found.values()))
    for heading in ("", *columns):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values in found.items():
        cells = [f"{value:,.0f}" if each == "records_per_s" else f"{value:.3f}" for each, value in values.items()]
        table.add_row(name, *cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
