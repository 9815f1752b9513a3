"""A topic read without end: one key a partition, whose place is in Beam's state, woken by a timer again and again.

The rules of `transforms.kafka.watermarks` hold here, too: a row is stamped with the watermark of its own partition, and that of
the stream is the least over the partitions, less a microsecond. Each partition holds it there by its timer, until the timer is
set anew behind the next rows.

Beam's way to write a source, a splittable DoFn, was tried first. On Flink every time that it lets go of the thread costs a new
state of its own, by name, which no checkpoint forgets: 1.2 KB each, 36 KB/s with three partitions at rest. A timer that is set
again costs nothing.

A partition that has no record yet holds the stream, unless the source has an `idle` timeout: then one that is read to its
end, and has had nothing new for that long, follows the wall clock at a distance of that timeout.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from transforms.batches import MIN_WATERMARK_US, event_time_us
from transforms.continuous.advance import LAST_US
from transforms.decoding.files import Decoded
from transforms.kafka.client import Topic
from transforms.kafka.messages import split_at
from transforms.kafka.source import KafkaSource, TopicReader
from transforms.sources import Read, stamp_watermark

NO_END = 2**62
_POLL_S = 0.1  # so long a poll waits for a full batch
_IDLE_S = 0.1  # a partition without news is asked again after this
_END = Timestamp(micros=LAST_US + 3_600_000_000)  # a partition that was read to its end holds the stream no more than this
_AT_END_S = 3600.0  # and goes on holding that
_GROWTH_S = 10.0  # a topic is looked at for new partitions this often
_PREFETCH = {"queued.max.messages.kbytes": 16384}


@dataclass(frozen=True)
class Partition:
    """A part of a topic to read on and on.

    Attributes:
        number: of the partition.
        start, end: the first offset to read, and the first one not to; `NO_END` goes on for ever.
    """

    number: int
    start: int
    end: int = NO_END


class ReadTopic(beam.PTransform):
    """Reads a topic without end (or, with `until_now`, up to where it ends when the job starts).

    Counts `records` and `dead_letters` (of them) in the metrics namespace `midstream`.
    """

    def __init__(
        self, source: KafkaSource, *, idle_us: int | None = None, until_now: bool = False, count: str = "records"
    ) -> None:
        """Creates the transform.

        Args:
            source: the topic.
            idle_us: after so long without news a partition does not hold the stream; None: it always does.
            until_now: read what is there when the job starts, and end.
            count: name of the counter of records.
        """
        super().__init__()
        self._source, self._idle_us, self._until_now, self._count = source, idle_us, until_now, count

    def expand(self, begin: beam.pvalue.PBegin) -> Read:
        partitions = _Partitions(self._source, self._until_now)
        reader = ReadPartition(self._source, self._idle_us, self._count)
        read = (
            begin
            | beam.Impulse()
            | "one" >> beam.Map(lambda _: (0, b"")).with_output_types(tuple[int, bytes])
            | "partitions" >> beam.ParDo(partitions).with_output_types(tuple[int, Partition])
            | "read" >> beam.ParDo(reader).with_outputs("dead_letters", main="batches")
        )
        for collection in (read.batches, read.dead_letters):
            collection.element_type = pa.RecordBatch
        return Read(read.batches, read.dead_letters)


def set_and_hold(timer: beam.DoFn.TimerParam, at: Timestamp, hold: Timestamp) -> None:
    """Sets a timer of processing time that holds the watermark of what its DoFn gives at a time of its own.

    The Fn API has a field for it and Beam's Python no way to fill it: it takes the timestamp of the element at hand. The
    version of Beam is pinned, and every comparison of a continuous job with a batch would tell.
    """
    timer._input_timestamp = hold
    timer.set(at)


class _Partitions(beam.DoFn):
    """The partitions of a topic, also those that are added later: what those bring from before they were found is late."""

    GIVEN = ReadModifyWriteStateSpec("given", BytesCoder())  # JSON: how many partitions were given
    LOOK = TimerSpec("look", TimeDomain.REAL_TIME)

    def __init__(self, source: KafkaSource, until_now: bool) -> None:
        self._source, self._until_now = source, until_now

    def process(
        self,
        _: tuple[int, bytes],
        given: beam.DoFn.StateParam = beam.DoFn.StateParam(GIVEN),
        look: beam.DoFn.TimerParam = beam.DoFn.TimerParam(LOOK),
    ) -> Iterator[TimestampedValue]:
        if given.read() is None:  # Flink starts the stream anew behind a savepoint
            yield from self._new(given, look, MIN_TIMESTAMP)

    @on_timer(LOOK)
    def look_again(
        self,
        given: beam.DoFn.StateParam = beam.DoFn.StateParam(GIVEN),
        look: beam.DoFn.TimerParam = beam.DoFn.TimerParam(LOOK),
    ) -> Iterator[TimestampedValue]:
        if self._until_now:
            set_and_hold(look, Timestamp.now() + _AT_END_S, _END)
        else:
            yield from self._new(given, look, Timestamp.now())

    def _new(self, given: beam.DoFn.StateParam, look: beam.DoFn.TimerParam, time_of: Timestamp) -> Iterator[TimestampedValue]:
        topic = Topic(self._source.client, self._source.topic)
        try:
            state = topic.state()
        finally:
            topic.close()
        known = json.loads(given.read() or b"0")
        for number in sorted(state.high)[known:]:
            end = state.high[number] if self._until_now else NO_END
            if end > state.low[number]:
                yield TimestampedValue((number, Partition(number, state.low[number], end)), time_of)
        given.write(json.dumps(max(known, len(state.high))).encode())
        now = Timestamp.now()
        if self._until_now:
            set_and_hold(look, now + _AT_END_S, _END)
        else:
            set_and_hold(look, now + _GROWTH_S, now)


class ReadPartition(beam.DoFn):
    """Takes (number, `Partition`), once each; gives batches and dead letters."""

    PLACE = ReadModifyWriteStateSpec("place", BytesCoder())  # JSON: number, next offset, end, newest event time (us)
    WAKE = TimerSpec("wake", TimeDomain.REAL_TIME)

    def __init__(self, source: KafkaSource, idle_us: int | None, count: str) -> None:
        self._source, self._idle_us = source, idle_us
        self._records = Metrics.counter("midstream", count)
        self._dead_letters = Metrics.counter("midstream", "dead_letters")

    def process(
        self,
        keyed: tuple[int, Partition],
        began: Timestamp = beam.DoFn.TimestampParam,
        place: beam.DoFn.StateParam = beam.DoFn.StateParam(PLACE),
        wake: beam.DoFn.TimerParam = beam.DoFn.TimerParam(WAKE),
    ) -> None:
        if place.read() is not None:  # see `_Partitions`
            return
        _, partition = keyed
        floor_us = MIN_WATERMARK_US if began <= MIN_TIMESTAMP else began.micros + self._source.out_of_orderness_us
        place.write(json.dumps([partition.number, partition.start, partition.end, floor_us]).encode())
        set_and_hold(wake, Timestamp.now(), self._hold(floor_us))

    @on_timer(WAKE)
    def read(
        self,
        place: beam.DoFn.StateParam = beam.DoFn.StateParam(PLACE),
        wake: beam.DoFn.TimerParam = beam.DoFn.TimerParam(WAKE),
    ) -> Iterator[TimestampedValue | beam.pvalue.TaggedOutput]:
        number, offset, end, newest_us = json.loads(place.read())
        if offset >= end:
            set_and_hold(wake, Timestamp.now() + _AT_END_S, _END)
            return
        open_reader = _readers.take(self._source, number, offset)
        reader, decoder = open_reader.reader, self._source.decoder(number)
        came = reader.poll(_POLL_S, expected=False)
        for _, messages in came:
            piece = decoder.decode(messages)
            if piece.next_row > end:
                piece = split_at(piece, end)[0]
            self._count(piece)
            if piece.dead.num_rows:
                yield beam.pvalue.TaggedOutput("dead_letters", piece.dead)
            if piece.batch.num_rows:
                batch, newest_us = stamp_watermark(piece.batch, newest_us, self._source.out_of_orderness_us)
                yield TimestampedValue(batch, Timestamp(micros=int(event_time_us(batch).to_numpy().min())))
        offset = open_reader.resume_at = reader.positions[number]
        if came:
            open_reader.news_at = time.monotonic()
        elif self._idle_us is not None and time.monotonic() - open_reader.news_at > self._idle_us / 1e6:
            floor_us = int(time.time() * 1e6) - self._idle_us
            newest_us = max(newest_us, floor_us + self._source.out_of_orderness_us)
        place.write(json.dumps([number, offset, end, newest_us]).encode())
        if offset >= end:
            reader.close()
            set_and_hold(wake, Timestamp.now() + _AT_END_S, _END)
            return
        _readers.put(self._source, number, open_reader)
        set_and_hold(wake, Timestamp.now() + (0 if came else _IDLE_S), self._hold(newest_us))

    def _hold(self, newest_us: int) -> Timestamp:
        """The watermark of the partition, less a microsecond."""
        if newest_us <= MIN_WATERMARK_US:
            return MIN_TIMESTAMP
        return Timestamp(micros=newest_us - self._source.out_of_orderness_us - 1)

    def _count(self, piece: Decoded) -> None:
        self._records.inc(piece.rows)
        self._dead_letters.inc(piece.dead.num_rows)


@dataclass
class _OpenReader:
    reader: TopicReader
    news_at: float
    resume_at: int  # the next offset, as it was noted


class _Readers:
    """The readers of this process that wait for their next bundle: opening one takes longer than a bundle."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[tuple[KafkaSource, int], _OpenReader] = {}

    def take(self, source: KafkaSource, partition: int, position: int) -> _OpenReader:
        """A reader that stands at a position. One that stands elsewhere, as after a recovery, is closed."""
        with self._lock:
            found = self._waiting.pop((source, partition), None)
        if found is not None:
            if found.resume_at == position:
                return found
            found.reader.close()
        reader = TopicReader(source, {partition: position}, **_PREFETCH)
        reader.check_start(partition)
        return _OpenReader(reader, time.monotonic(), position)

    def put(self, source: KafkaSource, partition: int, reader: _OpenReader) -> None:
        with self._lock:
            before = self._waiting.pop((source, partition), None)
            self._waiting[source, partition] = reader
        if before is not None:
            before.reader.close()


_readers = _Readers()
