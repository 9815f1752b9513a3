"""A stream of files as Beam reads it: all of it, or the part that a micro-batch takes.

The total order of arrival is: files in the order in which they were first seen (by name among those seen at once), rows in
order within a file. Files are complete when they appear: write them elsewhere and rename them into place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics

from transforms.batches import MIN_WATERMARK_US, ROW, WATERMARK, event_time_us
from transforms.decoding.files import Decoded
from transforms.file_source import FileInfo, FileSource, Range, ReadTask, all_files, read_range, read_tasks
from transforms.planning import FilePlanner, Plan, Position, planned_batches
from transforms.schema import Schema

__all__ = [
    "Decode",
    "FileInfo",
    "FilePlanner",
    "FileSource",
    "Plan",
    "Position",
    "Range",
    "Read",
    "ReadFiles",
    "ReadTask",
    "Source",
    "all_files",
    "read_range",
    "read_ranges",
    "read_tasks",
    "stamp_watermark",
]


class Source(Protocol):
    """Where records come from: files (`FileSource`) or a topic (`transforms.kafka.source.KafkaSource`)."""

    @property
    def schema(self) -> Schema:
        """The declared columns."""

    @property
    def out_of_orderness_us(self) -> int:
        """How far behind the newest record the watermark stays."""

    def read(self, part: Range) -> Iterator[Decoded]:
        """Reads a part of it."""

    def all_tasks(self, ordered: bool) -> list[ReadTask]:
        """Everything that is there now."""


def read_ranges(
    source: Source, ranges: Sequence[Range], start_max_event_time_us: int = MIN_WATERMARK_US, ordered: bool = False
) -> Iterator[Decoded]:
    """Reads ranges one after the other.

    What the last planned micro-batch of this process covers is taken from memory (see `transforms.planning`).

    Args:
        source: the stream.
        ranges: what to read.
        start_max_event_time_us: the newest event time before the first range; `MIN_WATERMARK_US` at the start of the stream.
        ordered: whether every row is stamped with `watermark_us`.
    """
    newest = start_max_event_time_us
    for part in ranges:
        planned = planned_batches(source, part) if isinstance(source, FileSource) else None
        for piece in source.read(part) if planned is None else planned:
            if ordered:
                batch, newest = stamp_watermark(piece.batch, newest, source.out_of_orderness_us)
                piece = piece._replace(batch=batch)
            yield piece


def stamp_watermark(batch: pa.RecordBatch, newest_us: int, out_of_orderness_us: int) -> tuple[pa.RecordBatch, int]:
    """Adds `watermark_us`, the watermark just before each row arrived.

    Returns:
        The batch, and the newest event time after it.
    """
    newest = np.maximum.accumulate(np.concatenate([[newest_us], event_time_us(batch).to_numpy()]))
    stamps = np.maximum(newest[:-1] - out_of_orderness_us, MIN_WATERMARK_US)
    return batch.append_column(WATERMARK, pa.array(stamps, pa.int64())), int(newest[-1])


class Read(NamedTuple):
    """What `ReadFiles` gives, both of RecordBatches."""

    batches: beam.PCollection
    dead_letters: beam.PCollection


class ReadFiles(beam.PTransform):
    """Reads a stream, or the part of it that a micro-batch takes.

    Counts `records`, `dead_letters` (of them) and `unreadable_files` in the metrics namespace `midstream`.

    Args:
        source: the stream.
        plan: the micro-batch; None is all files that are there when the transform is made.
        ordered: read in order in one place and stamp watermarks; otherwise the ranges may be read in parallel.
    """

    def __init__(self, source: FileSource, plan: Plan | None = None, ordered: bool = False) -> None:
        super().__init__()
        self._source = source
        self._ranges = all_files(source) if plan is None else list(plan.ranges)
        self._start_max_event_time_us = MIN_WATERMARK_US if plan is None else plan.start_max_event_time_us
        self._ordered = ordered

    def expand(self, pbegin: beam.pvalue.PBegin) -> Read:
        """Creates the ranges and reads them."""
        work = read_tasks(self._ranges, self._start_max_event_time_us, self._ordered)
        return pbegin | "Ranges" >> beam.Create(work, reshuffle=len(work) > 1) | Decode(self._source, self._ordered)


class Decode(beam.PTransform):
    """Reads `ReadTask`s; counts as `ReadFiles` does.

    Args:
        source: the stream that they are parts of.
        ordered: whether every row is stamped with `watermark_us`.
        count: name of the counter of records.
    """

    def __init__(self, source: Source, ordered: bool, count: str = "records") -> None:
        super().__init__()
        self._source, self._ordered, self._count = source, ordered, count

    def expand(self, tasks: beam.PCollection) -> Read:
        """Reads them."""
        reader = _ReadRanges(self._source, self._ordered, self._count)
        read = tasks | "Decode" >> beam.ParDo(reader).with_outputs("dead_letters", main="batches")
        for collection in (read.batches, read.dead_letters):
            collection.element_type = pa.RecordBatch
        return Read(read.batches, read.dead_letters)


class _ReadRanges(beam.DoFn):
    def __init__(self, source: Source, ordered: bool, count: str) -> None:
        self._source = source
        self._ordered = ordered
        self._records = Metrics.counter("midstream", count)
        self._dead_letters = Metrics.counter("midstream", "dead_letters")
        self._unreadable_files = Metrics.counter("midstream", "unreadable_files")

    def process(self, task: ReadTask) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        for piece in read_ranges(self._source, task.ranges, task.start_max_event_time_us, self._ordered):
            unreadable = piece.dead.column(ROW).null_count
            self._records.inc(piece.rows)
            self._dead_letters.inc(piece.dead.num_rows - unreadable)
            self._unreadable_files.inc(unreadable)
            if piece.dead.num_rows:
                yield beam.pvalue.TaggedOutput("dead_letters", piece.dead)
            if piece.batch.num_rows:
                yield piece.batch
