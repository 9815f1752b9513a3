"""One measurement, in a process of its own: `python -m bench.measure JSON` prints one JSON object as its last line.

{"do": "data", "folder": ..., "sizes": [...], "example_sizes": [...]}     makes the data, the models and the registry
{"do": "bare", "folder": ..., "rows": ..., "kind": "csv", "output": ..., "options": {...}}      runs a contender
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from bench.data import records_file, write_models, write_records


def main() -> None:
    given = json.loads(sys.argv[1])
    logging.disable(logging.WARNING)
    folder = Path(given["folder"])
    if given["do"] == "data":
        print(json.dumps(_make(folder, tuple(given["sizes"]), tuple(given["example_sizes"]))))
    else:
        print(json.dumps(_measure(given["do"], folder, given["rows"], given["kind"], Path(given["output"]), given["options"])))


def _make(folder: Path, sizes: tuple[int, ...], example_sizes: tuple[int, ...]) -> dict[str, Any]:
    from bench.contenders import MODEL, REGISTRY
    from models.activation_log import ActivationLog
    from models.registry import Registry

    write_records(folder, sizes, example_sizes)
    write_models(folder)
    registry = str(folder / REGISTRY)
    version = Registry(registry).publish(MODEL, str(folder / "columns")).version
    ActivationLog(registry, MODEL).activate(version, by="bench", reason="the model of the benchmark")
    return {}


def _measure(name: str, folder: Path, rows: int, kind: str, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    from bench.contenders import CONTENDERS, prepare

    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    prepare(name)
    before = resident_kib("VmRSS")
    started = time.perf_counter()
    cpu_before = time.process_time()
    found = CONTENDERS[name](folder, records_file(folder, rows, kind), output, **options)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_before
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "imported_mib": before / 1024,
        "peak_mib": resident_kib("VmHWM") / 1024,
        **found,
    }


def resident_kib(entry: str) -> int:
    """`VmRSS`, the resident memory of this process, or `VmHWM`, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry))


if __name__ == "__main__":
    main()
