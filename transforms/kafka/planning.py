"""Cutting a topic into micro-batches: ranges of offsets, which the job's own offset log keeps.

Of the partitions that have something new, the one that is farthest behind in event time is read first, so that a backlog is
worked off with all partitions side by side and little waits for the watermark. Which records a micro-batch gets thus depends on
what is there; what becomes of each of them does not (see `transforms.kafka.watermarks`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from models.kafka_client import KafkaDataLost, Topic, TopicState
from transforms.batches import MIN_WATERMARK_US, ROW, event_time_us
from transforms.decoding.files import Decoded
from transforms.file_source import Range, ReadTask
from transforms.kafka.messages import split_at
from transforms.kafka.source import KafkaSource, TopicReader, keep_planned, lost
from transforms.kafka.watermarks import Progress, stream_watermark_us

HELD_BYTES = 64 << 20  # decoded records that wait in memory for their turn, over all partitions
_AGAIN_S, _TRIES = 0.5, 10  # a broker that has just started may not know the end of a partition yet


@dataclass(frozen=True)
class KafkaPosition:
    """How far a topic has been read.

    Attributes:
        topic_id: of the topic; None if the cluster does not tell.
        partitions: how far each was read; empty at the start.
        watermark_us: of the stream.
        max_event_time_us: the newest event time so far; `MIN_WATERMARK_US` if there is none.
    """

    topic_id: str | None = None
    partitions: Mapping[int, Progress] = field(default_factory=dict)
    watermark_us: int = MIN_WATERMARK_US
    max_event_time_us: int = MIN_WATERMARK_US

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self) | {"partitions": {str(number): asdict(at) for number, at in self.partitions.items()}}

    @staticmethod
    def from_json(value: dict[str, Any]) -> KafkaPosition:
        """The inverse of `to_json`."""
        partitions = {int(number): Progress(**at) for number, at in value["partitions"].items()}
        return KafkaPosition(**value | {"partitions": partitions})


@dataclass(frozen=True)
class KafkaPlan:
    """A micro-batch.

    Attributes:
        tasks: what it reads: one range of each partition that has something new.
        end: where the next one starts.
        rows: how many messages it has, dead letters included; 0 if all there is to tell is a watermark.
    """

    tasks: tuple[ReadTask, ...]
    end: KafkaPosition
    rows: int

    @property
    def watermark_us(self) -> int:
        """The watermark after it."""
        return self.end.watermark_us

    @property
    def max_event_time_us(self) -> int:
        """The newest event time up to its end."""
        return self.end.max_event_time_us

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        tasks = [[asdict(part) for part in task.ranges] + [task.start_max_event_time_us] for task in self.tasks]
        return {"tasks": tasks, "end": self.end.to_json(), "rows": self.rows}

    @staticmethod
    def from_json(value: dict[str, Any]) -> KafkaPlan:
        """The inverse of `to_json`."""
        tasks = tuple(ReadTask(tuple(Range(**part) for part in ranges), newest) for *ranges, newest in value["tasks"])
        return KafkaPlan(tasks, KafkaPosition.from_json(value["end"]), value["rows"])


class KafkaPlanner:
    """Plans the micro-batches of a topic; keeps its consumer open from one to the next.

    Args:
        source: the topic.
    """

    def __init__(self, source: KafkaSource) -> None:
        self._source = source
        self._topic = Topic(source.client, source.topic)
        self._first: KafkaPosition | None = None
        self._reader: _Reader | None = None
        self._quiet_since: dict[int, float] = {}

    def close(self) -> None:
        """Lets go of the connections."""
        self._topic.close()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def watermark_us(self, position: KafkaPosition) -> int:
        """The watermark at a position."""
        return position.watermark_us

    def plan(
        self,
        position: KafkaPosition,
        max_records: int | None = None,
        max_span_us: int | None = None,
        until_us: int | None = None,
    ) -> KafkaPlan | None:
        """The micro-batch that starts at a position.

        Args:
            position: the `end` of the last plan; `KafkaPosition()` at the start.
            max_records: how many messages it has at most.
            max_span_us: in each partition it ends before the first record at or after the end of that interval of this length,
                aligned to the epoch, in which the earliest of the partitions' next records lies.
            until_us: in each partition it ends before the first record that happens then or later.

        Returns:
            The plan; None if there is nothing new.

        Raises:
            ValueError: a limit is not positive, or there is no such topic.
            KafkaDataLost: what comes next was removed, or the topic is another one now.
            KafkaUnavailable: the cluster does not answer.
        """
        for name, limit in (("max_records", max_records), ("max_span_us", max_span_us)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} wants at least 1, got {limit}")
        state = self._state(position)
        position = self._begun(position, state)
        ends = {number: high for number, high in state.high.items() if position.partitions[number].offset < high}
        reading = _Reading(self._source, position, ends)
        if ends:
            reader = self._opened(position)
            if max_span_us is not None:
                until_us = _earlier(until_us, reader.span_end_us(ends, max_span_us))
            while (number := reading.next(max_records)) is not None:
                reading.take(number, reader, max_records, until_us)
        partitions = self._with_idle(reading, state)
        watermark_us = stream_watermark_us(partitions.values(), self._source.out_of_orderness_us, position.watermark_us)
        end = KafkaPosition(position.topic_id, partitions, watermark_us, reading.newest_us)
        if not reading.rows and watermark_us == position.watermark_us:
            return None
        tasks = reading.publish()
        return KafkaPlan(tasks, end, reading.rows)

    def _state(self, position: KafkaPosition) -> TopicState:
        """What the topic holds now; raises where the position does not fit it."""
        name = self._source.topic
        for tries_left in reversed(range(_TRIES)):
            state = self._topic.state()
            if position.topic_id and state.id and state.id != position.topic_id:
                raise KafkaDataLost(
                    f"topic {name} was deleted and made again since this job began to read it: its offsets mean other records "
                    "now. Begin anew with --fresh, or with another output folder"
                )
            beyond = {n: at for n, at in position.partitions.items() if n not in state.high or at.offset > state.high[n]}
            if not beyond:
                break
            if not tries_left:
                number, at = next(iter(beyond.items()))
                raise KafkaDataLost(
                    f"topic {name}, partition {number}: this job has read up to offset {at.offset}, and it ends at "
                    f"{state.high.get(number, 'no offset at all')} now: it was made again or has lost records. Begin anew "
                    "with --fresh, or with another output folder"
                )
            time.sleep(_AGAIN_S)
        for number, at in position.partitions.items():
            if at.offset < state.low[number]:
                raise lost(name, number, at.offset, state.low[number])
        return state

    def _begun(self, position: KafkaPosition, state: TopicState) -> KafkaPosition:
        """The position with all partitions that there are now."""
        if not position.partitions:
            if self._first is None:
                starts = self._source.starts(self._topic, state)
                self._first = KafkaPosition(state.id, {number: Progress(at) for number, at in starts.items()})
            position = self._first
        allowed_us, stream_us = self._source.out_of_orderness_us, position.watermark_us
        partitions = {number: at.behind(stream_us, allowed_us) if at.idle else at for number, at in position.partitions.items()}
        for number, low in state.low.items():
            if number not in partitions:
                partitions[number] = Progress(low).behind(stream_us, allowed_us)
        return replace(position, partitions=partitions)

    def _opened(self, position: KafkaPosition) -> _Reader:
        starts = {number: at.offset for number, at in position.partitions.items()}
        if self._reader is not None and self._reader.next_offsets != starts:
            self._reader.close()
            self._reader = None
        if self._reader is None:
            self._reader = _Reader(self._source, starts)
        return self._reader

    def _with_idle(self, reading: _Reading, state: TopicState) -> dict[int, Progress]:
        """The partitions' progress, with those that have been silent for too long marked."""
        partitions, now = dict(reading.partitions), time.monotonic()
        for number, at in partitions.items():
            if number in reading.read or at.offset < state.high[number]:
                self._quiet_since.pop(number, None)
                continue
            since = self._quiet_since.setdefault(number, now)
            if self._source.idle_s is not None and now - since >= self._source.idle_s:
                partitions[number] = replace(at, idle=True)
        return partitions


