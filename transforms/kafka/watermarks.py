"""How far a stream of several partitions has come.

Only the order *within* a partition is a fact; how the partitions of a topic come to be interleaved is chance, and differs from
run to run. So that a batch, micro-batches of any size and a continuous job agree, two rules hold everywhere:

1. A row's `watermark_us`, by which it is late or not, is the watermark **of its own partition** just before it: the newest
   event time there so far, less the out-of-orderness that is allowed.
2. The watermark of the stream, up to which rows are released in order and windows are closed, is the **least over the
   partitions, less a microsecond**. A row that is not late lies at or above the watermark of its partition, so above that of
   the stream: nothing that is released can be changed by it. The microsecond is for rows at the same instant in another
   partition: they may have lower sequence numbers, and must not come behind.

A partition without any record yet counts, and holds the stream: its first record may be of any time, so whatever were
released before would depend on when it came. That is safe, and the default. Where a partition may stay empty or fall silent, a
job that wants order (windows, lags, labels) names an `idle` timeout: a partition that has been read to its end and has had
nothing new for that long no longer holds the stream, and what comes in it later is measured against the watermark that the
stream has by then (its **floor**): a row before that is late, and becomes a dead letter with that reason; it is never put where
it does not belong. Which rows that is depends on the clock, so the decision is written into the offset log before it is acted
upon, and a run that is done again decides the same. A partition that is added to a topic while a job runs gets the watermark
of the stream as its floor in the same way.

A job whose steps look at one record at a time needs no watermark: it predicts each record as it comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from transforms.batches import MIN_WATERMARK_US


@dataclass(frozen=True)
class Progress:
    """How far one partition was read.

    Attributes:
        offset: the first one that was not read.
        newest_us: its newest event time; `MIN_WATERMARK_US` if there is none. With a floor, at least that plus the
            out-of-orderness: stamping its next row is then the same sum in all cases.
        idle: whether it does not hold the stream.
    """

    offset: int
    newest_us: int = MIN_WATERMARK_US
    idle: bool = False

    def watermark_us(self, out_of_orderness_us: int) -> int:
        """Event times below this are late in this partition."""
        return max(self.newest_us - out_of_orderness_us, MIN_WATERMARK_US)

    def behind(self, stream_us: int, out_of_orderness_us: int) -> Progress:
        """The partition where it may not disturb a stream that has come this far."""
        floor_us = MIN_WATERMARK_US if stream_us <= MIN_WATERMARK_US else stream_us + 1 + out_of_orderness_us
        return replace(self, newest_us=max(self.newest_us, floor_us))


def stream_watermark_us(partitions: Iterable[Progress], out_of_orderness_us: int, before_us: int = MIN_WATERMARK_US) -> int:
    """The watermark of a stream.

    Args:
        partitions: all of them.
        out_of_orderness_us: how far a record may come out of order within its partition.
        before_us: the watermark that the stream had; it never goes back.
    """
    held = [part.watermark_us(out_of_orderness_us) for part in partitions if not part.idle]
    return max([before_us, MIN_WATERMARK_US, *([min(held) - 1] if held else [])])


def holders(partitions: Mapping[int, Progress], out_of_orderness_us: int) -> list[int]:
    """The partitions that hold the stream at the watermark it has."""
    held = {number: part.watermark_us(out_of_orderness_us) for number, part in partitions.items() if not part.idle}
    return sorted(number for number, watermark_us in held.items() if watermark_us == min(held.values()))
