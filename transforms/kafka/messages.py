"""From messages to Arrow: every message of a partition comes out either in a batch or as a dead letter with its offset.

The values are joined into one buffer and decoded by the readers of JSON Lines and CSV at once; Python only takes the values
out of the client's message objects. Rows are numbered by their offsets, which may have gaps (compaction, transactions).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from transforms.batches import ROW, ROW_BITS
from transforms.decoding.csv import Layout
from transforms.decoding.files import Decoded, PieceDecoder, join
from transforms.decoding.jsonl import read_block
from transforms.decoding.records import UNPARSABLE, Letter, Piece, as_text, newlines
from transforms.schema import Schema, TimeSpec

TOMBSTONE, EMPTY_MESSAGE = "tombstone", "empty_message"  # reasons of dead letters
KAFKA_TIMESTAMP = "kafka_timestamp"  # a column of this name holds the time that Kafka stamped the message with
FORMATS = ("jsonl", "csv")


class Messages(NamedTuple):
    """Messages of one partition, in order of offset."""

    offsets: np.ndarray  # [n] int64
    values: Sequence[bytes | None]
    keys: Sequence[bytes | None]
    timestamps_ms: np.ndarray  # [n] int64; -1 where there is none


def gather(messages: Iterable[Any], with_keys: bool = True, with_timestamps: bool = True) -> Messages:
    """Takes apart the client's message objects, all of one partition and none of them an error."""
    given = list(messages)
    return Messages(
        np.array([message.offset() for message in given], np.int64),
        [message.value() for message in given],
        [message.key() for message in given] if with_keys else (),
        np.array([message.timestamp()[1] for message in given], np.int64) if with_timestamps else np.zeros(0, np.int64),
    )


