"""`python -m bench.engines`: the serving pipeline on Flink and Spark beside the DirectRunner and a bare loop without Beam.

From CSV files to Parquet, in batch, at 1x, 4x and 16x records. What counts is the slope between the smallest and the largest
run: records/s once everything is started, so that starting an engine neither hides nor pretends anything. Every measurement
runs in a process of its own. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.data import records_file

ROOT = Path(__file__).parent.parent
FILES = 8  # of an input: what runs side by side are files
CASES = {
    "bare loop": ("bare", {"batch_rows": 4096}),
    "DirectRunner": ("midstream", {"mode": "batch"}),
    "Flink, parallelism 1": ("midstream", {"mode": "batch", "runner": "flink"}),
    "Flink, parallelism 2": ("midstream", {"mode": "batch", "runner": "flink", "parallelism": 2}),
    "Spark, parallelism 1": ("midstream", {"mode": "batch", "runner": "spark"}),
    "Spark, parallelism 2": ("midstream", {"mode": "batch", "runner": "spark", "parallelism": 2}),
}


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="records at 1x; a multiple of 8")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each size, of which the median counts")
    parser.add_argument("--only", default="", help="only cases whose names contain this")
    options = parser.parse_args()
    sizes = [options.rows, 4 * options.rows, 16 * options.rows]
    results = {}
    with tempfile.TemporaryDirectory(prefix="midstream-bench-") as temporary:
        folder = Path(temporary)
        _child({"do": "data", "sizes": [size // FILES for size in sizes], "example_sizes": []}, folder)
        for size in sizes:
            _split(folder, size)
        print("| | seconds at 1x, 4x, 16x | records/s (slope) | beside DirectRunner |\n| --- | --- | --- | --- |", flush=True)
        for name, (do, given) in CASES.items():
            if options.only not in name and name != "DirectRunner":
                continue
            seconds = [statistics.median(_measure(do, given, size, folder) for _ in range(options.repeats)) for size in sizes]
            slope = (sizes[-1] - sizes[0]) / (seconds[-1] - seconds[0])
            results[name] = {"seconds": seconds, "records_per_s": slope}
            beside = slope / results["DirectRunner"]["records_per_s"] if "DirectRunner" in results else None
            shown = "" if beside is None else f"{beside:.2f}"
            print(f"| {name} | {', '.join(f'{s:.1f}' for s in seconds)} | {slope:,.0f} | {shown} |", flush=True)
    print(json.dumps({"sizes": sizes, "cpus": os.cpu_count(), "runs": results}))


def _measure(do: str, given: dict[str, Any], size: int, folder: Path) -> float:
    if do == "bare":
        # It reads one file after the other: a loop needs no more.
        return sum(
            _child({"do": do, "rows": size // FILES, "kind": "csv", "output": str(folder / "out"), "options": given}, folder)[
                "seconds"
            ]
            for _ in range(FILES)
        )
    found = _child({"do": do, "rows": size, "kind": "parts", "output": str(folder / "out"), "options": given}, folder)
    assert not found["problems"], found["problems"]
    return float(found["parquet_s"])


def _split(folder: Path, size: int) -> None:
    """The same file so many times, under different names, in a folder."""
    parts = records_file(folder, size, "parts")
    parts.mkdir(parents=True)
    for number in range(FILES):
        os.link(records_file(folder, size // FILES, "csv"), parts / f"part-{number}.csv")


def _child(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "bench.measure", json.dumps(given | {"folder": str(folder)})]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{given['do']} failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
