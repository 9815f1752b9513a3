"""Cutting a stream of files into micro-batches.

What a micro-batch covers is a function of the position where it starts, the limits, and the files that are there; a planner
remembers nothing that changes it. So a run that was killed plans the same again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transforms.batches import MIN_WATERMARK_US, ROW, event_time_us
from transforms.decoding.files import Decoded, split
from transforms.file_source import FileInfo, FileSource, Range, read_range

# The most that the decoded batches of a planned micro-batch may take until it is read; a larger one is decoded again.
CACHE_BYTES = 256 << 20

_planned: dict[tuple[FileSource, Range], list[Decoded]] = {}  # of the last plan of this process; replaced, never changed


def planned_batches(source: FileSource, part: Range) -> list[Decoded] | None:
    """The decoded batches of a range of the last micro-batch planned in this process, if they are still there."""
    return _planned.get((source, part))


@dataclass(frozen=True)
class Position:
    """How far a stream has been read.

    Attributes:
        files: (name, size in bytes) of the files begun, in order of arrival.
        index: the place of the current file in that order; the number of files if the next one is not begun.
        next_row: the first row of the current file that was not read.
        max_event_time_us: the newest event time so far; `MIN_WATERMARK_US` if there is none.
    """

    files: tuple[tuple[str, int], ...] = ()
    index: int = 0
    next_row: int = 0
    max_event_time_us: int = MIN_WATERMARK_US

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "files": [list(file) for file in self.files],
            "index": self.index,
            "next_row": self.next_row,
            "max_event_time_us": self.max_event_time_us,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> Position:
        """The inverse of `to_json`."""
        return Position(
            tuple((str(name), int(size)) for name, size in value["files"]),
            int(value["index"]),
            int(value["next_row"]),
            int(value["max_event_time_us"]),
        )


@dataclass(frozen=True)
class Plan:
    """A micro-batch.

    Attributes:
        ranges: what it reads, in order.
        end: where the next one starts.
        rows: how many records it has, dead letters included; 0 if all there is to tell is that a file is unreadable.
        watermark_us: the watermark after it.
        start_max_event_time_us, max_event_time_us: the newest event time before and after it.
    """

    ranges: tuple[Range, ...]
    end: Position
    rows: int
    watermark_us: int
    start_max_event_time_us: int
    max_event_time_us: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "ranges": [asdict(part) for part in self.ranges], "end": self.end.to_json()}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Plan:
        """The inverse of `to_json`."""
        ranges = tuple(Range(**part) for part in value["ranges"])
        return Plan(**{**value, "ranges": ranges, "end": Position.from_json(value["end"])})


def watermark_us(newest_us: int, out_of_orderness_us: int) -> int:
    """The watermark after records up to this event time; `MIN_WATERMARK_US` while there is none."""
    return max(newest_us - out_of_orderness_us, MIN_WATERMARK_US)


class FilePlanner:
    """Plans the micro-batches of a source.

    It keeps the file at the position open, so that planning a stream from front to back decodes each file once.

    Args:
        source: the stream.
        wait_for_files: whether a stream may begin without any file; otherwise that is an error.
    """

    def __init__(self, source: FileSource, wait_for_files: bool = False) -> None:
        self._source = source
        self._wait_for_files = wait_for_files
        self._open: _OpenFile | None = None
        self._ended: set[tuple[int, FileInfo, int]] = set()  # ends that were seen, so that waiting does not read again

    def watermark_us(self, position: Position) -> int:
        """The watermark at a position."""
        return watermark_us(position.max_event_time_us, self._source.out_of_orderness_us)

    def plan(
        self,
        position: Position,
        max_records: int | None = None,
        max_span_us: int | None = None,
        until_us: int | None = None,
    ) -> Plan | None:
        """The micro-batch that starts at a position.

        Args:
            position: the `end` of the last plan; `Position()` at the start.
            max_records: how many records it has at most, dead letters included.
            max_span_us: it ends before the first record at or after the end of that interval of this length, aligned to the
                epoch, in which its own first (good) record lies.
            until_us: it ends before the first record that happens then or later.

        Returns:
            The plan; None if there is nothing new.

        Raises:
            ValueError: a limit is not positive, or a file that was begun has changed.
            FileNotFoundError: there are no files, or the file at the position is gone.
        """
        for name, limit in (("max_records", max_records), ("max_span_us", max_span_us)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} wants at least 1, got {limit}")
        files = self._files(position)
        cut = _Cut(max_records, max_span_us, until_us, position.max_event_time_us)
        cache = _Cache()
        ranges: list[Range] = []
        index, row, rows = position.index, position.next_row, 0
        while index < len(files) and not cut.reached:
            file, start_row, something = files[index], row, False
            for piece in self._pieces(file, index, row, cut):
                cache.add(piece)
                row = piece.next_row
                rows += piece.rows
                something |= bool(piece.rows or piece.dead.num_rows)
            ended = (index, file, row) in self._ended
            if something:
                ranges.append(Range(file.name, index, start_row, None if ended else row))
                cache.close(self._source, ranges[-1])
            if ended:
                index, row = index + 1, 0
        if not ranges:
            return None
        cache.publish()
        begun = files[: index + (row > 0)]
        end = Position(tuple((file.name, file.size_bytes) for file in begun), index, row, cut.newest_us)
        return Plan(tuple(ranges), end, rows, self.watermark_us(end), position.max_event_time_us, cut.newest_us)

    def nothing_behind(self, position: Position) -> bool:
        """Whether the end of the last file is known to be here; not whether there are records that were never looked at."""
        return position.index == len(self._files(position))

    def _files(self, position: Position) -> list[FileInfo]:
        """All files in order of arrival: those begun, then the others by name."""
        required = not (self._wait_for_files or position.files)
        listed = {file.name: file for file in self._source.list_files(required)}
        begun = []
        for place, (name, size_bytes) in enumerate(position.files):
            file = listed.pop(name, None)
            if file is None:
                if place >= position.index:
                    raise FileNotFoundError(f"file {name!r} is gone after {position.next_row} of its records were read")
                file = FileInfo(name, self._source.path_of(name), size_bytes)  # read to its end, so it may go
            if file.size_bytes != size_bytes:
                raise ValueError(
                    f"file {name!r} changed while it was read: it had {size_bytes} bytes when it was begun, now "
                    f"{file.size_bytes}. Write files elsewhere and rename them into place when they are complete"
                )
            begun.append(file)
        return begun + list(listed.values())

    def _pieces(self, file: FileInfo, index: int, row: int, cut: _Cut) -> Iterator[Decoded]:
        """The records of a file from a row on, up to the cut; notes the end of the file if that comes first."""
        if (index, file, row) in self._ended:
            return
        opened = self._open
        if opened is None or (opened.file, opened.index, opened.next_row) != (file, index, row):
            opened = self._open = _OpenFile(self._source, file, index, row)
        while not cut.reached:
            piece = opened.take()
            if piece is None:
                self._ended.add((index, file, opened.next_row))
                self._open = None
                return
            taken, rest = cut.take(piece)
            if rest is not None:
                opened.put_back(rest)
            if cut.reached and not opened.looks_on():
                self._ended.add((index, file, opened.next_row))
                self._open = None
            yield taken


class _OpenFile:
    """A file that is being decoded, at `next_row`."""

    def __init__(self, source: FileSource, file: FileInfo, index: int, row: int) -> None:
        self.file, self.index, self.next_row = file, index, row
        self._pieces = read_range(source, Range(file.name, index, row))
        self._held: Decoded | None = None

    def take(self) -> Decoded | None:
        """The next piece; None at the end of the file."""
        piece, self._held = (self._held, None) if self._held is not None else (next(self._pieces, None), None)
        if piece is not None:
            self.next_row = piece.next_row
        return piece

    def looks_on(self) -> bool:
        """Whether there is more behind `next_row`; decodes the next piece to see, and holds it."""
        if self._held is None:
            self._held = next(self._pieces, None)
        return self._held is not None

    def put_back(self, rest: Decoded) -> None:
        """Returns the end of the piece taken last."""
        self.next_row = rest.next_row - rest.rows
        self._held = rest if rest.rows or rest.dead.num_rows else None


class _Cut:
    """Where a micro-batch ends."""

    def __init__(self, max_records: int | None, max_span_us: int | None, until_us: int | None, newest_us: int) -> None:
        self.reached = False
        self.newest_us = newest_us
        self._records_left = max_records
        self._span_us = max_span_us
        self._until_us = until_us

    def take(self, piece: Decoded) -> tuple[Decoded, Decoded | None]:
        """What of a piece belongs to the micro-batch, and the rest if the micro-batch ends in the piece or just after it."""
        times = event_time_us(piece.batch).to_numpy()
        stops = []
        if self._records_left is not None:
            if piece.rows >= self._records_left:
                stops.append(piece.next_row - piece.rows + self._records_left)
            self._records_left -= piece.rows
        if self._span_us is not None and len(times):
            span_end_us = (int(times[0]) // self._span_us + 1) * self._span_us
            self._until_us = span_end_us if self._until_us is None else min(self._until_us, span_end_us)
            self._span_us = None  # known now
        if self._until_us is not None:
            beyond = times >= self._until_us
            if beyond.any():
                stops.append(piece.batch.column(ROW)[int(np.argmax(beyond))].as_py())
        rest = None
        if stops:
            self.reached = True
            piece, rest = split(piece, min(stops))
        if piece.batch.num_rows:
            self.newest_us = max(self.newest_us, int(times[: piece.batch.num_rows].max()))
        return piece, rest


class _Cache:
    """Gathers the decoded batches of a plan until they are too large to keep."""

    def __init__(self) -> None:
        self._ranges: dict[tuple[FileSource, Range], list[Decoded]] = {}
        self._pieces: list[Decoded] = []
        self._bytes = 0

    def add(self, piece: Decoded) -> None:
        self._bytes += piece.batch.nbytes + piece.dead.nbytes
        if self._bytes <= CACHE_BYTES:
            self._pieces.append(piece)
        else:
            self._pieces.clear()
            self._ranges.clear()

    def close(self, source: FileSource, part: Range) -> None:
        """Says which range the pieces since the last call make up."""
        if self._bytes <= CACHE_BYTES:
            self._ranges[source, part] = self._pieces
        self._pieces = []

    def publish(self) -> None:
        """Makes this the cache of the process."""
        global _planned
        _planned = self._ranges