class MessageDecoder:
    """Decodes the messages of one partition.

    Args:
        topic, partition: where they come from: `topic/partition` is their `source`, their `sequence` is
            `partition << ROW_BITS | offset`.
        format: `jsonl` (an object a message) or `csv` (a line a message, without a header).
        schema: the columns wanted. One named `kafka_timestamp` is filled with the message's timestamp.
        time: where the event time comes from; without a column, from the message's timestamp.
        key: name of a declared column that is filled with the message's key; None if keys are not wanted.
        fields: with `csv`, the names of a line's fields in order; the declared columns in theirs if empty.

    Raises:
        ValueError: the format is unknown, or the columns do not fit together.
    """

    def __init__(
        self,
        topic: str,
        partition: int,
        format: str,
        schema: Schema,
        time: TimeSpec | None = None,
        key: str | None = None,
        fields: Sequence[str] = (),
    ) -> None:
        if format not in FORMATS:
            raise ValueError(f"expected messages of format {' or '.join(FORMATS)}, got {format!r}")
        if key is not None and key not in schema:
            raise ValueError(
                f"the column {key!r} for the message's key is not declared; declared are {', '.join(schema.names)}"
            )
        self._time = time if time is not None and time.column is not None else TimeSpec(KAFKA_TIMESTAMP)
        self._time.check(schema)
        self._finisher = PieceDecoder(f"{topic}/{partition}", partition, schema, self._time)
        self._key = key
        self._wanted = self._finisher.wanted
        own = {KAFKA_TIMESTAMP, *([key] if key else [])}
        self._inside = [column for column in self._wanted if column.name not in own]
        if not self._inside:
            raise ValueError("declare at least one column that is in the messages' values")
        names = list(fields) or [column.name for column in self._inside]
        self._read = self._read_csv if format == "csv" else self._read_jsonl
        self._layout = Layout(_csv_line(names), self._inside) if format == "csv" else None

    @property
    def wants_keys(self) -> bool:
        """Whether `decode` looks at the messages' keys."""
        return self._key is not None

    @property
    def wants_timestamps(self) -> bool:
        """Whether `decode` looks at the messages' timestamps."""
        return any(column.name == KAFKA_TIMESTAMP for column in self._wanted)

    def decode(self, messages: Messages) -> Decoded:
        """Decodes consecutive messages (at least one).

        Raises:
            ValueError: an offset is too large to be a row number.
        """
        offsets = messages.offsets
        if int(offsets[-1]) >> ROW_BITS:
            raise ValueError(f"offset {offsets[-1]} is too large: sequence numbers have room for {ROW_BITS} bits of it")
        places, values, letters = self._usable(messages)
        pieces = [self._numbered(piece, places, messages) for piece in (self._read(values) if values else [])]
        if letters:
            numbered = [letter._replace(row=int(offsets[letter.row])) for letter in letters]
            pieces.append(Piece([], np.zeros(0, np.int64), numbered, str, int(offsets[-1]) + 1))
        decoded = join([self._finisher.finish(piece) for piece in pieces])
        dead = decoded.dead.sort_by(ROW) if len(pieces) > 1 and decoded.dead.num_rows else decoded.dead
        return decoded._replace(dead=dead, next_row=int(offsets[-1]) + 1)

    def _usable(self, messages: Messages) -> tuple[np.ndarray, Sequence[bytes], list[Letter]]:
        """The places and values of messages that have a value, and letters (by place) for the others."""
        values = messages.values
        if all(values):
            return np.arange(len(values)), values, []  # type: ignore[return-value]
        keys = messages.keys or [None] * len(values)
        letters = []
        for place, value in enumerate(values):
            if value is None:
                letters.append(Letter(place, TOMBSTONE, "the message has no value", as_text(keys[place] or b"")))
            elif not value:
                letters.append(Letter(place, EMPTY_MESSAGE, "expected a record, got a value of no bytes", ""))
        kept = [place for place, value in enumerate(values) if value]
        return np.array(kept, np.int64), [values[place] or b"" for place in kept], letters

    def _numbered(self, piece: Piece, places: np.ndarray, messages: Messages) -> Piece:
        """A piece of the values with offsets for places, and with the columns that Kafka keeps beside the values."""
        letters = [letter._replace(row=int(messages.offsets[places[letter.row]])) for letter in piece.letters]
        at = places[piece.rows]
        columns: list[pa.Array] = []
        if len(at):
            found = {column.name: values for column, values in zip(self._inside, piece.columns, strict=True)}
            if self.wants_timestamps:
                stamps = messages.timestamps_ms[at]
                found[KAFKA_TIMESTAMP] = pa.array(stamps, pa.timestamp("ms", "UTC"), mask=stamps < 0)
            if self._key is not None:
                found[self._key] = pa.array(messages.keys, pa.binary()).take(pa.array(at))
            columns = [found[column.name] for column in self._wanted]
        values = messages.values
        return Piece(columns, messages.offsets[at], letters, lambda place: as_text(values[at[place]] or b""), piece.end_row)

    def _read_jsonl(self, values: Sequence[bytes]) -> list[Piece]:
        data = b"\n".join(values) + b"\n"
        if newlines(data) != len(values) or any(map(bytes.isspace, values)):
            # Between the tokens of JSON a newline is a space, and inside of strings it is not allowed.
            values = [value.replace(b"\n", b" ") if value.strip() else b"(nothing but white space)" for value in values]
            data = b"\n".join(values) + b"\n"
        return [read_block(data, self._inside, 0)]

    def _read_csv(self, values: Sequence[bytes], first: int = 0) -> list[Piece]:
        assert self._layout is not None
        values = [value.rstrip(b"\r\n") for value in values]
        data = b"\n".join(values) + b"\n"
        if newlines(data) == len(values) and (pieces := self._layout.read_clean(data, first)) is not None:
            return pieces
        if len(values) > 1:  # a fault is found by halving: quotes must not reach from one message into the next
            middle = len(values) // 2
            return self._read_csv(values[:middle], first) + self._read_csv(values[middle:], first + middle)
        pieces, _ = self._layout.read(data, first, last=True)
        if sum(len(piece.rows) + len(piece.letters) for piece in pieces) == 1:
            return pieces
        letter = Letter(first, UNPARSABLE, "expected one record in the message, got none or several", as_text(values[0]))
        return [Piece([], np.zeros(0, np.int64), [letter], str, first + 1)]


def split_at(decoded: Decoded, offset: int) -> tuple[Decoded, Decoded]:
    """The messages before and from an offset on; as `decoding.files.split`, where offsets may have gaps."""
    good = int(np.searchsorted(decoded.batch.column(ROW).to_numpy(), offset))
    dead = int(np.searchsorted(decoded.dead.column(ROW).to_numpy(), offset))
    head, tail = decoded.batch.slice(0, good), decoded.batch.slice(good)
    dead_head, dead_tail = decoded.dead.slice(0, dead), decoded.dead.slice(dead)
    return (
        Decoded(head, dead_head, good + dead, min(offset, decoded.next_row)),
        Decoded(tail, dead_tail, decoded.rows - good - dead, decoded.next_row),
    )


def _csv_line(names: Sequence[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue().encode()