class _Reading:
    """What a plan has taken so far."""

    def __init__(self, source: KafkaSource, position: KafkaPosition, ends: Mapping[int, int]) -> None:
        self.partitions = dict(position.partitions)
        self.newest_us, self.rows = position.max_event_time_us, 0
        self.read: dict[int, list[Decoded]] = {}
        self._source, self._starts, self._ends = source, position.partitions, ends
        self._going = set(ends)

    def next(self, max_records: int | None) -> int | None:
        """The partition to read next: that which is farthest behind. None if the plan is complete."""
        if max_records is not None and self.rows >= max_records:
            return None
        return min(self._going, key=lambda number: (self.partitions[number].newest_us, number), default=None)

    def take(self, number: int, reader: _Reader, max_records: int | None, until_us: int | None) -> None:
        """Takes the next piece of a partition, as far as it belongs to the plan."""
        at = self.partitions[number]
        piece = reader.take(number, self._ends[number])
        if piece is None:
            self._going.discard(number)
            self.partitions[number] = replace(at, offset=reader.next_offsets[number])
            return
        stop = _stop(piece, None if max_records is None else max_records - self.rows, until_us)
        if stop is not None:
            piece, rest = split_at(piece, stop)
            reader.put_back(number, rest, stop if piece.rows else at.offset)
            self._going.discard(number)
            if not piece.rows:
                return
        newest_us = int(event_time_us(piece.batch).to_numpy().max()) if piece.batch.num_rows else MIN_WATERMARK_US
        self.partitions[number] = Progress(piece.next_row, max(at.newest_us, newest_us))
        self.newest_us = max(self.newest_us, newest_us)
        self.rows += piece.rows
        self.read.setdefault(number, []).append(piece)
        if piece.next_row >= self._ends[number]:
            self._going.discard(number)

    def publish(self) -> tuple[ReadTask, ...]:
        """The tasks; what they will read is kept in memory for them."""
        tasks, planned = [], {}
        for number, pieces in sorted(self.read.items()):
            at = self._starts[number]
            part = self._source.range(number, at.offset, self.partitions[number].offset)
            tasks.append(ReadTask((part,), at.newest_us))
            planned[part] = pieces
        keep_planned(self._source, planned)
        return tuple(tasks)


