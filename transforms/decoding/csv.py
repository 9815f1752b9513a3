"""CSV with a header line.

A record is a line. Where a quoted field holds newlines it is several, if they then make a record with as many fields as the
header and with quotes only around fields; otherwise the first line is a dead letter by itself and reading goes on with the
next. So a forgotten quote costs one line, not the rest of the file. Empty lines are not records. The header is a single line.
Fields may be apart by semicolons or tabs, too: `transforms.decoding.separators`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from transforms.decoding.records import (
    MAX_RECORD_BYTES,
    MISSING_COLUMN,
    UNPARSABLE,
    Letter,
    Piece,
    UnreadableFileError,
    as_text,
    lines_of,
    newlines,
    whole_lines,
)
from transforms.decoding.separators import as_commas
from transforms.decoding.values import NULL_WORDS
from transforms.schema import Column

_PARALLEL_BYTES = 2 << 20  # what one thread parses at a time
_PLAIN = rb'(?!")[^,\r\n]*+'
_QUOTED = rb'"(?:[^"]|"")*+"'
_QUOTED_IN_LINE = rb'"(?:[^"\n]|"")*+"[^,\r\n]*+'  # text after the closing quote belongs to the field, as in Arrow


def read_csv(path: str, wanted: Sequence[Column], start_row: int) -> Iterator[Piece]:
    """Reads the wanted columns of a CSV file; blocks of records that end before `start_row` are only counted.

    Raises:
        UnreadableFileError: after the records that could be read.
    """
    layout: Layout | None = None
    carry, row = b"", 0
    problem: UnreadableFileError | None = None
    blocks = as_commas(whole_lines(path))
    while True:
        try:
            data = next(blocks, None)
        except UnreadableFileError as error:
            data, problem = None, error
        last = data is None
        data = carry + (data or b"")
        if layout is None:
            data = data.lstrip(b"\r\n")
            if data:
                header, _, data = data.partition(b"\n")
                layout = Layout(header, wanted)
        if layout is not None and data:
            records = layout.count(data) if row < start_row else None
            if records is not None and row + records <= start_row:
                carry, row = b"", row + records
            else:
                pieces, carry = layout.read(data, row, last)
                yield from (piece for piece in pieces if piece.end_row > start_row)
                row = pieces[-1].end_row if pieces else row
        if problem:
            raise problem
        if last:
            return


class Layout:
    """How the records of one file look."""

    def __init__(self, header: bytes, wanted: Sequence[Column]) -> None:
        names = [name.strip() for name in next(csv.reader([as_text(header)]))]
        self._fields = len(names)
        self._wanted = wanted
        self._types = [_arrow_type(column) for column in wanted]
        faults = [f"{column.name!r} ({names.count(column.name)} times)" for column in wanted if names.count(column.name) != 1]
        self._fault = f"expected a column {', '.join(faults)} once; the header has {', '.join(names)}" if faults else ""
        self._places = [] if faults else [str(names.index(column.name)) for column in wanted]
        plain, strict = (rb"(?:%s|%s)" % (field, _PLAIN) for field in (_QUOTED_IN_LINE, _QUOTED))
        rest = self._fields - 1
        self._record = re.compile(
            rb"(?P<blank>\r?\n)|(?P<good>(?:%(p)s,){%(n)d}%(p)s\r?\n|(?:%(s)s,){%(n)d}%(s)s\r?\n)|(?P<bad>[^\n]*+\n)"
            % {b"p": plain, b"s": strict, b"n": rest}
        )
        self._open = re.compile(rb'(?:%s,){0,%d}+"(?:[^"]|"")*+\Z' % (strict, rest))

    def count(self, data: bytes) -> int | None:
        """The number of records of whole lines, where that takes no look at each of them; None otherwise."""
        if b'"' in data or b"\n\n" in data or b"\n\r" in data or data.startswith((b"\n", b"\r")):
            return None
        return newlines(data)

    def read(self, data: bytes, row: int, last: bool) -> tuple[list[Piece], bytes]:
        """Reads a block that begins with a record.

        Returns:
            The pieces, and the bytes of a last record that needs the next block, if there is one.
        """
        # Values that do not fit are found in the columns as bytes; records that do not, line by line.
        pieces = self.read_clean(data, row)
        return self._read_with_faults(data, row, last) if pieces is None else (pieces, b"")

    def read_clean(self, data: bytes, row: int) -> list[Piece] | None:
        """Reads whole lines if each of them is a record; None otherwise."""
        if not self._fault:
            for types in (self._types, [pa.binary()] * len(self._types)):
                table = self._read_clean(data, types)
                if table is not None:
                    return self._pieces(table, row, lines_of(data))
        return None

    def _read_clean(self, data: bytes, types: Sequence[pa.DataType]) -> pa.Table | None:
        """The table if each line is a record and all of them have these types, None otherwise."""
        if b"\r" in data and data.count(b"\r") != data.count(
            b"\r\n"
        ):  # Arrow takes a lone carriage return for the end of a line
            return None
        if b'"' in data and self._open.match(data, data.rfind(b"\n", 0, -1) + 1):
            return None
        try:
            table = self._parse(data, types)
        except pa.ArrowInvalid:
            return None
        return table if table.num_rows == newlines(data) else None

    def _parse(self, data: bytes, types: Sequence[pa.DataType]) -> pa.Table:
        names = [str(place) for place in range(self._fields)]
        return pacsv.read_csv(
            pa.BufferReader(data),
            read_options=pacsv.ReadOptions(column_names=names, block_size=_PARALLEL_BYTES),
            parse_options=pacsv.ParseOptions(newlines_in_values=False),
            convert_options=pacsv.ConvertOptions(
                include_columns=self._places,
                column_types=dict(zip(self._places, types, strict=True)),
                null_values=list(NULL_WORDS),
            ),
        )

    def _pieces(self, table: pa.Table, row: int, record: Callable[[int], str]) -> list[Piece]:
        pieces, start = [], 0
        for batch in table.to_batches():
            columns = [_empty_is_null(raw, column) for raw, column in zip(batch.columns, self._wanted, strict=True)]
            rows = np.arange(row + start, row + start + batch.num_rows)
            pieces.append(Piece(columns, rows, (), partial(_shifted, record, start), int(rows[-1]) + 1))
            start += batch.num_rows
        return pieces

    def _read_with_faults(self, data: bytes, row: int, last: bool) -> tuple[list[Piece], bytes]:
        good, rows, letters, carry, place = [], [], [], b"", 0
        while place < len(data):
            match = self._record.match(data, place, min(len(data), place + MAX_RECORD_BYTES))
            assert match is not None, "lines are shorter than MAX_RECORD_BYTES"
            record, place = match[0], match.end()
            if match.lastgroup == "blank":
                continue
            if match.lastgroup == "bad":
                if not last and len(data) - match.start() < MAX_RECORD_BYTES and self._open.match(data, match.start()):
                    carry = data[match.start() :]
                    break
                if not self._fault:
                    letters.append(Letter(row, UNPARSABLE, self._complaint(record), as_text(record)))
            elif not self._fault:
                good.append(record)
                rows.append(row)
            if self._fault:
                letters.append(Letter(row, MISSING_COLUMN, self._fault, as_text(record)))
            row += 1
        return [Piece(self._texts(good), np.array(rows, np.int64), letters, lambda at: as_text(good[at]), row)], carry

    def _texts(self, records: list[bytes]) -> list[pa.Array]:
        """The wanted fields as bytes, to be converted one by one."""
        if not records:
            return []
        table = self._parse(b"".join(records), [pa.binary()] * len(self._places)).combine_chunks()
        assert table.num_rows == len(records), (table.num_rows, len(records))
        columns = [pa.array([], pa.binary()) if not raw.num_chunks else raw.chunk(0) for raw in table.columns]
        return [_empty_is_null(raw, column) for raw, column in zip(columns, self._wanted, strict=True)]

    def _complaint(self, record: bytes) -> str:
        try:
            fields = len(next(csv.reader([as_text(record)], strict=True)))
        except csv.Error as error:
            return f"expected {self._fields} fields, got a line with a fault in its quotes: {error}"
        if fields == self._fields:
            return f"expected {self._fields} fields, got a line with a fault in its quotes or a lone carriage return"
        return f"expected {self._fields} fields, got {fields}"


def _shifted(record: Callable[[int], str], start: int, place: int) -> str:
    return record(start + place)


def _arrow_type(column: Column) -> pa.DataType:
    """What Arrow's CSV reader shall give; the rest is converted by `decoding_values`, which knows more spellings."""
    return column.value_type if column.base in ("int32", "int64", "float32", "float64") and not column.size else pa.string()


def _empty_is_null(raw: pa.Array, column: Column) -> pa.Array:
    if column.base != "string" or not column.nullable:
        return raw
    return pc.if_else(pc.equal(pc.binary_length(raw), 0), pa.scalar(None, raw.type), raw)
