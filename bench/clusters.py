"""`python -m bench.clusters`: clusters that come and go, Midstream beside River's algorithms and Spark's StreamingKMeans.

The streams and what is known of them: `bench.cluster_streams`. Midstream has one setting for all of them.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.cluster_contenders import CONTENDERS, OURS, PIPELINE
from bench.cluster_metrics import measure
from bench.cluster_streams import MAIN, OTHERS, StreamConfig, make_stream

REPORT = Path(__file__).parent / "clusters.json"
AIMS = {"ari": 0.9, "count_within_one": 0.95, "stable": 0.95}
FASTER = 4.0  # than the fastest rival
SHORT_ROWS = 10_000
SHORT = [name for name in MAIN if name.endswith("seed 1")]


def main_streams(short: bool) -> dict[str, StreamConfig]:
    return {name: replace(MAIN[name], rows=SHORT_ROWS) for name in SHORT} if short else MAIN


def measure_one(contender: str, config: StreamConfig) -> dict[str, Any]:
    """In a process of its own."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stream = make_stream(config)
    found = CONTENDERS[contender](stream.rows, config.most)
    speeds = {"records_s": len(stream.labels) / found.seconds}
    speeds["records_cpu_s"] = len(stream.labels) / (found.cpu_seconds or np.inf)
    return asdict(measure(stream.labels, found.labels)) | speeds


def run(contender: str, config: StreamConfig) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_one, contender, config).result()


@click.command()
@click.option("--short", is_flag=True, help=f"Three streams of {SHORT_ROWS:,} records; what `make bench` runs.")
@click.option("--only", multiple=True, help="Only these contenders.")
@click.option("--stream", "streams", multiple=True, help='Only these streams, as "4 columns, seed 1".')
@click.option("--others", is_flag=True, help="Midstream alone on the other streams, too: noise, crossings, many clusters ...")
@click.option("--add", is_flag=True, help="Keep what bench/clusters.json has of other streams and contenders: pieces add up.")
def main(short: bool, only: tuple[str, ...], streams: tuple[str, ...], others: bool, add: bool) -> None:
    """Measure, print a table, write bench/clusters.json and one line of JSON."""
    console = Console(width=None if Console().is_terminal else 128)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    if add and REPORT.exists():
        results = json.loads(REPORT.read_text())["streams"]
    elsewhere = results.pop("others", {})
    for name, config in main_streams(short).items():
        if streams and name not in streams:
            continue
        for contender in CONTENDERS:
            if not only or contender in only:
                results.setdefault(contender, {})[name] = found = run(contender, config)
                console.print(f"{name}, {contender}: ARI {found['ari']:.3f}, {found['records_s']:,.0f}/s", highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "ARI", "worst", "count within 1", "id stable", "records/s", "per CPU second", "aim"):
        table.add_column(heading, justify="left" if heading in ("", "aim") else "right")
    means = {
        c: {key: float(np.mean([f[key] for f in by.values()])) for key in (*AIMS, "records_s", "records_cpu_s")}
        for c, by in results.items()
    }
    rivals = {c: found for c, found in means.items() if c not in (OURS, PIPELINE)}
    for contender, found in means.items():
        aim = _aims(found, rivals) if contender == OURS else ""
        aim = "aims are for the full size" if aim and short else aim
        worst = min(f["ari"] for f in results[contender].values())
        cells = [f"{found[key]:.3f}" for key in AIMS]
        table.add_row(
            contender, cells[0], f"{worst:.3f}", *cells[1:], f"{found['records_s']:,.0f}", f"{found['records_cpu_s']:,.0f}", aim
        )
    console.print(table)
    results["others"] = elsewhere
    if others:
        for name, config in OTHERS.items():
            if streams and name not in streams:
                continue
            results["others"][name] = found = run(OURS, config)
            figures = ", ".join(f"{key} {found[key]:.3f}" for key in AIMS)
            console.print(f"{name}: {figures}", highlight=False)
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; written to {REPORT}", highlight=False)
    REPORT.write_text(json.dumps({"means": means, "streams": results}, indent=2) + "\n")
    print(json.dumps({"bench": "clusters", "means": means}))


def _aims(ours: dict[str, float], rivals: dict[str, dict[str, float]]) -> str:
    missed = [f"{key} below {least}" for key, least in AIMS.items() if ours[key] < least]
    if rivals:
        fastest, best = (max(found[key] for found in rivals.values()) for key in ("records_s", "ari"))
        missed += [f"{ours['records_s'] / fastest:.1f} times the fastest, aim {FASTER:g}"] * (
            ours["records_s"] < FASTER * fastest
        )
        missed += [f"ARI of a rival {best:.3f}"] * (ours["ari"] <= best)
    return "MISSED: " + "; ".join(missed) if missed else "reached"


if __name__ == "__main__":
    main()
