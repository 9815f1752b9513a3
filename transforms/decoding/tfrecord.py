"""TFRecord files of tf.Example, decoded by tfx-bsl.

A scalar column wants a list of one value (none counts as null), a vector one of its size. `int32`, `int64` and `bool` columns
and numeric times come from int64 lists, floats from float lists, strings and ISO 8601 times from bytes lists.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import google_crc32c
import numpy as np
import pyarrow as pa
from tensorflow_metadata.proto.v0 import schema_pb2  # type: ignore[import-untyped]
from tfx_bsl.coders import example_coder

from transforms.decoding.records import UNPARSABLE, Letter, Piece, UnreadableFileError, read_chunks
from transforms.schema import Column

_ROWS = 4096
_BYTES = 8 << 20
_HEADER = struct.Struct("<QI")  # length of the record, its masked CRC
_CRC = struct.Struct("<I")
_FEATURE_TYPE = {
    "bool": schema_pb2.INT,
    "int32": schema_pb2.INT,
    "int64": schema_pb2.INT,
    "float32": schema_pb2.FLOAT,
    "float64": schema_pb2.FLOAT,
    "string": schema_pb2.BYTES,
    "timestamp": schema_pb2.BYTES,
}


def read_tfrecord(path: str, wanted: Sequence[Column], start_row: int, integer_column: str | None = None) -> Iterator[Piece]:
    """Reads the wanted features; records before `start_row` are skipped without being decoded.

    Args:
        path: the file, packed if it ends in `.gz`.
        wanted: the features.
        start_row: the first record to give.
        integer_column: a wanted column that comes from an int64 list whatever its type (a time that is not declared).

    Raises:
        UnreadableFileError: the file is cut off or not a TFRecord file, after the records before that place.
    """
    schema = schema_pb2.Schema()
    for column in wanted:
        schema.feature.add(
            name=column.name, type=schema_pb2.INT if column.name == integer_column else _FEATURE_TYPE[column.base]
        )
    decoder = _Decoder(schema.SerializeToString())
    row = 0
    held: list[bytes | None] = []
    held_bytes = 0
    problem: UnreadableFileError | None = None
    found = records(path)
    while True:
        try:
            more, record = next(found, (False, None))
        except UnreadableFileError as error:
            more, problem = False, error
        if more:
            row += 1
            if row > start_row:
                held.append(record)
                held_bytes += len(record or b"")
        if held and (not more or len(held) >= _ROWS or held_bytes >= _BYTES):
            yield _piece(held, decoder, row)
            held, held_bytes = [], 0
        if problem:
            raise problem
        if not more:
            return


def _piece(records: list[bytes | None], decoder: _Decoder, end_row: int) -> Piece:
    first = end_row - len(records)
    letters = [
        Letter(first + place, UNPARSABLE, "the record's checksum does not match its bytes", "")
        for place, record in enumerate(records)
        if record is None
    ]
    places = [place for place, record in enumerate(records) if record is not None]
    whole = [record for record in records if record is not None]
    batch, misfits = decoder.decode(whole)
    for misfit, detail in misfits.items():
        letters.append(Letter(first + places[misfit], UNPARSABLE, detail, _example_text(whole[misfit])))
    kept = np.delete(np.array(places, np.int64), list(misfits))
    return Piece(
        batch.columns if batch is not None else [],
        first + kept,
        letters,
        lambda position: _example_text(records[kept[position]] or b""),
        end_row,
    )


class _Decoder:
    """tfx-bsl's decoder, made anew after every failure because a failed one keeps half a record."""

    def __init__(self, schema: bytes) -> None:
        self._schema = schema
        self._decoder = example_coder.ExamplesToRecordBatchDecoder(schema)

    def decode(self, records: list[bytes]) -> tuple[pa.RecordBatch | None, dict[int, str]]:
        """The records that decode, and what is wrong with the others by position, found by halving."""
        if not records:
            return None, {}
        try:
            return self._decoder.DecodeBatch(records), {}
        except RuntimeError as error:
            self._decoder = example_coder.ExamplesToRecordBatchDecoder(self._schema)
            if len(records) == 1:
                return None, {0: str(error).partition(": ")[2] or str(error)}
        middle = len(records) // 2
        left, faults = self.decode(records[:middle])
        right, right_faults = self.decode(records[middle:])
        faults.update({middle + place: detail for place, detail in right_faults.items()})
        batches = [batch for batch in (left, right) if batch is not None]
        return (pa.concat_batches(batches) if batches else None), faults


def records(path: str) -> Iterator[tuple[bool, bytes | None]]:
    """(True, record) for each record; None in place of one whose checksum is wrong."""
    tail = b""
    try:
        for chunk in read_chunks(path):
            data = tail + chunk
            place, size = 0, len(data)
            while place + _HEADER.size <= size:
                length, length_crc = _HEADER.unpack_from(data, place)
                if _masked_crc(data[place : place + 8]) != length_crc:
                    raise UnreadableFileError("not a TFRecord file, or broken: the checksum of a record's length is wrong")
                start = place + _HEADER.size
                end = start + length
                if end + _CRC.size > size:
                    break
                record = data[start:end]
                yield True, record if _masked_crc(record) == _CRC.unpack_from(data, end)[0] else None
                place = end + _CRC.size
            tail = data[place:]
    except UnreadableFileError as error:
        error.rest = b""
        raise
    if tail:
        raise UnreadableFileError("truncated: the file ends in the middle of a record")


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _example_text(record: bytes) -> str:
    """A tf.Example as JSON, for dead letters alone; imports TensorFlow only then."""
    from google.protobuf import json_format  # type: ignore[import-untyped]
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.example import example_pb2

    try:
        return json_format.MessageToJson(example_pb2.Example.FromString(record), indent=None)
    except DecodeError:
        return record.decode("utf-8", errors="backslashreplace")