class _Reader:
    """Partitions that are being decoded, each at its `next_offsets`; what came before its turn is held."""

    def __init__(self, source: KafkaSource, starts: Mapping[int, int]) -> None:
        self.next_offsets = dict(starts)
        self._topic = TopicReader(source, starts)
        self._decoders = {number: source.decoder(number) for number in starts}
        self._held: dict[int, deque[Decoded]] = {number: deque() for number in starts}
        self._bytes = dict.fromkeys(starts, 0)
        self._paused: set[int] = set()

    def close(self) -> None:
        self._topic.close()

    def take(self, number: int, end: int) -> Decoded | None:
        """The next piece of a partition; None if it is read up to `end`."""
        if not self._fill(number, end):
            return None
        piece = self._held[number].popleft()
        self._bytes[number] -= piece.batch.nbytes
        self.next_offsets[number] = piece.next_row
        return piece

    def put_back(self, number: int, rest: Decoded, start: int) -> None:
        """Returns the end of the piece taken last, which begins at this offset."""
        if rest.rows:
            self.next_offsets[number] = start
            self._held[number].appendleft(rest)
            self._bytes[number] += rest.batch.nbytes

    def span_end_us(self, ends: Mapping[int, int], span_us: int) -> int | None:
        """The end of the interval in which the earliest of the next records lies."""
        firsts = []
        for number, end in ends.items():
            if self._fill(number, end):
                times = event_time_us(self._held[number][0].batch)
                firsts += [int(times[0].as_py())] if len(times) else []
        return (min(firsts) // span_us + 1) * span_us if firsts else None

    def _fill(self, number: int, end: int) -> bool:
        """Waits until there is a piece of a partition; False if it is read up to `end`."""
        while not self._held[number]:
            # Behind the last message there may be marks of transactions only: they move the position, too.
            self.next_offsets[number] = self._topic.positions[number]
            if self.next_offsets[number] >= end:
                return False
            if number in self._paused:
                self._paused.discard(number)
                self._topic.resume(number)
            for came, messages in self._topic.poll():
                piece = self._decoders[came].decode(messages)
                self._held[came].append(piece)
                self._bytes[came] += piece.batch.nbytes
                if came != number and came not in self._paused and self._bytes[came] > HELD_BYTES // len(self._held):
                    self._paused.add(came)
                    self._topic.pause(came)
        return self.next_offsets[number] < end


def _stop(piece: Decoded, records_left: int | None, until_us: int | None) -> int | None:
    """The first offset of a piece that is too much; None if none is."""
    stops = []
    if records_left is not None and piece.rows > records_left:
        offsets = np.sort(np.concatenate([piece.batch.column(ROW).to_numpy(), piece.dead.column(ROW).to_numpy()]))
        stops.append(int(offsets[records_left]))
    if until_us is not None:
        beyond = event_time_us(piece.batch).to_numpy() >= until_us
        if beyond.any():
            stops.append(int(piece.batch.column(ROW)[int(np.argmax(beyond))].as_py()))
    return min(stops, default=None)


def _earlier(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)
