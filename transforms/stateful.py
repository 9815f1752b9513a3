"""Runs an `Operator` inside Beam in a bounded run: a batch, or one micro-batch of a stream.

The rows of a shard are grouped, put in order of arrival and handed to the operator together with the state that the
micro-batch before left in the checkpoint. The state it leaves is written for the next one under a name that depends on the
micro-batch alone: a micro-batch that is done again writes the same file again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import TaggedOutput

from models.storage import write_bytes_atomically
from transforms.batches import SEQUENCE
from transforms.bounded_run import BoundedRun
from transforms.operators import Operator, State

Tagged = tuple[str, pa.RecordBatch]
_RUN_SCHEMA = pa.schema([("watermark_us", pa.int64()), ("state_in", pa.string()), ("state_out", pa.string())])
_RUN = ""  # the tag of the batch of one row that tells a shard where the run stands


class Advance(beam.PTransform):
    """Feeds an operator; gives a dict of PCollections of RecordBatches, one per output tag of the operator."""

    def __init__(
        self,
        operator: Operator,
        name: str,
        runs: beam.PCollection,
        *,
        shard_by: tuple[str, ...] = (),
        shards: int = 1,
        records_only: bool = False,
    ) -> None:
        """Creates the transform.

        Args:
            operator: what to run; a picklable value.
            name: of its state in the checkpoint; differs from that of every other operator of the pipeline.
            runs: the `BoundedRun`, as `ReadRun` gives it.
            shard_by: rows that agree in these columns go to the same shard; they must exist in every input.
            shards: how many shards run side by side.
            records_only: it goes by the watermark of the records, not by that of records and labels together.
        """
        super().__init__(label=name)
        if shards < 1 or (shards > 1 and not shard_by):
            raise ValueError(f"{name}: {shards} shards want columns to shard by, got {shard_by}")
        self._operator, self._name, self._runs = operator, name, runs
        self._shard_by, self._shards, self._records_only = shard_by, shards, records_only

    def expand(self, pcolls: Mapping[str, beam.PCollection]) -> dict[str, beam.PCollection]:
        hint = tuple[int, Tagged]
        keyed = [
            pcoll | f"shard {tag}" >> beam.ParDo(Shard(tag, self._shard_by, self._shards)).with_output_types(hint)
            for tag, pcoll in pcolls.items()
        ]
        # A shard without a new row has to run too: the watermark may have completed what it holds.
        ticks = self._runs | "tick" >> beam.FlatMap(_ticks, self._shards, self._records_only).with_output_types(hint)
        main, *others = self._operator.outputs
        given = (
            (*keyed, ticks)
            | "gather" >> beam.Flatten()
            | "by shard" >> beam.GroupByKey()
            | "advance"
            >> beam.ParDo(_AdvanceShard(self._operator, self._name))
            .with_output_types(pa.RecordBatch)
            .with_outputs(*others, main=main)
        )
        return {tag: given[tag] for tag in self._operator.outputs}


class Shard(beam.DoFn):
    """Gives each batch, or its rows by their shards, the number of the shard and the tag of the input."""

    def __init__(self, tag: str, shard_by: tuple[str, ...], shards: int) -> None:
        self._tag, self._shard_by, self._shards = tag, shard_by, shards

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[int, Tagged]]:
        if self._shards == 1:
            yield 0, (self._tag, batch)
            return
        keys = batch.select(list(self._shard_by)).to_pandas()
        # pandas' hash is fixed across processes and machines, where Python's own is salted.
        shard = pd.util.hash_pandas_object(keys, index=False).to_numpy() % np.uint64(self._shards)
        for number in np.unique(shard):
            yield int(number), (self._tag, batch.take(pa.array(np.flatnonzero(shard == number))))


class _AdvanceShard(beam.DoFn):
    def __init__(self, operator: Operator, name: str) -> None:
        self._operator, self._name = operator, name

    def process(self, keyed: tuple[int, Iterable[Tagged]]) -> Iterator[pa.RecordBatch | TaggedOutput]:
        shard, tagged = keyed
        batches: dict[str, list[pa.RecordBatch]] = {}
        for tag, batch in tagged:
            batches.setdefault(tag, []).append(batch)
        (run,) = (row for batch in batches.pop(_RUN) for row in batch.to_pylist())
        inputs = in_order(batches)
        file = f"{self._name.replace(' ', '-')}-{shard:05d}.arrow"
        state: State = read_state(f"{run['state_in']}/{file}") if run["state_in"] else {}
        state, tables = self._operator.advance(state, inputs, run["watermark_us"])
        if run["state_out"]:
            write_state(f"{run['state_out']}/{file}", state)
        main = self._operator.outputs[0]
        for tag, table in tables.items():
            for batch in table.combine_chunks().to_batches():
                if batch.num_rows:
                    yield batch if tag == main else TaggedOutput(tag, batch)


def _ticks(run: BoundedRun, shards: int, records_only: bool) -> Iterator[tuple[int, Tagged]]:
    stands = {"watermark_us": run.clock(records_only), "state_in": run.state_in, "state_out": run.state_out}
    batch = pa.RecordBatch.from_pylist([stands], _RUN_SCHEMA)
    for shard in range(shards):
        yield shard, (_RUN, batch)


def in_order(batches: Mapping[str, list[pa.RecordBatch]]) -> dict[str, pa.Table]:
    """The batches of each tag as one table in order of arrival."""
    return {tag: _by_sequence(pa.Table.from_batches(rows)) for tag, rows in batches.items()}


def _by_sequence(table: pa.Table) -> pa.Table:
    sequence = table.column(SEQUENCE).to_numpy()
    return table if np.all(sequence[1:] >= sequence[:-1]) else table.sort_by(SEQUENCE)


def write_state(path: str, state: State) -> None:
    """Writes the named tables of a state into one file, whole or not at all."""
    write_bytes_atomically(path, pack_state(state))


def pack_state(state: State) -> bytes:
    """The named tables of a state as bytes."""
    sink = pa.BufferOutputStream()
    for name, table in state.items():
        schema = table.schema.with_metadata({**(table.schema.metadata or {}), b"midstream.name": name.encode()})
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


def read_state(path: str) -> dict[str, pa.Table]:
    """Reads what `write_state` wrote."""
    with FileSystems.open(path) as file:
        return unpack_state(file.read())


def unpack_state(packed: bytes) -> dict[str, pa.Table]:
    """The inverse of `pack_state`."""
    buffer = pa.BufferReader(packed)
    state = {}
    while buffer.tell() < buffer.size():
        with pa.ipc.open_stream(buffer) as reader:
            table = reader.read_all()
        metadata = dict(table.schema.metadata)
        name = metadata.pop(b"midstream.name").decode()
        state[name] = table.replace_schema_metadata(metadata or None)
    return state
