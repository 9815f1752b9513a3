"""A topic read without end: a splittable DoFn, one element a partition, whose place and watermark are in Beam's checkpoint.

The rules of `transforms.kafka.watermarks` hold here, too: a row is stamped with the watermark of its own partition, and that of
the stream is the least over the partitions, less a microsecond, which Beam computes from the estimators. What an estimator
reported is all that has to be remembered of a partition: the newest event time, or the floor that stands in for it, follows.

A partition that has no record yet holds the stream, unless the source has an `idle` timeout: then one that is read to its
end, and has had nothing new for that long, follows the wall clock at a distance of that timeout.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.metrics import Metrics
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Duration, Timestamp

from transforms.batches import MIN_WATERMARK_US, event_time_us
from transforms.decoding.files import Decoded
from transforms.kafka.client import Topic
from transforms.kafka.messages import split_at
from transforms.kafka.source import KafkaSource, TopicReader
from transforms.sources import Read, stamp_watermark

NO_END = 2**62
_BUNDLE_S = 0.5  # so long a bundle reads at most: what it gave is passed on then, and a checkpoint can be taken
_POLL_S = 0.1
_IDLE_S = 0.1  # a partition without news is asked again after this
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
        read = (
            begin
            | beam.Impulse()
            | "partitions" >> beam.ParDo(_Partitions(self._source, self._until_now)).with_output_types(Partition)
            | "apart" >> beam.Reshuffle()
            | "read"
            >> beam.ParDo(_ReadPartition(self._source, self._idle_us, self._count)).with_outputs("dead_letters", main="batches")
        )
        for collection in (read.batches, read.dead_letters):
            collection.element_type = pa.RecordBatch
        return Read(read.batches, read.dead_letters)


class _Numbers(RestrictionProvider):
    """The restriction of `_Partitions`: which partitions were given."""

    def initial_restriction(self, element: bytes) -> OffsetRange:
        return OffsetRange(0, NO_END)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: bytes, restriction: OffsetRange) -> float:
        return 1.0

    def split(self, element: bytes, restriction: OffsetRange) -> Iterator[OffsetRange]:
        yield restriction

    def truncate(self, element: bytes, restriction: OffsetRange) -> None:
        return None


class _Partitions(beam.DoFn):
    """The partitions of a topic, also those that are added later; their rows from before they were found are late."""

    def __init__(self, source: KafkaSource, until_now: bool) -> None:
        self._source, self._until_now = source, until_now

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        _: bytes,
        tracker: beam.DoFn.RestrictionParam = beam.DoFn.RestrictionParam(_Numbers()),
        watermark: beam.DoFn.WatermarkEstimatorParam = beam.DoFn.WatermarkEstimatorParam(
            ManualWatermarkEstimator.default_provider()
        ),
    ) -> Iterator[TimestampedValue]:
        first = tracker.current_restriction().start
        topic = Topic(self._source.client, self._source.topic)
        try:
            state = topic.state()
        finally:
            topic.close()
        at_start = first == 0
        for number in sorted(state.high):
            if number < first:
                continue
            if not tracker.try_claim(number):
                return
            # One that comes later begins at its first record, and the stream does not wait for it.
            start = state.low[number]
            end = state.high[number] if self._until_now else NO_END
            time_of = MIN_TIMESTAMP if at_start else Timestamp.now()
            if end > start:
                yield TimestampedValue(Partition(number, start, end), time_of)
        if self._until_now:
            tracker.try_claim(NO_END)
            return
        now = Timestamp.now()
        if watermark.current_watermark() is None or now > watermark.current_watermark():
            watermark.set_watermark(now)
        tracker.defer_remainder(Duration(seconds=_GROWTH_S))


class _Offsets(RestrictionProvider):
    """The restriction of `_ReadPartition`: the offsets that are still to be read."""

    def initial_restriction(self, element: Partition) -> OffsetRange:
        return OffsetRange(element.start, element.end)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: Partition, restriction: OffsetRange) -> float:
        return 1.0

    def split(self, element: Partition, restriction: OffsetRange) -> Iterator[OffsetRange]:
        yield restriction  # a partition is read in order, in one place

    def truncate(self, element: Partition, restriction: OffsetRange) -> None:
        return None


class _ReadPartition(beam.DoFn):
    def __init__(self, source: KafkaSource, idle_us: int | None, count: str) -> None:
        self._source, self._idle_us = source, idle_us
        self._records = Metrics.counter("midstream", count)
        self._dead_letters = Metrics.counter("midstream", "dead_letters")

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        partition: Partition,
        began: Timestamp = beam.DoFn.TimestampParam,
        tracker: beam.DoFn.RestrictionParam = beam.DoFn.RestrictionParam(_Offsets()),
        watermark: beam.DoFn.WatermarkEstimatorParam = beam.DoFn.WatermarkEstimatorParam(
            ManualWatermarkEstimator.default_provider()
        ),
    ) -> Iterator[TimestampedValue | beam.pvalue.TaggedOutput]:
        position = tracker.current_restriction().start
        newest_us = self._newest_us(watermark.current_watermark() or began)
        open_reader = _readers.take(self._source, partition.number, position)
        reader, decoder = open_reader.reader, self._source.decoder(partition.number)
        until = time.monotonic() + _BUNDLE_S
        while time.monotonic() < until:
            came = reader.poll(_POLL_S, expected=False)
            for _, messages in came:
                piece = decoder.decode(messages)
                if piece.next_row > partition.end:
                    piece = split_at(piece, partition.end)[0]
                # Claiming the last offset claims all before it; what was read beyond a split is read again behind it.
                if piece.rows and not tracker.try_claim(piece.next_row - 1):
                    reader.close()
                    return
                if piece.rows:
                    open_reader.resume_at = piece.next_row
                self._count(piece)
                if piece.dead.num_rows:
                    yield beam.pvalue.TaggedOutput("dead_letters", piece.dead)
                if piece.batch.num_rows:
                    batch, newest_us = stamp_watermark(piece.batch, newest_us, self._source.out_of_orderness_us)
                    yield TimestampedValue(batch, Timestamp(micros=int(event_time_us(batch).to_numpy().min())))
            reached = reader.positions[partition.number]
            self._report(watermark, newest_us)
            if reached >= partition.end:
                tracker.try_claim(partition.end)
                reader.close()
                return
            if came:
                open_reader.news_at = time.monotonic()
                continue
            if self._idle_us is not None and time.monotonic() - open_reader.news_at > self._idle_us / 1e6:
                floor_us = int(time.time() * 1e6) - self._idle_us
                newest_us = max(newest_us, floor_us + self._source.out_of_orderness_us)
                self._report(watermark, newest_us)
            break
        _readers.put(self._source, partition.number, open_reader)
        tracker.defer_remainder(Duration(seconds=0 if came else _IDLE_S))

    def _newest_us(self, reported: Timestamp) -> int:
        """The newest event time of the partition, as its watermark tells."""
        if reported <= MIN_TIMESTAMP:
            return MIN_WATERMARK_US
        return reported.micros + 1 + self._source.out_of_orderness_us

    def _report(self, watermark: beam.DoFn.WatermarkEstimatorParam, newest_us: int) -> None:
        if newest_us <= MIN_WATERMARK_US:
            return
        reached = Timestamp(micros=newest_us - self._source.out_of_orderness_us - 1)
        if watermark.current_watermark() is None or reached > watermark.current_watermark():
            watermark.set_watermark(reached)

    def _count(self, piece: Decoded) -> None:
        self._records.inc(piece.rows)
        self._dead_letters.inc(piece.dead.num_rows)


@dataclass
class _OpenReader:
    reader: TopicReader
    news_at: float
    resume_at: int  # where the restriction begins that it can go on with; the reader may stand behind a gap


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
