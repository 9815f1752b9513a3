"""A job's output in topics: what the Parquet files of a micro-batch hold goes into one transaction, before its commit.

The files are there first, whole and under names that follow from the micro-batch's number. So the topics get the same rows on
every runner, whoever wrote the files, and one process does all the talking.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.graph import DEAD_LETTERS, EVENTS, PREDICTIONS
from pipelines.job import JobSpec
from pipelines.topics import client_of
from runners.checkpoint import write_atomically
from transforms.drift_monitor import DRIFT
from transforms.kafka.publishing import LONG_TRANSACTION_S, TRANSACTION_S, Output, Publisher

TOPICS = (PREDICTIONS, DEAD_LETTERS, EVENTS, DRIFT)  # outputs that micro-batches can write to topics
_READ_ROWS = 32_768
_ID_FILE = "publisher.json"


class Published:
    """Publishes a job's micro-batches.

    Args:
        job: has the section `publish`.
        checkpoint: folder of the job's checkpoint, which keeps the publisher's id.
    """

    def __init__(self, job: JobSpec, checkpoint: Path) -> None:
        assert job.publish is not None
        section = job.publish
        topics = {name: getattr(section, name) for name in TOPICS}
        self._outputs = {
            name: Output(topic, section.format, section.key if name == PREDICTIONS else None)
            for name, topic in topics.items()
            if topic is not None
        }
        seconds = LONG_TRANSACTION_S if job.run.mode == "batch" else TRANSACTION_S  # a batch is one transaction, too
        id = f"midstream-{job.name}-{_id(checkpoint)}"
        self._publisher = Publisher(client_of(section), id, section.commits, seconds)
        self._publisher.prepare(output.topic for output in self._outputs.values())

    def publish(self, number: int, parts: Mapping[str, Sequence[Path]]) -> None:
        """Writes the files of a micro-batch into the topics, if that is not done yet.

        Raises:
            KafkaUnavailable: the cluster does not answer, or refuses.
        """
        rows = {output: _Rows(parts[name]) for name, output in self._outputs.items() if parts[name]}
        if rows:
            self._publisher.publish(number, rows)


class _Rows:
    """The rows of some files; can be gone through more than once."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for file in self._files:
            with pq.ParquetFile(file) as part:
                yield from part.iter_batches(_READ_ROWS)


def _id(checkpoint: Path) -> str:
    """Of this checkpoint, and of no other one: a job that is begun anew writes anew."""
    file = checkpoint / _ID_FILE
    if not file.exists():
        write_atomically(file, json.dumps({"id": uuid.uuid4().hex}))
    return str(json.loads(file.read_text())["id"])
