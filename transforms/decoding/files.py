"""From files to Arrow: every record of a file comes out either in a batch or as a dead letter with its reason and origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from transforms.batches import (
    DEAD_LETTER_SCHEMA,
    EVENT_TIME,
    NAME_TYPE,
    ROW,
    SEQUENCE,
    SOURCE,
    TIME_TYPE,
    first_sequence,
)
from transforms.decoding.csv import read_csv
from transforms.decoding.jsonl import read_jsonl
from transforms.decoding.parquet import read_parquet
from transforms.decoding.records import (
    BAD_TIME,
    UNREADABLE_FILE,
    Letter,
    Piece,
    UnreadableFileError,
    as_text,
    format_of,
    read_ahead,
)
from transforms.decoding.values import LAST_US, Problem, checked, event_times
from transforms.schema import Column, Schema, TimeSpec

DEFAULT_BATCH_ROWS = 8192
_SHOWN_BYTES = 4096


class Decoded(NamedTuple):
    """Consecutive records of a file.

    Attributes:
        batch: the good ones: the schema's columns, `event_time`, `source`, `row`, `sequence`.
        dead: the others (`DEAD_LETTER_SCHEMA`), in order of row. One with a null row, always the last of its file,
            says that the rest of the file cannot be read; it stands for no record.
        rows: how many records this is, good and dead.
        next_row: the row number after the last.
    """

    batch: pa.RecordBatch
    dead: pa.RecordBatch
    rows: int
    next_row: int


@cache
def batch_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of the batches of good records."""
    own = [
        pa.field(EVENT_TIME, TIME_TYPE),
        pa.field(SOURCE, NAME_TYPE),
        pa.field(ROW, pa.int64()),
        pa.field(SEQUENCE, pa.int64()),
    ]
    return pa.schema([*schema.arrow, *own])


def decode(
    path: str,
    source_name: str,
    source_index: int,
    format: str,
    schema: Schema,
    time: TimeSpec,
    start_row: int = 0,
    batch_rows: int = DEFAULT_BATCH_ROWS,
) -> Iterator[Decoded]:
    """Decodes a file, streaming.

    Args:
        path: the file, on any of Beam's file systems.
        source_name: its name in the `source` column.
        source_index: its place in the order of arrival, which gives `sequence`.
        format: `csv`, `jsonl`, `parquet`, `tfrecord`, or `auto` to go by the name.
        schema: the columns wanted.
        time: where the event time comes from.
        start_row: the first record to give; what comes out is the tail of what a full read gives.
        batch_rows: how many records, good and dead, each piece stands for (the last one of the file: at most).

    Raises:
        ValueError: the format is unknown, or the time column is declared with a type that cannot hold it.
    """
    time.check(schema)
    if batch_rows < 1:
        raise ValueError(f"batch_rows wants at least 1, got {batch_rows}")
    decoder = _FileDecoder(source_name, source_index, schema, time)
    pieces = decoder.decode(path, format_of(path, format), start_row)
    return _rebatched(pieces, start_row, batch_rows)


class PieceDecoder:
    """Turns the pieces of one source into batches and dead letters.

    Attributes:
        wanted: the columns that a piece has, in order: those of the schema, and the time column if it is not one of them.
    """

    def __init__(self, source_name: str, source_index: int, schema: Schema, time: TimeSpec) -> None:
        extra = time.extra_column(schema)
        self.wanted: tuple[Column, ...] = (*schema.columns, *([extra] if extra else []))
        self._extra = extra
        self._schema = schema
        self._time = time
        self._name = source_name
        self._names = pa.array([source_name])
        self._first_sequence = first_sequence(source_index)

    def finish(self, piece: Piece) -> Decoded:
        """Converts and checks the records of a piece."""
        letters, rows = list(piece.letters), piece.rows
        total = len(rows) + len(letters)
        arrays: list[pa.Array] = []
        if len(rows):
            arrays, times, problems = self._convert(piece)
            if problems:
                keep = np.ones(len(rows), bool)
                keep[list(problems)] = False
                letters += [
                    Letter(int(rows[place]), problem.reason, problem.detail, piece.record(place))
                    for place, problem in problems.items()
                ]
                mask = pa.array(keep)
                arrays, times, rows = [array.filter(mask) for array in arrays], times[keep], rows[keep]
            sources = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), self._names)
            arrays += [pa.array(times).cast(TIME_TYPE), sources, pa.array(rows), pa.array(rows + self._first_sequence)]
        schema = batch_schema(self._schema)
        batch = pa.RecordBatch.from_arrays(arrays, schema=schema) if arrays else _empty(schema)
        return Decoded(batch, self._letters(letters), total, piece.end_row)

    def _convert(self, piece: Piece) -> tuple[list[pa.Array], np.ndarray, dict[int, Problem]]:
        """The declared columns, the event times, and the first problem of each record that has one."""
        problems: dict[int, Problem] = {}
        arrays = []
        for column, raw in zip(self.wanted, piece.columns, strict=True):
            values, found = checked(raw, column)
            arrays.append(values)
            for problem in found:
                reason = BAD_TIME if column.name == self._time.column else problem.reason
                problems.setdefault(problem.position, problem._replace(reason=reason))
        if self._time.column is None:
            times, found = self._numbered_times(piece.rows)
        else:
            place = [column.name for column in self.wanted].index(self._time.column)
            times, found = event_times(arrays[place], self._time)
        for problem in found:
            problems.setdefault(problem.position, problem)
        return arrays[: len(self._schema.columns)], times, problems

    def _numbered_times(self, rows: np.ndarray) -> tuple[np.ndarray, list[Problem]]:
        time = self._time
        last = (LAST_US - time.start_us) // max(time.step_us, 1)  # the last row whose time can be named
        bad = rows > last
        detail = f"expected a time in the years 1 to 9999, got start + row * step with {time.start} and {time.step}"
        return time.start_us + np.where(bad, 0, rows) * time.step_us, [
            Problem(place, BAD_TIME, detail) for place in np.flatnonzero(bad).tolist()
        ]

    def _letters(self, letters: list[Letter]) -> pa.RecordBatch:
        if not letters:
            return _empty(DEAD_LETTER_SCHEMA)
        letters.sort(key=lambda letter: letter.row)
        rows, reasons, details, records = zip(*letters, strict=True)
        return _dead_letters(self._name, rows, [self._first_sequence + row for row in rows], reasons, details, records)


