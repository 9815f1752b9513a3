"""The shape of what flows: Arrow RecordBatches with a few reserved columns.

Every element of every stream is a `pyarrow.RecordBatch`. Beside the user's columns it has:

| column | type | meaning |
| --- | --- | --- |
| `event_time` | timestamp[us, UTC] | when the record happened (a label's: when it became known) |
| `source` | dictionary<int32, string> | the file (or topic partition) it came from, relative to the input's root |
| `row` | int64 | its number in that source, counted from 0 |
| `sequence` | int64 | its place in the total order of arrival; names a record once and for all |
| `watermark_us` | int64 | only on ordered streams: the watermark just before the record arrived |
"""

from __future__ import annotations

import pyarrow as pa

EVENT_TIME = "event_time"
SOURCE = "source"
ROW = "row"
SEQUENCE = "sequence"
WATERMARK = "watermark_us"
RESERVED = (EVENT_TIME, SOURCE, ROW, SEQUENCE, WATERMARK)

TIME_TYPE = pa.timestamp("us", tz="UTC")
NAME_TYPE = pa.dictionary(pa.int32(), pa.string())

# A watermark of a stream that nothing was read from yet, and of one that has ended. Half the int64 range, so that
# adding a window length or a lateness never overflows.
MIN_WATERMARK_US = -(2**62)
MAX_WATERMARK_US = 2**62

# A file's rows take 40 bits of `sequence`: 2**40 rows a file, 2**23 files a stream.
ROW_BITS = 40

DEAD_LETTER_SCHEMA = pa.schema(
    [
        pa.field(SOURCE, pa.string()),
        pa.field(ROW, pa.int64()),  # null where the source as a whole is meant
        pa.field(SEQUENCE, pa.int64()),  # null where the source as a whole is meant
        pa.field("reason", pa.string()),  # a short word to group by: unparsable, missing_column, not_finite, late ...
        pa.field("detail", pa.string()),  # what was expected, what came
        pa.field("record", pa.string()),  # the record as it came, or as JSON
    ]
)


def first_sequence(source_index: int) -> int:
    """The sequence number of row 0 of the source with this place in the order of arrival."""
    return source_index << ROW_BITS


def event_time_us(batch: pa.RecordBatch | pa.Table) -> pa.Array | pa.ChunkedArray:
    """The event times as int64 microseconds since the epoch."""
    return batch.column(EVENT_TIME).cast(pa.int64())
