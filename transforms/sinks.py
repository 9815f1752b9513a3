"""Parquet folders that a redone run writes again instead of twice.

Workers write files under hidden names and pass the names on; the names that arrive are those of bundles that succeeded. One
last step gives them their final names, which depend on the run alone (`part-000042-00000.parquet` is the first file of
micro-batch 42). A run that is done again replaces them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from models.storage import is_local, sync_file, sync_folder
from transforms.batches import SEQUENCE

ROW_GROUP_ROWS = 131_072
Written = tuple[str, int, str]  # folder, first sequence number, hidden file name
_NUMBER = ""  # in place of the folder: the second item is the number of the run


class WriteParquet(beam.PTransform):
    """Writes several streams of RecordBatches, each into a folder of its own.

    Input: a dict from folder to PCollection of RecordBatches. Output: the final file names, when all is in place.
    """

    def __init__(self, runs: beam.PCollection, columns: Mapping[str, list[str]] | None = None) -> None:
        """Creates the sink.

        Args:
            runs: the `BoundedRun`, whose number is part of the file names.
            columns: by folder the columns to write; all where a folder is not named.
        """
        super().__init__()
        self._runs, self._columns = runs, columns or {}

    def expand(self, streams: Mapping[str, beam.PCollection]) -> beam.PCollection:
        written = [
            stream
            | f"write {folder.rsplit('/', 1)[-1]}"
            >> beam.ParDo(_WriteBundle(folder, self._columns.get(folder))).with_output_types(Written)
            for folder, stream in streams.items()
        ]
        # One group for all folders: every step of this kind costs a micro-batch some milliseconds.
        number = self._runs | "number" >> beam.Map(lambda run: (_NUMBER, run.number, "")).with_output_types(Written)
        return (
            (*written, number)
            | beam.Flatten()
            | beam.Map(lambda name: (0, name)).with_output_types(tuple[int, Written])
            | beam.GroupByKey()
            | "commit" >> beam.FlatMap(_commit)
        )


class _WriteBundle(beam.DoFn):
    """One file a bundle, row groups of a good size, never more than a row group in memory."""

    def __init__(self, folder: str, columns: list[str] | None) -> None:
        self._folder, self._columns = folder, columns

    def setup(self) -> None:
        self._thread = ThreadPoolExecutor(1, "write-parquet")  # Arrow encodes and compresses while the next rows are predicted

    def teardown(self) -> None:
        self._thread.shutdown()

    def start_bundle(self) -> None:
        self._writing: Future[None] | None = None
        self._writer: pq.ParquetWriter | None = None
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        self._first = 2**63 - 1

    def process(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        sequence = batch.column(SEQUENCE)
        self._first = min(self._first, sequence[0].as_py() if sequence[0].is_valid else 0)
        self._held.append(batch if self._columns is None else batch.select(self._columns))
        self._held_rows += batch.num_rows
        if self._held_rows >= ROW_GROUP_ROWS:
            self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        self._flush()
        if self._writer is not None:
            self._wait()
            self._writer.close()
            self._file.close()
            written: Written = (self._folder, self._first, self._name)
            yield WindowedValue(written, GlobalWindow().max_timestamp(), [GlobalWindow()])

    def _flush(self) -> None:
        if not self._held:
            return
        table = pa.Table.from_batches(self._held)
        if self._writer is None:
            self._name = f"{self._folder}/.incoming-{uuid.uuid4().hex}"
            self._file = FileSystems.create(self._name, "application/octet-stream")
            self._writer = pq.ParquetWriter(self._file, table.schema)
        self._wait()  # one row group at a time: what is in memory stays bounded
        self._writing = self._thread.submit(self._writer.write_table, table, row_group_size=ROW_GROUP_ROWS)
        self._held, self._held_rows = [], 0

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()


def part_name(run: int, place: int) -> str:
    """The final name of a run's file."""
    return f"part-{run:06d}-{place:05d}.parquet"


def _commit(keyed: tuple[int, Iterable[Written]]) -> list[str]:
    _, written = keyed
    by_folder: dict[str, list[tuple[int, str]]] = {}
    for folder, first, name in written:
        by_folder.setdefault(folder, []).append((first, name))
    ((run, _),) = by_folder.pop(_NUMBER)
    final = []
    for folder, files in by_folder.items():
        for place, (_, name) in enumerate(sorted(files)):
            target = f"{folder}/{part_name(run, place)}"
            if FileSystems.exists(name):  # not if this very step is being tried again
                if FileSystems.exists(target):
                    FileSystems.delete([target])
                FileSystems.rename([name], [target])
                if is_local(target):  # the commit that follows must not outlive its data, if the machine goes down
                    sync_file(target)
            final.append(target)
        if is_local(folder):
            sync_folder(folder)
    return final
