"""Makes a job that detects anomalies ready to run: finds its files, and what of them is scored together.

Files with the same columns are a stream; a folder may hold several kinds of files, each kind is a stream of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from pipelines.detection.head import Head, read_head
from pipelines.detection.job import DetectSpec
from pipelines.resolve import JobError, check_output
from transforms.batches import RESERVED
from transforms.decoding.records import format_of
from transforms.detection import ALARM, DIGEST, MODEL, P_VALUE, SCORE, VERSION, Detect
from transforms.file_source import FileInfo, FileSource
from transforms.schema import Column, Schema, TimeSpec

_UNKNOWN = Schema.parse("unknown:string")  # listing files wants a schema and does not look at it


@dataclass(frozen=True)
class CsvFiles(FileSource):
    """The CSV files of a folder, or those of them with certain columns; other files in it are not looked at."""

    names: frozenset[str] | None = None  # of the files that are meant; None for all
    others: frozenset[str] = field(default=frozenset())  # files that are known to be meant by other streams

    def list_files(self, required: bool = True) -> list[FileInfo]:
        """The files that are there, sorted by name."""
        found = [file for file in self._matching(f"{self.root}/**" if self._is_folder else self.path) if _is_csv(file.name)]
        if required and not found:
            raise FileNotFoundError(f"no CSV files (*.csv, *.csv.gz) match {self.path!r}; {self._surroundings()}")
        return [file for file in found if file.name not in self.others and (self.names is None or file.name in self.names)]


@dataclass(frozen=True)
class ResolvedDetection:
    """A stream of files with the same columns, ready to run.

    Attributes:
        job: as given.
        number: of the stream in its job.
        records: its files.
        detect: the step.
        odd: what to tell of files that do not fit; the rows of most become dead letters of the first stream.
    """

    job: DetectSpec
    number: int
    records: CsvFiles
    detect: Detect
    odd: tuple[str, ...] = ()


def resolve_detection(job: DetectSpec) -> list[ResolvedDetection]:
    """The streams of a job.

    Raises:
        JobError: something does not fit; says what was expected, what came and what to do.
    """
    path = job.source.path
    if path is None:
        raise JobError("anomalies are detected in files: give the source a path")
    if job.source.format not in ("auto", "csv"):
        raise JobError(f"anomalies are detected in CSV files; got the format {job.source.format}")
    time = TimeSpec(
        job.source.time.column,
        job.source.time.unit,
        datetime.fromisoformat(job.source.time.start),
        timedelta(microseconds=job.source.time.step),
    )
    try:
        source = CsvFiles(path, "csv", _UNKNOWN, replace(time, column=None), job.source.batch_rows)
        files = source.list_files()
        _check_apart(source, job.output)
        check_output(job.output)
        layouts, odd, left_out = _layouts(job, files)
        streams = []
        for number, (values, names) in enumerate(layouts.items()):
            columns = [Column(name, "float64", nullable=True) for name in values]
            columns += [Column(name, "string", nullable=True) for name in job.detector.by]
            others = frozenset(name for other in (*layouts.values(), left_out) if other is not names for name in other)
            only = frozenset(names) if len(layouts) > 1 else None
            records = CsvFiles(path, "csv", Schema(tuple(columns)), time, job.source.batch_rows, 0, only, others)
            settings = job.detector
            step = Detect(values, settings.by, settings.season, settings.weekends, settings.false_alarm_rate, settings.seed)
            streams.append(ResolvedDetection(job, number, records, step, () if number else odd))
    except (ValueError, OSError) as error:
        raise JobError(str(error)) from None
    if len(streams) > 1 and job.run.trigger != "available-now":
        shown = "; ".join(f"{', '.join(values)} in {names[0]}" for values, names in layouts.items())
        raise JobError(
            f"to look for new files again and again, all files must have the same columns; there are {shown}. Leave `every` "
            "out, or give each kind a folder and a job of its own"
        )
    return streams


class _Layouts(NamedTuple):
    """The names of the files by the columns that are scored in them; what is odd about others; and those that are not read."""

    values: dict[tuple[str, ...], list[str]]
    odd: tuple[str, ...]
    left_out: list[str]


def _layouts(job: DetectSpec, files: list[FileInfo]) -> _Layouts:
    """A file without rows goes with any that it looks like; so does one that lacks a column, and its rows are dead letters."""
    layouts: dict[tuple[str, ...], list[str]] = {}
    others: list[tuple[FileInfo, tuple[str, ...]]] = []
    odd, left_out = [], []
    for file in files:
        head = read_head(file.path)
        try:
            if head.rows:
                layouts.setdefault(_values(job, head), []).append(file.name)
            else:
                others.append((file, head.names))
        except _OddFileError as error:
            odd.append(f"{file.name}: {error}")
            if error.readable:
                others.append((file, head.names))
            else:
                left_out.append(file.name)
    if not layouts:
        raise JobError(odd[0] if odd else f"{files[0].name}: there is no row in it, nor in any other file")
    for file, names in others:
        fits = next((values for values in layouts if set(values) <= set(names)), next(iter(layouts)))
        layouts[fits].append(file.name)
    return _Layouts({values: sorted(names) for values, names in layouts.items()}, tuple(odd), left_out)


class _OddFileError(Exception):
    """A file does not fit the job: why, and what to do; `readable` if its rows can be told as dead letters."""

    def __init__(self, why: str, readable: bool = True) -> None:
        super().__init__(why)
        self.readable = readable


def _values(job: DetectSpec, head: Head) -> tuple[str, ...]:
    """The columns of a file that are scored.

    Raises:
        _OddFileError: none can be.
    """
    section, when = job.detector, job.source.time.column
    there = f"there are {', '.join(head.names)}"
    if when is not None and when not in head.names:
        raise _OddFileError(f"there is no column {when!r} with the time; {there}. Name the one with it: --param time=COLUMN")
    for setting, wanted in (("by", section.by), ("values", section.values)):
        if missing := [name for name in wanted if name not in head.names]:
            raise _OddFileError(f"{setting}: there is no column {', '.join(missing)}; {there}")
    if SCORE in head.names:
        raise _OddFileError(f"there is a column {SCORE!r} already; rename it, for that is where the scores go", False)
    apart = (when, *section.by)
    values = section.values or tuple(name for name in head.numeric if name not in apart)
    if not values:
        raise _OddFileError(
            f"there is no numeric column to score beside the time; {there}. If there is one and its first rows are bad, name "
            "it: --param values=COLUMN"
        )
    if taken := [name for name in (*values, *section.by) if name in (*RESERVED, P_VALUE, ALARM, MODEL, VERSION, DIGEST)]:
        raise _OddFileError(f"the name of the column {taken[0]!r} is taken; rename it", False)
    return values


def _check_apart(source: FileSource, output: str) -> None:
    """The scores must not be read as input, and must not replace it."""
    if "://" in source.root:
        return
    root, target = Path(source.root or ".").resolve(), Path(output).resolve()
    if target == root or target.is_relative_to(root):
        raise JobError(
            f"the output folder {output} is in the input folder {source.root}: its files would be read as input. Choose "
            "another with --param output=DIR"
        )


def _is_csv(name: str) -> bool:
    try:
        return format_of(name) == "csv"
    except ValueError:
        return False
