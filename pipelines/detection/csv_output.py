"""The CSV files with scores: each input file again, line by line as it came, with the score behind.

A line whose record has no score (a missing value, a dead letter) ends in an empty field, so that input and output have the
same rows. The files grow with the micro-batches; what a killed run left half written is cut off when the job goes on.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from runners.checkpoint import write_atomically
from transforms.decoding.records import UnreadableFileError, whole_lines
from transforms.decoding.separators import has_decimal_commas, separator_of
from transforms.detection import SCORE
from transforms.file_source import FileSource, Range

STATE = "csv.json"  # in the checkpoint: which files were written, and how far the CSV files got
_LOOKED_AT_ROWS = 1000  # for decimal commas
# A record is a line, or several where a quoted field holds newlines; a quote that is never closed ends with its line.
_RECORD = re.compile(rb'(?:[^"\n]|"(?:[^"]|"")*+")*+\n|[^\n]*+\n')


class CsvOutput:
    """Writes the files of one stream."""

    def __init__(self, source: FileSource, output: Path, checkpoint: Path) -> None:
        """Goes on where the last run stopped; what it had not noted yet is cut off.

        Args:
            source: the input.
            output: the folder to write to; paths relative to the input's root are kept.
            checkpoint: folder of the stream's checkpoint.
        """
        self._source, self._output, self._state_file = source, output, checkpoint / STATE
        self.done, self._sizes = -1, dict[str, int]()
        if self._state_file.exists():
            state = json.loads(self._state_file.read_text())
            self.done, self._sizes = state["done"], state["sizes"]
        self._reading: _Records | None = None
        for name, size in self._sizes.items():
            file = self.path(name)
            if file.exists() and file.stat().st_size > size:
                with file.open("r+b") as handle:
                    handle.truncate(size)

    @property
    def files(self) -> list[Path]:
        """The files written so far."""
        return [self.path(name) for name in self._sizes]

    def path(self, name: str) -> Path:
        """Where the scores of an input file go."""
        return self._output / name

    def write(self, number: int, ranges: list[Range], scores: Mapping[str, tuple[np.ndarray, pa.Array]]) -> None:
        """Adds what a micro-batch scored.

        Args:
            number: of the micro-batch; one that was written before is passed over.
            ranges: what it read, in order.
            scores: by file the numbers of the scored rows, and their scores.
        """
        if number <= self.done:
            return
        for part in ranges:
            file = self.path(part.file)
            if part.start_row == 0:
                file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb" if part.start_row == 0 else "ab") as handle:
                rows, values = scores.get(part.file, (np.zeros(0, np.int64), pa.array([], pa.float32())))
                self._append(handle, part, rows, values)
                self._sizes[part.file] = handle.tell()
        self._note(number)

    def complete(self) -> None:
        """Adds the files without a record, which no micro-batch reads."""
        for file in self._source.list_files(required=False):
            if file.name not in self._sizes and next(_Records(file.path, file.name).take(1), None) is None:
                self._start(Range(file.name, 0))
        self._note(self.done)

    def _start(self, part: Range) -> None:
        no_rows, no_scores = np.zeros(0, np.int64), pa.array([], pa.float32())
        self.path(part.file).parent.mkdir(parents=True, exist_ok=True)
        with self.path(part.file).open("wb") as handle:
            self._append(handle, part, no_rows, no_scores)
            self._sizes[part.file] = handle.tell()

    def _note(self, number: int) -> None:
        self.done = number
        write_atomically(self._state_file, json.dumps({"done": number, "sizes": self._sizes}))

    def _append(self, handle: BinaryIO, part: Range, rows: np.ndarray, values: pa.Array) -> None:
        reading = self._reading
        if reading is None or (reading.name, reading.row) != (part.file, part.start_row):
            reading = self._reading = _Records(self._source.path_of(part.file), part.file)
            reading.skip(part.start_row)
        packed = part.file.lower().endswith(".gz")
        if part.start_row == 0 and reading.header is not None:
            handle.write(_packed(reading.header + reading.separator + SCORE.encode() + reading.line_end, packed))
        text = pc.fill_null(values.cast(pa.string()), "")
        if reading.decimal_commas:
            text = pc.replace_substring(text, ".", ",")
        for first, records in reading.take(part.end_row):
            own = (rows >= first) & (rows < first + len(records))
            fields = np.full(len(records), "", object)
            fields[rows[own] - first] = text.filter(pa.array(own)).to_numpy(zero_copy_only=False)
            lines = pc.binary_join_element_wise(
                pa.array(records, pa.binary()), pa.array(fields, pa.string()).cast(pa.binary()), reading.separator
            )
            handle.write(_packed(reading.line_end.join([*lines.to_pylist(), b""]), packed))


class _Records:
    """The records of one file as text, in order, each without its line end; and how the file writes fields, lines, numbers."""

    def __init__(self, path: str, name: str) -> None:
        self.name, self.row = name, 0
        self._blocks = self._split(path)
        self._held: list[bytes] = []
        self.separator, self.line_end, self.decimal_commas = b",", b"\n", False
        self.header: bytes | None = next(self._blocks, [None])[0]
        if self.header is not None:
            self.separator = separator_of(self.header)
            if self.separator != b",":
                self._held = next(self._blocks, [])
                self.decimal_commas = has_decimal_commas(self._held[:_LOOKED_AT_ROWS], self.separator)

    def skip(self, rows: int) -> None:
        """Goes on to a row."""
        for _ in self.take(rows) if rows else ():
            pass

    def take(self, end_row: int | None) -> Iterator[tuple[int, list[bytes]]]:
        """The records up to a row, or to the end of the file: lists, each with the number of its first row."""
        while end_row is None or self.row < end_row:
            if not self._held:
                held = next(self._blocks, None)
                if held is None:
                    return
                self._held = held
            wanted = len(self._held) if end_row is None else min(len(self._held), end_row - self.row)
            given, self._held = self._held[:wanted], self._held[wanted:]
            first, self.row = self.row, self.row + len(given)
            if given:
                yield first, given

    def _split(self, path: str) -> Iterator[list[bytes]]:
        """First the header by itself, then the records in lists."""
        carry, header = b"", True
        blocks = whole_lines(path)
        while True:
            try:
                data = next(blocks, None)
            except (UnreadableFileError, OSError):
                return  # what could be read of it was given
            block = carry + (data or b"")
            carry = b""
            if b'"' in block:
                records = _RECORD.findall(block)
                if data is not None and records and records[-1].count(b'"') % 2:
                    carry = records.pop()
            else:
                records = block.split(b"\n")
            lines = [line for line in (record.rstrip(b"\r\n") for record in records) if line]
            if header and lines:
                if records[0].endswith((b"\r", b"\r\n")):
                    self.line_end = b"\r\n"
                yield [lines.pop(0)]
                header = False
            if lines:
                yield lines
            if data is None:
                return


def _packed(text: bytes, packed: bool) -> bytes:
    """As it is, or as a member of a gzip file, which may be concatenated; without a time: same text, same bytes."""
    return gzip.compress(text, mtime=0) if packed else text
