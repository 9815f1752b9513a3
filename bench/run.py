"""`make bench`: records/s from a file to Parquet, of Midstream and of the other ways to do it, on the same data and model.

Every measurement runs in a process of its own. Imports are not counted; loading the model, building graphs and all after are.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import check
from bench.data import records_file
from bench.results import BARE, BATCH, BEAM, MICRO_BATCH, TFX_BSL, Case, Item, Measurements, items

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "bench" / "report.json"
_WIDTH = 128  # of the table where it does not go to a terminal
BARE_BATCH_ROWS = (1024, 4096, 16384)  # the bare loop runs with the best of them


class Plan(NamedTuple):
    """How much is measured: records at 1x, 4x and 16x; records for the slow rivals; how often."""

    sizes: tuple[int, int, int]
    rival_sizes: tuple[int, int]
    repetitions: int


FULL = Plan((100_000, 400_000, 1_600_000), (5_000, 20_000), 3)
QUICK = Plan((10_000, 40_000, 160_000), (1_000, 4_000), 1)


class Bench:
    """Runs measurements in a folder that is thrown away at the end."""

    def __init__(self, folder: Path, plan: Plan, progress: Progress) -> None:
        self._folder, self._plan, self._progress = folder, plan, progress
        self.measured = Measurements()
        self.bare_batch_rows = BARE_BATCH_ROWS[0]

    def run(self) -> list[Item]:
        """Measures everything and checks that everybody did the same work."""
        cases = list(self._cases())
        task = self._progress.add_task("data and models", total=len(cases) + len(BARE_BATCH_ROWS))
        self._child({"do": "data", "sizes": self._plan.sizes, "example_sizes": self._plan.rival_sizes})
        self._choose_batch_rows(task)
        for case in cases:
            self._tell(task, f"{case.contender}, {case.rows:,} records, {case.kind}")
            found = self._measure(case)
            self.measured.add(case, found)
            self._tell(
                task, f"{case.contender}, {case.rows:,} records, {case.kind}: {case.rows / found['seconds']:,.0f} records/s", 1
            )
        self._check()
        return items(self.measured, self._plan.sizes, self._plan.rival_sizes)

    def _cases(self) -> Iterator[Case]:
        """Everything once, then everything again: what disturbs the machine for a while then disturbs all of them."""
        for repetition in range(self._plan.repetitions):
            for rows in self._plan.sizes:
                yield from (Case(name, "csv", rows) for name in (BARE, BATCH, MICRO_BATCH))
            if repetition < max(self._plan.repetitions - 1, 1):
                yield from (Case(name, "parquet", self._plan.sizes[-1]) for name in (BARE, BATCH))
                for rows in self._plan.rival_sizes:
                    yield Case(BEAM, "csv", rows)
                    yield Case(TFX_BSL, "tfrecord", rows)

    def _choose_batch_rows(self, task: Any) -> None:
        seconds = {}
        for batch_rows in BARE_BATCH_ROWS:
            self._tell(task, f"{BARE}, which batch size")
            self.bare_batch_rows = batch_rows
            seconds[batch_rows] = self._measure(Case(BARE, "csv", self._plan.sizes[-2]))["seconds"]
            self._tell(task, f"{BARE}, batches of {batch_rows:,}: {seconds[batch_rows]:.2f} s", 1)
        self.bare_batch_rows = min(seconds, key=seconds.__getitem__)

    def _measure(self, case: Case) -> dict[str, Any]:
        do, options = {
            BARE: ("bare", {"batch_rows": self.bare_batch_rows}),
            BEAM: ("beam", {}),
            TFX_BSL: ("tfx-bsl", {}),
            BATCH: ("midstream", {"mode": BATCH}),
            MICRO_BATCH: ("midstream", {"mode": MICRO_BATCH}),
        }[case.contender]
        given = {"do": do, "rows": case.rows, "kind": case.kind, "output": str(self._output(case)), "options": options}
        found = self._child(given)
        if problems := found.get("problems"):
            raise click.ClickException(f"{case.contender}, {case.rows:,} records: {' '.join(problems)}")
        return found

    def _child(self, given: dict[str, Any]) -> dict[str, Any]:
        command = [sys.executable, "-W", "ignore", "-m", "bench.measure", json.dumps(given | {"folder": str(self._folder)})]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(f"{given['do']} failed:\n{done.stderr[-4000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def _check(self) -> None:
        ours = {}
        for rows in self._plan.sizes:
            for mode in (BATCH, MICRO_BATCH):
                ours[mode] = self._output(Case(mode, "csv", rows))
                check.same_rows(ours[mode], self._output(Case(BARE, "csv", rows)), rows)
                check.same_storage(ours[mode], self._output(Case(BARE, "csv", rows)))
        most = self._plan.sizes[-1]
        check.same_rows(self._output(Case(BATCH, "parquet", most)), self._output(Case(BARE, "parquet", most)), most)
        rivals = self._plan.rival_sizes[-1]
        for name, kind in ((BEAM, "csv"), (TFX_BSL, "tfrecord")):
            check.same_scores(ours[BATCH], self._output(Case(name, kind, rivals)), rivals)

    def _output(self, case: Case) -> Path:
        name = f"{case.contender}-{case.kind}-{case.rows}".replace(" ", "-")
        return self._folder / "outputs" / name

    def _tell(self, task: Any, text: str, advance: int = 0) -> None:
        self._progress.update(task, description=text, advance=advance)
        if advance and not self._progress.console.is_terminal:
            self._progress.console.print(text, highlight=False)


@click.command()
@click.option("--quick", is_flag=True, help="A tenth of the records, once: whether it runs, not how fast.")
@click.option("--repetitions", type=click.IntRange(1), help="Default: 3; the slow rivals and Parquet one less.")
def main(quick: bool, repetitions: int | None) -> None:
    """Measure Midstream beside a bare loop, Beam's RunInference and tfx-bsl's; write bench/report.json."""
    plan = QUICK if quick else FULL
    if repetitions is not None:
        plan = plan._replace(repetitions=repetitions)
    console, started = Console(), time.monotonic()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    folder = Path(tempfile.mkdtemp(prefix="midstream-bench-"))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bench = Bench(folder, plan, progress)
            lines = bench.run()
        size_mib = records_file(folder, plan.sizes[-1], "csv").stat().st_size / 2**20
    except check.Differs as error:
        raise click.ClickException(f"the contenders did not do the same work: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if quick:
        lines = [replace(line, aim=None) for line in lines]  # start-up is most of it: the aims are for the full size
    REPORT.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n")
    _show(console, lines)
    spread = max(bench.measured.spread(Case(name, "csv", plan.sizes[-1])) for name in (BARE, BATCH, MICRO_BATCH))
    console.print(
        f"16 float features, an MLP 64-32-2, CSV ({size_mib:,.0f} MiB at 16x) unless it says otherwise. Medians of "
        f"{plan.repetitions}, which lie within {spread:.0%} of each other.\n"
        f"The bare loop in batches of {bench.bare_batch_rows:,}, its best of {BARE_BATCH_ROWS}. All wrote the same "
        "predictions.\n"
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {time.monotonic() - started:.0f} s; written to {REPORT}",
        highlight=False,
    )


def _show(console: Console, lines: list[Item]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "records", "Midstream", "beside", "", "ratio", "aim"):
        table.add_column(heading, justify="right" if heading in ("records", "Midstream", "ratio", "aim") else "left")
    for line in lines:
        aim = {True: "[green]{} reached", False: "[red]{} MISSED", None: "{}"}[line.reached]
        sign = "" if line.aim is None else f"{'≥' if line.better == 'higher' else '≤'} {line.aim:g}"
        name, value = next(iter(line.rivals.items()))
        ours = f"{line.ours:,.0f} {line.unit if line.unit != 'records/s' else '/s'}"
        table.add_row(line.name, f"{line.n:,}", ours, name, f"{value:,.0f}", f"{line.ratio:.3g}", aim.format(sign))
    console.print(table)


if __name__ == "__main__":
    main()
