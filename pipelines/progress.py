"""Shows how a job gets on: records, records/s, the live version, the accuracy or the error so far."""

from __future__ import annotations

import gzip
import time
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipelines.graph import EVALUATIONS, FIRST, PREDICTIONS, Resolved
from transforms.sources import FileSource

_COUNTED_BYTES = 256 * 2**20  # of larger inputs the lines are not counted first: the bar then shows no end
_LINE_EVERY_S = 10.0  # where there is no terminal


class ConsoleProgress:
    """A progress bar on a terminal, a line now and then elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True)
        self._shown = not quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,} records"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._records = self._right = self._first_right = self._evaluated = 0
        self._square: float | None = None  # sum of the squared errors of predictions that are numbers
        self._version = 0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> ConsoleProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        if kind is None and self._shown and self._records and not self._console.is_terminal:
            self._line()

    def begin(self, resolved: Resolved) -> None:
        """The job is ready to run."""
        total = None if self._bar.disable else _count_lines(resolved)
        self._task = self._bar.add_task(resolved.job.name, total=total, status="")
        self._started = time.monotonic()

    def committed(self, records: int, resolved: Resolved, parts: dict[str, list[Path]]) -> None:
        """A run is done."""
        self._records += records
        for file in parts[PREDICTIONS]:
            versions = pq.read_table(file, columns=["version"]).column("version")
            self._version = versions[-1].as_py() if len(versions) else self._version
        if resolved.job.labels is not None:
            for file in parts[EVALUATIONS]:
                self._evaluate(file, resolved.job.labels.column, resolved.job.model.compare_with_first)
        self._bar.update(self._task, completed=self._records, status=self._status())
        if self._shown and not self._console.is_terminal and time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._line()

    def _evaluate(self, file: Path, label: str, with_first: bool) -> None:
        if "prediction" not in pq.read_schema(file).names:
            return
        columns = [label, "prediction", *([FIRST + "prediction"] if with_first else [])]
        table = pq.read_table(file, columns=columns)
        if pa.types.is_floating(table.column("prediction").type):
            off = pc.subtract(*(table.column(name).cast(pa.float64()) for name in columns[:2])).drop_null().to_numpy()
            self._evaluated += len(off)
            self._square = (self._square or 0.0) + float(np.sum(off * off))
            return
        given = [table.column(name).to_numpy() for name in columns]
        self._evaluated += len(given[0])
        self._right += int(np.sum(given[0] == given[1]))
        if with_first:
            self._first_right += int(np.sum(given[0] == given[2]))

    def _status(self) -> str:
        rate = self._records / max(time.monotonic() - self._started, 1e-9)
        parts = [f"{rate:,.0f} records/s", f"version {self._version} live" if self._version else "cold start"]
        if self._evaluated and self._square is not None:
            parts.append(f"root mean square error {np.sqrt(self._square / self._evaluated):.4g}")
        elif self._evaluated:
            parts.append(f"accuracy {self._right / self._evaluated:.3f}")
            if self._first_right:
                parts.append(f"(first version {self._first_right / self._evaluated:.3f})")
        return "  ".join(parts)

    def _line(self) -> None:
        self._last_line = time.monotonic()
        self._console.print(f"{self._records:,} records  {self._status()}", highlight=False, soft_wrap=True)


def _count_lines(resolved: Resolved) -> int | None:
    """The number of records of small local text files; None where counting would take long or is not possible."""
    total = 0
    if not isinstance(resolved.records, FileSource):
        return None
    for listed in resolved.records.list_files():
        file, name = Path(listed.path), listed.name
        if (
            not file.is_file()
            or file.stat().st_size > _COUNTED_BYTES
            or not name.removesuffix(".gz").endswith((".csv", ".jsonl"))
        ):
            return None
        try:
            with gzip.open(file) if name.endswith(".gz") else file.open("rb") as lines:
                total += sum(1 for _ in lines) - name.removesuffix(".gz").endswith(".csv")
        except (OSError, EOFError):
            return None
    return total