class _FileDecoder(PieceDecoder):
    """Reads one file."""

    def decode(self, path: str, format: str, start_row: int) -> Iterator[Decoded]:
        next_row = start_row
        try:
            for piece in read_ahead(self._read(path, format, start_row)):
                decoded = self.finish(piece)
                next_row = decoded.next_row
                yield decoded
        except (UnreadableFileError, OSError) as error:
            rest = error.rest if isinstance(error, UnreadableFileError) else b""
            dead = _dead_letters(
                self._name,
                [None],
                [None],
                [UNREADABLE_FILE],
                [f"from row {next_row} on: {error}"],
                [as_text(rest[:_SHOWN_BYTES])],
            )
            yield Decoded(_empty(batch_schema(self._schema)), dead, 0, next_row)

    def _read(self, path: str, format: str, start_row: int) -> Iterator[Piece]:
        if format == "csv":
            return read_csv(path, self.wanted, start_row)
        if format == "jsonl":
            return read_jsonl(path, self.wanted, start_row)
        if format == "parquet":
            return read_parquet(path, self.wanted, start_row)
        from transforms.decoding.tfrecord import read_tfrecord  # loads tfx-bsl, which only this format needs

        numeric_time = self._extra.name if self._extra and self._time.unit != "iso" else None
        return read_tfrecord(path, self.wanted, start_row, numeric_time)


def _dead_letters(name: str, rows: Sequence, sequences: Sequence, *texts: Sequence[str]) -> pa.RecordBatch:
    values = ([name] * len(rows), rows, sequences, *texts)
    arrays = [pa.array(column, field.type) for column, field in zip(values, DEAD_LETTER_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=DEAD_LETTER_SCHEMA)


@cache
def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def split(decoded: Decoded, row: int) -> tuple[Decoded, Decoded]:
    """The records before and from a row number on; a letter about the file as a whole goes with the latter."""
    first_row = decoded.next_row - decoded.rows
    row = min(max(row, first_row), decoded.next_row)
    good = int(np.searchsorted(decoded.batch.column(ROW).to_numpy(), row))
    dead_rows = decoded.dead.column(ROW).drop_null().to_numpy()  # nulls come last
    dead = int(np.searchsorted(dead_rows, row))
    return (
        Decoded(decoded.batch.slice(0, good), decoded.dead.slice(0, dead), row - first_row, row),
        Decoded(decoded.batch.slice(good), decoded.dead.slice(dead), decoded.next_row - row, decoded.next_row),
    )


def join(parts: Sequence[Decoded]) -> Decoded:
    """Consecutive parts as one; copies only what more than one of them has rows of."""
    return Decoded(
        _concatenated([part.batch for part in parts]),
        _concatenated([part.dead for part in parts]),
        sum(part.rows for part in parts),
        parts[-1].next_row,
    )


def _concatenated(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    filled = [batch for batch in batches if batch.num_rows]
    return pa.concat_batches(filled) if len(filled) > 1 else (filled or batches)[0]


def _rebatched(pieces: Iterable[Decoded], start_row: int, batch_rows: int) -> Iterator[Decoded]:
    """Cuts pieces into such of `batch_rows` records, so that batches do not depend on how the file was read."""
    held: list[Decoded] = []
    held_rows = 0
    for piece in pieces:
        rest = split(piece, start_row)[1]
        while held_rows + rest.rows >= batch_rows:
            head, rest = split(rest, rest.next_row - rest.rows + batch_rows - held_rows)
            yield join([*held, head])
            held, held_rows = [], 0
        if rest.rows or rest.dead.num_rows:
            held.append(rest)
            held_rows += rest.rows
    if held:
        yield join(held)
