"""One bounded run of a job, as data that flows through the graph.

A graph is built once and run for every micro-batch. What differs from run to run (what to read, where the states are, the
watermark, the log so far) is written into a file before the run, and enters the graph as the one element of its first
collection.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems

from models.storage import write_text_atomically
from models.timeline import COLUMNS, Timeline
from transforms.batches import MAX_WATERMARK_US
from transforms.file_source import Range, ReadTask


@dataclass(frozen=True)
class BoundedRun:
    """What a run does, and where it stands in its stream.

    Attributes:
        number: of the run in its stream.
        reads: by source, what to read; a source that is missing has nothing new.
        watermark_us: of all its streams together, once that is read.
        records_watermark_us: of the records alone; None if it is the same.
        state_in: folder with the states that the run before left; None at the start of the stream.
        state_out: folder for the states that this run leaves; None if none will follow.
        timeline: the activation log before the run.
    """

    number: int = 0
    reads: Mapping[str, tuple[ReadTask, ...]] = field(default_factory=dict)
    watermark_us: int = MAX_WATERMARK_US
    state_in: str | None = None
    state_out: str | None = None
    timeline: Timeline = field(default_factory=lambda: Timeline.of([]))
    records_watermark_us: int | None = None

    def clock(self, records_only: bool) -> int:
        """The watermark for steps that look at records alone, or at labels too."""
        return self.records_watermark_us if records_only and self.records_watermark_us is not None else self.watermark_us

    def write(self, path: str) -> None:
        """Writes the run into the file from which the graph will read it."""
        timeline = {name: getattr(self.timeline, name).tolist() for name in COLUMNS}
        reads = {
            name: [[[list(part) for part in map(_as_tuple, t.ranges)], t[1]] for t in tasks]
            for name, tasks in self.reads.items()
        }
        content = {
            "number": self.number,
            "reads": reads,
            "watermark_us": self.watermark_us,
            "state_in": self.state_in,
            "state_out": self.state_out,
            "timeline": timeline,
            "records_watermark_us": self.records_watermark_us,
        }
        write_text_atomically(path, json.dumps(content))

    @staticmethod
    def read(path: str) -> BoundedRun:
        """Reads what `write` wrote."""
        with FileSystems.open(path) as file:
            content = json.loads(file.read())
        reads = {
            name: tuple(ReadTask(tuple(Range(*part) for part in ranges), newest) for ranges, newest in tasks)
            for name, tasks in content["reads"].items()
        }
        columns = (np.array(content["timeline"][name], np.int64) for name in COLUMNS)
        return BoundedRun(**content | {"reads": reads, "timeline": Timeline(*columns)})


def _as_tuple(part: Range) -> tuple[str, int, int, int | None]:
    return part.file, part.index, part.start_row, part.end_row


class ReadRun(beam.PTransform):
    """The run in a file, as a collection of one `BoundedRun`. The file is read when the graph runs."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        return begin | beam.Impulse() | beam.FlatMap(_read, self._path).with_output_types(BoundedRun)


def _read(_: bytes, path: str) -> Iterator[BoundedRun]:
    yield BoundedRun.read(path)
