"""`make chaos`: bad versions and faults, while a stream predicts; prints tables and ends with one line of counts.

python -m bench.chaos [--quick]
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import click
from rich.console import Console
from rich.table import Table

_WIDTH = 170  # of the tables where they do not go to a terminal
_SAID_CHARACTERS = 150


@click.command()
@click.option("--quick", is_flag=True, help="Leave out what takes a process of its own, and the longer faults.")
def main(quick: bool) -> None:
    """Runs everything and says what came of it."""
    from pipelines.commands.common import hushed

    with hushed():
        from runners.local_kafka import kafka_broker
        from tests.chaos.faults import run_faults
        from tests.chaos.live_faults import run_live_faults
        from tests.chaos.table import run_table
        from tests.kafka import Cluster

    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    folder = Path(tempfile.mkdtemp(prefix="midstream-chaos-"))
    try:
        found = run_table(folder / "versions", isolate=not quick, wanted=lambda attempt: not (quick and attempt.slow))
        table = Table("bad version", "tries to get in by", "", "what was said", title="Bad versions, while a stream predicts")
        for row in found.rows:
            table.add_row(row.kind, row.door, "refused" if row.refused else "SERVED", row.said[:_SAID_CHARACTERS])
        console.print(table)
        faults = [*run_faults(folder / "faults", quick=quick)]
        with kafka_broker() as broker:
            faults += run_live_faults(folder / "live", Cluster(broker), quick=quick)
        table = Table("fault", "runner", "records", "lost", "doubled", "mislabelled", "what happened", title="Faults")
        for fault in faults:
            counts = [f"{value:,}" for value in fault.counts] if fault.counts is not None else [""] * 4
            table.add_row(fault.name, fault.runner, *counts, fault.said[:_SAID_CHARACTERS])
        console.print(table)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    everything = [found.counts, *(fault.counts for fault in faults if fault.counts is not None)]
    summary = {
        "bad_versions": len(found.rows),
        "refused": sum(row.refused for row in found.rows),
        "predictions_changed": found.changed,
        "faults": len(everything) - 1,
        "left_out": sum(fault.counts is None for fault in faults),
        "records": sum(counts.records for counts in everything),
        "lost": sum(counts.lost for counts in everything),
        "doubled": sum(counts.doubled for counts in everything),
        "mislabelled": sum(counts.mislabelled for counts in everything),
    }
    print(json.dumps(summary))
    bad = summary["bad_versions"] - summary["refused"] + summary["predictions_changed"]
    sys.exit(1 if bad + summary["lost"] + summary["doubled"] + summary["mislabelled"] else 0)


if __name__ == "__main__":
    main()
