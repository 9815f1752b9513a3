"""`make conformance`: one pipeline on every runner, and whether all gave the same bytes.

    python -m tests.conformance --records 100000 [--only TEXT] [--json FILE]

A line for each runner and mode, a column for each output; the last line says how many of how many checks hold, and so does the
exit status.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from tests.conformance.modes import CANNOT, MODES, REFERENCE, Given
from tests.conformance.outputs import OUTPUTS, difference, digest, sort
from tests.conformance.workload import make


def main() -> None:
    """Runs all modes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--only", default="", help="only modes whose names contain this, beside the reference")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # what a step raises is raised here, too

    with tempfile.TemporaryDirectory(prefix="midstream-conformance-") as folder:
        results = _run(Path(folder), options.records, options.only)
    holds = sum(fault is None for result in results for fault in result["checks"].values())
    total = sum(len(result["checks"]) for result in results)
    for name, reason in CANNOT.items():
        print(f"| {name} | not run: {reason} |")
    summary = f"{holds} of {total} checks hold over {options.records:,} records"
    if options.json:
        options.json.write_text(
            json.dumps({"records": options.records, "holds": holds, "checks": total, "runs": results}, indent=1)
        )
    print(summary)
    sys.exit(holds != total)


def _run(folder: Path, records: int, only: str) -> list[dict]:
    (folder / "workload").mkdir()
    workload = make(folder / "workload", records)
    expected: Given | None = None
    results = []
    print(f"| runner | {' | '.join(OUTPUTS)} | seconds |\n|{' --- |' * (len(OUTPUTS) + 2)}", flush=True)
    for mode in MODES:
        if mode is not REFERENCE and only not in mode.name:
            continue
        started = time.monotonic()
        try:
            given = mode.run(workload, folder / mode.name.replace(" ", "-"))
        except Exception as error:  # one runner that fails does not keep the others from being shown
            checks: dict[str, str | None] = dict.fromkeys(OUTPUTS, f"failed: {type(error).__name__}: {error}")
        else:
            expected = expected or given
            checks = {name: _check(name, expected, given, mode.leave_out) for name in OUTPUTS}
        seconds = time.monotonic() - started
        cells = [
            f"{digest(given[name])[:8]}, {len(given[name]):,} rows" if fault is None else "DIFFERS"
            for name, fault in checks.items()
        ]
        print(f"| {mode.name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)
        for name, fault in checks.items():
            if fault is not None:
                print(f"{mode.name}, {name}: {fault}", file=sys.stderr, flush=True)
        results.append({"mode": mode.name, "checks": checks, "seconds": seconds})
    return results


def _check(name: str, expected: Given, given: Given, leave_out: Sequence[str]) -> str | None:
    wanted = expected[name]
    if not len(wanted):
        return "nothing to compare: the workload should have given rows"
    if leave_out:
        wanted = sort(wanted.drop_columns([column for column in leave_out if column in wanted.column_names]))
    return difference(wanted, given[name])


if __name__ == "__main__":
    main()
