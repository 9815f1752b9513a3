"""Learning beside finding out what was known: while a piece of the stream is learnt, the next one is given its context.

Both take about as long, and neither can be spread over cores: each row of the context follows from those before it, and so does
each version. But by the contract of operators (`transforms.operators`) the result does not depend on how a stream is cut. So
the rows of a run are cut into pieces, and one thread is always a piece ahead of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from models import syncing
from transforms.batches import SEQUENCE
from transforms.grouping import places_of
from transforms.operators import Operator, State, Tables, own_state, prefixed
from transforms.windowing import times_of

PIECE_RECORDS = 8192
RECORDS, LABELS = "records", "labels"
_CONTEXT, _LEARN = "context", "learn"  # its parts of the state


@dataclass(frozen=True)
class OverlappedLearning:
    """An `Operator`: inputs `records` and `labels`, as `own_labels` gives them.

    Both go to `context`; what it gives, and the labels, go to `learn`. Outputs: that of `context`, and those of `learn`.

    Attributes:
        registry: root folder of the registry that is learnt into.
        context: gives each record a context (`transforms.label_context`).
        learn: learns from records and labels.
        piece_records: records of a piece; without effect on the result.
    """

    registry: str
    context: Operator
    learn: Operator
    piece_records: int = PIECE_RECORDS

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*self.context.outputs, *self.learn.outputs)

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        given: dict[str, list[pa.Table]] = {}
        known: State = own_state(state, _CONTEXT)
        learnt: State = own_state(state, _LEARN)
        (out,) = self.context.outputs
        pieces = _pieces(inputs, watermark_us, self.piece_records)
        # No version is activated before all of them are on the disk: one wait for all pieces.
        with syncing.synced_together(self.registry), ThreadPoolExecutor(1, "context") as beside:
            piece = next(pieces, None)
            ahead = piece and beside.submit(self.context.advance, known, *piece)
            while piece is not None and ahead is not None:
                (own, until_us), (known, tables) = piece, ahead.result()
                piece = next(pieces, None)
                ahead = piece and beside.submit(self.context.advance, known, *piece)
                to_learn = {LABELS: own[LABELS]} if LABELS in own else {}
                if out in tables:
                    to_learn[RECORDS] = tables[out]
                learnt, said = self.learn.advance(learnt, to_learn, until_us)
                for tag, table in (*tables.items(), *said.items()):
                    given.setdefault(tag, []).append(table)
        return prefixed(_CONTEXT, known) | prefixed(_LEARN, learnt), {tag: _together(tables) for tag, tables in given.items()}

    def wake_us(self, state: State) -> int | None:
        raise NotImplementedError("a continuous job has the two as steps of their own")


def _together(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="default").unify_dictionaries().combine_chunks()


def _pieces(inputs: Tables, watermark_us: int, records_each: int) -> Iterator[tuple[Tables, int]]:
    """The inputs in pieces, each with the watermark behind it, which the rows of the pieces after it are not below."""
    records, labels = inputs.get(RECORDS), inputs.get(LABELS)
    if records is None or records.num_rows <= records_each:
        yield inputs, watermark_us
        return
    times = times_of(records)
    starts = np.arange(records_each, records.num_rows, records_each)
    # No record from there on is earlier, nor is a label that comes with it.
    ends = np.minimum(np.minimum.accumulate(times[::-1])[::-1][starts], watermark_us)
    of_label = None
    if labels is not None:
        place, found = places_of(labels.column(SEQUENCE).to_numpy(), records.column(SEQUENCE).to_numpy())
        of_label = np.where(found, place // records_each, 0)  # one without a record may come at once
    stops = [*starts.tolist(), records.num_rows]
    for number, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True)):
        piece = {RECORDS: records.slice(start, stop - start)}
        if labels is not None:
            piece[LABELS] = labels.filter(pa.array(of_label == number))
        yield piece, int(ends[number]) if number < len(ends) else watermark_us
