"""Rows in order of event time: what came out of order is held until nothing earlier can come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from transforms.batches import SEQUENCE, WATERMARK
from transforms.grouping import concat
from transforms.operators import State, Tables
from transforms.windowing import times_of


@dataclass(frozen=True)
class InOrder:
    """Gives the rows of input `in` sorted by (event_time, sequence), each once its event time is at or below the watermark.

    A row that is late (its event time is before its own `watermark_us`) goes to `late`, unchanged, in order of arrival. Rows
    without that column are never late; they must not come behind the watermark, or they are out of place.

    A row at the watermark itself need not wait: another one with the same event time that is still to come has a higher
    sequence. State: `rows`, the rows ahead of the watermark; as many as the stream is out of order.
    """

    outputs: ClassVar[tuple[str, ...]] = ("out", "late")

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        pieces = [state["rows"]] if "rows" in state else []
        given: dict[str, pa.Table] = {}
        if (came := inputs.get("in")) is not None:
            if WATERMARK in came.schema.names:
                late = times_of(came) < came.column(WATERMARK).to_numpy()
                given["late"] = came.filter(pa.array(late))
                came = came.filter(pa.array(~late))
            pieces.append(came)
        if not pieces:
            return {}, {}
        rows = concat(pieces)
        times = times_of(rows)
        ready = np.flatnonzero(times <= watermark_us)
        in_order = ready[np.lexsort((rows.column(SEQUENCE).to_numpy()[ready], times[ready]))]
        given["out"] = rows.take(pa.array(in_order))
        return {"rows": rows.filter(pa.array(times > watermark_us))}, given

    def wake_us(self, state: State) -> int | None:
        return int(times_of(state["rows"]).min()) if "rows" in state and state["rows"].num_rows else None
