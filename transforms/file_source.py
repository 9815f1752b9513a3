"""The files of a stream: which there are, in which order, and how rows of them are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from apache_beam.io.filesystems import FileSystems

from transforms.batches import MIN_WATERMARK_US
from transforms.decoding.files import DEFAULT_BATCH_ROWS, Decoded, decode, split
from transforms.decoding.records import format_of
from transforms.schema import Schema, TimeSpec

_WILDCARD = re.compile(r"[*?\[]")
_SHOWN_FILES = 20


class FileInfo(NamedTuple):
    """A file of a source."""

    name: str  # relative to the source's root
    path: str
    size_bytes: int


@dataclass(frozen=True)
class FileSource:
    """The files of a stream and what is in them.

    Attributes:
        path: a file, a folder (read with its subfolders) or a glob, on any of Beam's file systems.
        format: `csv`, `jsonl`, `parquet`, `tfrecord`, or `auto` to go by each file's name.
        schema: the columns.
        time: where the event time comes from.
        batch_rows: the most rows a batch has.
        out_of_orderness_us: how far behind the newest record the watermark stays.
    """

    path: str
    format: str
    schema: Schema
    time: TimeSpec = field(default_factory=TimeSpec)
    batch_rows: int = DEFAULT_BATCH_ROWS
    out_of_orderness_us: int = 0

    def __post_init__(self) -> None:
        self.time.check(self.schema)
        if self.format != "auto":
            format_of(self.path, self.format)
        if self.batch_rows < 1 or self.out_of_orderness_us < 0:
            raise ValueError(
                f"expected batch_rows of at least 1 and out_of_orderness_us of at least 0, "
                f"got {self.batch_rows} and {self.out_of_orderness_us}"
            )

    @property
    def root(self) -> str:
        """The folder that the files' names are relative to."""
        wildcard = _WILDCARD.search(self.path)
        if wildcard:
            return self.path[: wildcard.start()].rpartition("/")[0] or ("/" if self.path.startswith("/") else "")
        if self._is_folder:
            return self.path.rstrip("/")
        return self.path.rpartition("/")[0]

    @property
    def _is_folder(self) -> bool:
        return self.path.endswith("/") or ("://" not in self.path and Path(self.path).is_dir())

    def path_of(self, name: str) -> str:
        """The path of a file with this name."""
        return f"{self.root.rstrip('/')}/{name}" if self.root else name

    def list_files(self, required: bool = True) -> list[FileInfo]:
        """The files that are there, sorted by name. Those with a part of the name that begins with `.` or `_` are not meant.

        Raises:
            FileNotFoundError: there is none although it is required.
            ValueError: the format is `auto` and a file's name does not tell it.
        """
        files = self._matching(f"{self.root}/**" if self._is_folder else self.path)
        if not files and required:
            raise FileNotFoundError(f"no files match {self.path!r}; {self._surroundings()}")
        for file in files:
            format_of(file.name, self.format)
        return files

    def all_tasks(self, ordered: bool) -> list[ReadTask]:
        """Everything that is there now, as work."""
        return read_tasks(all_files(self), MIN_WATERMARK_US, ordered)

    def read(self, part: Range) -> Iterator[Decoded]:
        """Decodes the rows of a range, in pieces of at most `batch_rows` records."""
        return read_range(self, part)

    def _matching(self, pattern: str) -> list[FileInfo]:
        prefix = f"{self.root.rstrip('/')}/" if self.root else ""
        found = [
            FileInfo(data.path.removeprefix(prefix), data.path, data.size_in_bytes)
            for data in FileSystems.match([pattern])[0].metadata_list
        ]
        return sorted(file for file in found if not any(part.startswith((".", "_")) for part in file.name.split("/")))

    def _surroundings(self) -> str:
        folder = self.root or "."
        if "://" not in folder and not Path(folder).is_dir():
            return f"there is no folder {folder!r}"
        names = [data.path.rpartition("/")[2] for data in FileSystems.match([f"{folder.rstrip('/')}/*"])[0].metadata_list]
        shown = ", ".join(sorted(names)[:_SHOWN_FILES]) + (", ..." if len(names) > _SHOWN_FILES else "")
        return f"the folder {folder!r} holds {shown or 'no files'}"


@dataclass(frozen=True)
class Range:
    """Rows of one file; `end_row` None means to its end, with what is to say about the file as a whole."""

    file: str
    index: int
    start_row: int = 0
    end_row: int | None = None


class ReadTask(NamedTuple):
    """A part of a source to read in one place, in order.

    Attributes:
        ranges: what to read.
        start_max_event_time_us: the newest event time before it.
    """

    ranges: tuple[Range, ...]
    start_max_event_time_us: int = MIN_WATERMARK_US


def read_tasks(ranges: Sequence[Range], start_max_event_time_us: int, ordered: bool) -> list[ReadTask]:
    """The ranges as work: in one piece if they are wanted in order, else each by itself."""
    pieces = [tuple(ranges)] if ordered else [(part,) for part in ranges]
    return [ReadTask(piece, start_max_event_time_us) for piece in pieces]


def all_files(source: FileSource) -> list[Range]:
    """Everything that is there now."""
    return [Range(file.name, index) for index, file in enumerate(source.list_files())]


def read_range(source: FileSource, part: Range) -> Iterator[Decoded]:
    """Decodes the rows of a range, in pieces of at most `batch_rows` records."""
    pieces = decode(
        source.path_of(part.file),
        part.file,
        part.index,
        source.format,
        source.schema,
        source.time,
        part.start_row,
        source.batch_rows,
    )
    for piece in pieces:
        if part.end_row is not None and piece.next_row >= part.end_row:
            yield split(piece, part.end_row)[0]
            return
        yield piece
