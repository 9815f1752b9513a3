"""How a RecordBatch travels between workers: as an Arrow IPC stream of one batch."""

from __future__ import annotations

import copyreg
from collections.abc import Callable

import pyarrow as pa
from apache_beam import coders


class RecordBatchCoder(coders.Coder):
    """Arrow IPC. Only the rows of a slice are written, where pickling would write the whole buffers behind it."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        return int(value.nbytes)  # Beam asks for its counters at many steps, and would encode each time

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type:
        return pa.RecordBatch


def _as_bytes(batch: pa.RecordBatch) -> tuple[Callable[[bytes], pa.RecordBatch], tuple[bytes]]:
    coder = RecordBatchCoder()
    return coder.decode, (coder.encode(batch),)


coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
# What holds a batch is pickled, if only for Beam to guess its size: with a slice go its rows then, not all those beside it.
copyreg.pickle(pa.RecordBatch, _as_bytes)
