"""What the readers of all formats share: bytes in, pieces of records out."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

# Reasons of dead letters.
UNPARSABLE = "unparsable"
MISSING_COLUMN = "missing_column"
NULL_VALUE = "null_value"
NOT_FINITE = "not_finite"
BAD_TIME = "bad_time"
UNREADABLE_FILE = "unreadable_file"

FORMATS = ("csv", "jsonl", "parquet", "tfrecord")
CHUNK_BYTES = 4 << 20  # read and parsed at a time: large enough that Arrow's set-up per block does not show
MAX_RECORD_BYTES = 16 << 20  # a longer line is taken for a file that is not text
_READ_BYTES = 1 << 20
_SUFFIXES = {
    "csv": "csv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "parquet": "parquet",
    "pq": "parquet",
    "tfrecord": "tfrecord",
    "tfrecords": "tfrecord",
}
_SHARD = re.compile(r"-\d+-of-\d+$")


class UnreadableFileError(Exception):
    """The rest of a file cannot be read; `rest` is what there was of an unfinished record."""

    def __init__(self, detail: str, rest: bytes = b"") -> None:
        super().__init__(detail)
        self.rest = rest


class Letter(NamedTuple):
    """A record that cannot be used."""

    row: int
    reason: str
    detail: str
    record: str


class Piece(NamedTuple):
    """Consecutive records of a file as a format's reader gives them, before conversion to the declared types."""

    columns: Sequence[pa.Array]  # the wanted columns in order, of whatever type the format has; empty if there are no rows
    rows: np.ndarray  # [n] int64, the row numbers of the columns' values
    letters: Sequence[Letter]  # records that could not be split into columns
    record: Callable[[int], str]  # gives the text of the record at a position of `rows`
    end_row: int  # the row number after the last of both


def format_of(path: str, format: str = "auto") -> str:
    """The format of a file: as told, or from its name if that is `auto`.

    Raises:
        ValueError: there is no such format, or the name does not tell.
    """
    if format in FORMATS:
        return format
    if format != "auto":
        raise ValueError(f"unknown format {format!r}; known are auto, {', '.join(FORMATS)}")
    name = _SHARD.sub("", path.rsplit("/", 1)[-1].lower().removesuffix(".gz"))
    found = _SUFFIXES.get(name.rpartition(".")[2])
    if found is None:
        raise ValueError(f"cannot tell the format of {path!r} from its name; name the format: {', '.join(FORMATS)}")
    return found


def open_file(path: str) -> BinaryIO:
    """Opens a file of any of Beam's file systems for reading bytes as they are."""
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def read_chunks(path: str) -> Iterator[bytes]:
    """The bytes of a file in chunks of about `CHUNK_BYTES`, unpacked if its name ends in `.gz`.

    Raises:
        UnreadableFileError: truncated or broken gzip, after what could be unpacked was given.
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        if not path.lower().endswith(".gz"):
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
            return
        yield from _gathered(_unpacked(file))


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    # Not gzip.open: that drops the last bytes before the place where a file was cut off.
    unpacker, fresh = zlib.decompressobj(wbits=31), True
    while packed := file.read(_READ_BYTES):
        while packed:
            try:
                data = unpacker.decompress(packed, CHUNK_BYTES)
            except zlib.error as error:
                raise UnreadableFileError(f"broken gzip: {error}") from None
            fresh = False
            if data:
                yield data
            if unpacker.eof:  # gzip files may be concatenated
                packed = unpacker.unused_data.lstrip(b"\0")
                unpacker, fresh = zlib.decompressobj(wbits=31), True
            else:
                packed = unpacker.unconsumed_tail
    if not fresh:
        raise UnreadableFileError("truncated gzip: the file ends in the middle of its compressed data")


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Joins small pieces into chunks; what came before an error is given before it is raised."""
    held: list[bytes] = []
    size = 0
    problem: UnreadableFileError | None = None
    while True:
        try:
            data = next(pieces, None)
        except UnreadableFileError as error:
            data, problem = None, error
        if data is not None:
            held.append(data)
            size += len(data)
        if held and (data is None or size >= CHUNK_BYTES):
            yield b"".join(held)
            held, size = [], 0
        if problem:
            raise problem
        if data is None:
            return


def whole_lines(path: str) -> Iterator[bytes]:
    """A text file in blocks of whole lines, each ending in a newline, without a byte order mark.

    Raises:
        UnreadableFileError: as `read_chunks`, or a line has more than `MAX_RECORD_BYTES`.
    """
    tail, first = b"", True
    try:
        for chunk in read_chunks(path):
            data = tail + chunk
            end = data.rfind(b"\n") + 1
            if end:
                yield data[:end].removeprefix(b"\xef\xbb\xbf") if first else data[:end]
                first = False
            tail = data[end:]
            if len(tail) > MAX_RECORD_BYTES:
                raise UnreadableFileError(f"a line of more than {MAX_RECORD_BYTES >> 20} MiB: not text with a record a line?")
    except UnreadableFileError as error:
        error.rest = tail
        raise
    if first:
        tail = tail.removeprefix(b"\xef\xbb\xbf")
    if tail:
        yield tail + b"\n"


def as_text(record: bytes) -> str:
    """The bytes of a record for people to read."""
    return record.decode("utf-8", errors="replace").rstrip("\r\n")


def lines_of(data: bytes) -> Callable[[int], str]:
    """Gives the lines of a block by number; splits it only when one is asked for."""
    lines: list[bytes] = []

    def line(place: int) -> str:
        if not lines:
            lines.extend(data.split(b"\n"))
        return as_text(lines[place])

    return line


def newlines(data: bytes) -> int:
    """How many lines a block has; several times as fast as bytes.count where they are short."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))


def read_ahead(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Has the next piece read while the last one is worked on. Arrow, zlib and files let other threads run."""
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        coming = thread.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = thread.submit(next, pieces, None)
            yield piece
