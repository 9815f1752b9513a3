"""A topic read without end: a timer that wakes one reader of all its partitions again and again, their places in Beam's state.

The rules of `transforms.kafka.watermarks` hold here, too: a row is stamped with the watermark of its own partition, and that of
the stream is the least over the partitions, less a microsecond. The reader holds it there by its timer.

Beam's way to write a source, a splittable DoFn, was tried first. On Flink every time that it lets go of the thread costs a new
state of its own, by name, which no checkpoint forgets: 1.2 KB each, 36 KB/s with three partitions at rest. A timer that is set
again costs nothing. One a partition was tried next: while one partition is being read in one bundle, Beam's Flink runner goes
by what the others hold, and the watermark runs away. So there is one timer for all.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from models.kafka_client import Topic
from transforms.batches import MIN_WATERMARK_US, event_time_us
from transforms.continuous.advance import LAST_US
from transforms.kafka.messages import split_at
from transforms.kafka.source import KafkaSource, TopicReader
from transforms.kafka.watermarks import Progress, stream_watermark_us
from transforms.sources import Read, stamp_watermark

NO_END = 2**62
_POLL_S = 0.1  # so long a poll waits for a full batch
_IDLE_S = 0.1  # a topic without news is asked again after this
_END = Timestamp(micros=LAST_US + 3_600_000_000)  # a topic that was read to its end holds the stream no more than this
_AT_END_S = 3600.0  # and goes on holding that
_GROWTH_S = 10.0  # a topic is looked at for new partitions this often
_PREFETCH = {"queued.max.messages.kbytes": 16384}


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
            idle_us: after so long without news, at its end, a partition does not hold the stream; None: it always does.
            until_now: read what is there when the job starts, and then lead the stream to its end.
            count: name of the counter of records.
        """
        super().__init__()
        self._source, self._idle_us, self._until_now, self._count = source, idle_us, until_now, count

    def expand(self, begin: beam.pvalue.PBegin) -> Read:
        reader = ReadLive(self._source, self._idle_us, self._until_now, self._count)
        read = (
            begin
            | beam.Impulse()
            | "one" >> beam.Map(lambda _: (0, b"")).with_output_types(tuple[int, bytes])
            | "keep open" >> beam.ParDo(_KeepOpen()).with_output_types(tuple[int, bytes])
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


class _KeepOpen(beam.DoFn):
    """Passes an element on, and keeps its stream from ending.

    Behind an impulse the watermark is at the end of time, and Flink takes away the state and the timers of what stands there.
    """

    AGAIN = TimerSpec("again", TimeDomain.REAL_TIME)

    def process(
        self, element: tuple[int, bytes], again: beam.DoFn.TimerParam = beam.DoFn.TimerParam(AGAIN)
    ) -> Iterator[tuple[int, bytes]]:
        set_and_hold(again, Timestamp.now() + _AT_END_S, _END)
        yield element

    @on_timer(AGAIN)
    def hold_on(self, again: beam.DoFn.TimerParam = beam.DoFn.TimerParam(AGAIN)) -> None:
        set_and_hold(again, Timestamp.now() + _AT_END_S, _END)


@dataclass(frozen=True)
class Place:
    """How far a topic was read.

    Attributes:
        partitions: how far each of them.
        ends: the first offset of each that is not to be read.
        stream_us: the watermark of the stream.
    """

    partitions: Mapping[int, Progress]
    ends: Mapping[int, int]
    stream_us: int = MIN_WATERMARK_US

    def pack(self) -> bytes:
        """As Beam keeps it."""
        parts = [
            [number, part.offset, part.newest_us, part.idle, self.ends[number]] for number, part in self.partitions.items()
        ]
        return json.dumps([self.stream_us, parts]).encode()

    @staticmethod
    def unpack(packed: bytes) -> Place:
        """The inverse of `pack`."""
        stream_us, parts = json.loads(packed)
        partitions = {number: Progress(offset, newest_us, idle) for number, offset, newest_us, idle, _ in parts}
        return Place(partitions, {number: end for number, *_, end in parts}, stream_us)

    @property
    def open(self) -> dict[int, int]:
        """The next offset of each partition that is not at its end."""
        return {n: part.offset for n, part in self.partitions.items() if part.offset < self.ends[n]}

    def moved_on(self, partitions: Mapping[int, Progress], out_of_orderness_us: int) -> Place:
        """The place after more was read."""
        holding = [part for number, part in partitions.items() if part.offset < self.ends[number]]
        stream_us = stream_watermark_us(holding, out_of_orderness_us, self.stream_us)
        return replace(self, partitions=partitions, stream_us=stream_us)


class ReadLive(beam.DoFn):
    """Takes one element, whatever it is; gives batches and dead letters for ever."""

    PLACE = ReadModifyWriteStateSpec("place", BytesCoder())
    WAKE = TimerSpec("wake", TimeDomain.REAL_TIME)

    def __init__(self, source: KafkaSource, idle_us: int | None, until_now: bool, count: str) -> None:
        self._source, self._idle_us, self._until_now = source, idle_us, until_now
        self._records = Metrics.counter("midstream", count)
        self._dead_letters = Metrics.counter("midstream", "dead_letters")

    def process(
        self,
        _: tuple[int, bytes],
        place: beam.DoFn.StateParam = beam.DoFn.StateParam(PLACE),
        wake: beam.DoFn.TimerParam = beam.DoFn.TimerParam(WAKE),
    ) -> None:
        if place.read() is not None:  # Flink starts the stream anew behind a savepoint
            return
        lows, highs = self._offsets()
        ends = {number: high if self._until_now else NO_END for number, high in highs.items()}
        place.write(Place({number: Progress(low) for number, low in lows.items()}, ends).pack())
        set_and_hold(wake, Timestamp.now(), MIN_TIMESTAMP)

    @on_timer(WAKE)
    def read(
        self,
        noted: beam.DoFn.StateParam = beam.DoFn.StateParam(PLACE),
        wake: beam.DoFn.TimerParam = beam.DoFn.TimerParam(WAKE),
    ) -> Iterator[TimestampedValue | beam.pvalue.TaggedOutput]:
        place = Place.unpack(noted.read())
        if not place.open:
            set_and_hold(wake, Timestamp.now() + _AT_END_S, _END)
            return
        reader = _readers.take(self._source, place.open)
        if not self._until_now and time.monotonic() - reader.looked_at > _GROWTH_S:
            reader.looked_at = time.monotonic()
            place = self._with_new(place, reader)
        partitions = dict(place.partitions)
        came = reader.poll()
        for number, messages in came:
            part = partitions[number]
            if part.idle:  # what it brings now is measured by where the stream is
                part = replace(part.behind(place.stream_us, self._source.out_of_orderness_us), idle=False)
            piece = self._source.decoder(number).decode(messages)
            if piece.next_row > place.ends[number]:
                piece = split_at(piece, place.ends[number])[0]
            self._records.inc(piece.rows)
            self._dead_letters.inc(piece.dead.num_rows)
            if piece.dead.num_rows:
                yield beam.pvalue.TaggedOutput("dead_letters", piece.dead)
            newest_us = part.newest_us
            if piece.batch.num_rows:
                batch, newest_us = stamp_watermark(piece.batch, newest_us, self._source.out_of_orderness_us)
                yield TimestampedValue(batch, Timestamp(micros=int(event_time_us(batch).to_numpy().min())))
            partitions[number] = replace(part, newest_us=newest_us)
        for number, offset in reader.topic.positions.items():
            partitions[number] = replace(partitions[number], offset=offset, idle=reader.idle(number, self._idle_us))
        place = place.moved_on(partitions, self._source.out_of_orderness_us)
        noted.write(place.pack())
        _readers.put(self._source, reader, place.open)
        if not place.open:
            hold = _END
        else:
            hold = MIN_TIMESTAMP if place.stream_us <= MIN_WATERMARK_US else Timestamp(micros=place.stream_us)
        set_and_hold(wake, Timestamp.now() + (0 if came else _IDLE_S), hold)

    def _with_new(self, place: Place, reader: _OpenReader) -> Place:
        """Adds partitions that the topic has got; what those bring from before the stream's watermark is late."""
        lows, _ = self._offsets()
        new = {number: low for number, low in lows.items() if number not in place.partitions}
        for number, low in new.items():
            reader.topic.add(number, low)
            reader.news_at[number] = time.monotonic()
        behind = {n: Progress(low).behind(place.stream_us, self._source.out_of_orderness_us) for n, low in new.items()}
        ends = {**place.ends, **dict.fromkeys(new, NO_END)}
        return replace(place, partitions={**place.partitions, **behind}, ends=ends)

    def _offsets(self) -> tuple[dict[int, int], dict[int, int]]:
        topic = Topic(self._source.client, self._source.topic)
        try:
            state = topic.state()
        finally:
            topic.close()
        return dict(sorted(state.low.items())), state.high


@dataclass
class _OpenReader:
    topic: TopicReader
    resume_at: dict[int, int]  # the next offsets, as they were noted
    looked_at: float = field(default_factory=time.monotonic)
    news_at: dict[int, float] = field(default_factory=dict)

    def poll(self) -> list:
        """What has come, by partition."""
        came = self.topic.poll(_POLL_S, expected=False)
        for number, _ in came:
            self.news_at[number] = time.monotonic()
        return came

    def idle(self, number: int, after_us: int | None) -> bool:
        """Whether a partition that was read to its end has brought nothing for so long. One that is only slow never is."""
        silent_s = time.monotonic() - self.news_at.setdefault(number, time.monotonic())
        return after_us is not None and number in self.topic.at_end and silent_s > after_us / 1e6


class _Readers:
    """The readers of this process that wait to be woken: opening one takes longer than a bundle."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[KafkaSource, _OpenReader] = {}

    def take(self, source: KafkaSource, offsets: dict[int, int]) -> _OpenReader:
        """A reader that stands at these offsets. One that stands elsewhere, as after a recovery, is closed."""
        with self._lock:
            found = self._waiting.pop(source, None)
        if found is not None:
            if found.resume_at == offsets:
                return found
            found.topic.close()
        reader = TopicReader(source, offsets, **_PREFETCH)
        for number in offsets:
            reader.check_start(number)
        return _OpenReader(reader, offsets)

    def put(self, source: KafkaSource, reader: _OpenReader, offsets: dict[int, int]) -> None:
        """Keeps a reader, or closes it where nothing is left to read."""
        if not offsets:
            reader.topic.close()
            return
        reader.resume_at = offsets
        with self._lock:
            before, self._waiting[source] = self._waiting.get(source), reader
        if before is not None:
            before.topic.close()


_readers = _Readers()
