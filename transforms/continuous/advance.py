"""Runs an `Operator` in a stream without end: its state is Beam's, its watermark is Beam's, and timers call it.

Rows that come are put into a bag. A timer in event time, always the earliest at which the operator may have something to give,
hands the bag to the operator together with its state. Since an operator's result does not depend on how its stream is cut, what
comes out is what micro-batches give.

A timer that fires at T says that the watermark has reached T, and the operator is told T and not more. All that a step upstream
gave for T or before has then arrived: a runner passes a watermark on only behind what its timers gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder, VarIntCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow, TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from transforms.batches import MAX_WATERMARK_US, MIN_WATERMARK_US
from transforms.operators import Operator, Tables
from transforms.stateful import Shard, in_order, pack_state, unpack_state
from transforms.windowing import times_of

FIRST_US = MIN_TIMESTAMP.micros
# Where a stream that ends is led, and what waits for its end is woken. A day before the end of Beam's time: at that itself,
# Flink takes away all state, also that of a source whose own input, a single element, ended long ago.
LAST_US = GlobalWindow().max_timestamp().micros - 86_400_000_000


class AdvanceLive(beam.PTransform):
    """Feeds an operator; gives a dict of PCollections of RecordBatches, one per output tag of the operator."""

    def __init__(self, operator: Operator, name: str, *, tick_us: int, shard_by: tuple[str, ...] = (), shards: int = 1) -> None:
        """Creates the transform.

        Args:
            operator: what to run; a picklable value.
            name: of the step.
            tick_us: the operator is called at multiples of this in event time; a longer one costs latency and saves work.
            shard_by: rows that agree in these columns go to the same shard; they must exist in every input.
            shards: how many shards run side by side.
        """
        super().__init__(label=name)
        if tick_us < 1:
            raise ValueError(f"{name}: expected ticks of at least 1 microsecond, got {tick_us}")
        self._operator, self._tick_us, self._shard_by, self._shards = operator, tick_us, shard_by, shards

    def expand(self, pcolls: Mapping[str, beam.PCollection]) -> dict[str, beam.PCollection]:
        hint = tuple[int, tuple[str, pa.RecordBatch]]
        keyed = [
            pcoll | f"shard {tag}" >> beam.ParDo(Shard(tag, self._shard_by, self._shards)).with_output_types(hint)
            for tag, pcoll in pcolls.items()
        ]
        main, *others = self._operator.outputs
        given = (
            keyed
            | "gather" >> beam.Flatten()
            | "advance"
            >> beam.ParDo(AdvanceShard(self._operator, self._tick_us))
            .with_output_types(pa.RecordBatch)
            .with_outputs(*others, main=main)
        )
        return {tag: given[tag] for tag in self._operator.outputs}


class AdvanceShard(beam.DoFn):
    """One shard: takes (shard, (tag, batch))."""

    CAME = BagStateSpec("came", BytesCoder())
    STATE = ReadModifyWriteStateSpec("state", BytesCoder())
    CLOCK = ReadModifyWriteStateSpec("clock", VarIntCoder())  # the watermark of the last call, microseconds
    NEXT = ReadModifyWriteStateSpec("next", VarIntCoder())  # when the timer is set to, microseconds
    WAKE = TimerSpec("wake", TimeDomain.WATERMARK)

    def __init__(self, operator: Operator, tick_us: int) -> None:
        self._operator, self._tick_us = operator, tick_us

    def process(
        self,
        keyed: tuple[int, tuple[str, pa.RecordBatch]],
        came: beam.DoFn.StateParam = beam.DoFn.StateParam(CAME),
        clock: beam.DoFn.StateParam = beam.DoFn.StateParam(CLOCK),
        following: beam.DoFn.StateParam = beam.DoFn.StateParam(NEXT),
        wake: beam.DoFn.TimerParam = beam.DoFn.TimerParam(WAKE),
    ) -> None:
        _, (tag, batch) = keyed
        if not batch.num_rows:
            return
        came.add(pack_state({tag: pa.Table.from_batches([batch])}))
        # For a row behind the watermark a timer at its time would fire at once, and tell a time that is over.
        earliest_us = max(int(times_of(batch).min()), _or(clock.read(), MIN_WATERMARK_US))
        self._wake_at(earliest_us, following.read(), following, wake)

    @on_timer(WAKE)
    def advance(
        self,
        fired: Timestamp = beam.DoFn.TimestampParam,
        came: beam.DoFn.StateParam = beam.DoFn.StateParam(CAME),
        state: beam.DoFn.StateParam = beam.DoFn.StateParam(STATE),
        clock: beam.DoFn.StateParam = beam.DoFn.StateParam(CLOCK),
        following: beam.DoFn.StateParam = beam.DoFn.StateParam(NEXT),
        wake: beam.DoFn.TimerParam = beam.DoFn.TimerParam(WAKE),
    ) -> Iterator[TimestampedValue | TaggedOutput]:
        watermark_us = MAX_WATERMARK_US if fired.micros >= LAST_US else max(fired.micros, MIN_WATERMARK_US)
        inputs = _tables(came.read())
        before = state.read()
        after, given = self._operator.advance(unpack_state(before) if before else {}, inputs, watermark_us)
        came.clear()
        state.write(pack_state(after))
        clock.write(watermark_us)
        following.clear()
        wake_us = self._operator.wake_us(after)
        if wake_us is not None and watermark_us < MAX_WATERMARK_US:
            self._wake_at(max(wake_us, watermark_us + 1), None, following, wake)
        main = self._operator.outputs[0]
        for tag, table in given.items():
            for batch in table.combine_chunks().to_batches():
                if batch.num_rows:
                    yield batch if tag == main else TaggedOutput(tag, batch)

    def _wake_at(self, time_us: int, set_us: int | None, following: beam.DoFn.StateParam, wake: beam.DoFn.TimerParam) -> None:
        """Sets the timer to the first tick at or after a time, unless it is set to an earlier one."""
        tick_us = min(max(-(-time_us // self._tick_us) * self._tick_us, FIRST_US), LAST_US)
        if set_us is None or tick_us < set_us:
            following.write(tick_us)
            wake.set(Timestamp(micros=tick_us))


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _tables(packed: Iterable[bytes]) -> Tables:
    batches: dict[str, list[pa.RecordBatch]] = {}
    for piece in packed:
        for tag, table in unpack_state(piece).items():
            batches.setdefault(tag, []).extend(table.to_batches())
    return in_order(batches)
