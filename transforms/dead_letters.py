"""Records that could not be used, with the reason."""

from __future__ import annotations

import json

import pyarrow as pa

from transforms.batches import DEAD_LETTER_SCHEMA, RESERVED, ROW, SEQUENCE, SOURCE


def dead_letters(batch: pa.RecordBatch, reason: str, detail: str) -> pa.RecordBatch:
    """Rows of a stream as dead letters, all for one reason.

    Args:
        batch: rows with the reserved columns.
        reason: a short word to group by.
        detail: what was expected and what came.
    """
    rows = batch.num_rows
    own = batch.select([name for name in batch.schema.names if name not in RESERVED])
    # Per row, in Python: dead letters are few, and a person is going to read them.
    records = [json.dumps(record, default=str) for record in own.to_pylist()]
    return pa.record_batch(
        [
            batch.column(SOURCE).cast(pa.string()),
            batch.column(ROW),
            batch.column(SEQUENCE),
            pa.repeat(reason, rows),
            pa.repeat(detail, rows),
            pa.array(records, pa.string()),
        ],
        schema=DEAD_LETTER_SCHEMA,
    )
