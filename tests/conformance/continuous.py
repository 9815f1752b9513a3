"""The pipeline as a continuous job: the lines of the files come in by topics, and topics are compared with a batch's files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa

from models.kafka_client import KafkaClient
from pipelines.continuous import ContinuousExecution
from pipelines.job import JobSpec
from runners.local_flink import flink_cluster
from runners.local_kafka import kafka_broker
from tests.conformance.outputs import OUTPUTS, canonical, sort
from tests.conformance.workload import Workload
from tests.kafka import Cluster

LEFT_OUT = ("source",)  # there a file, here a partition


def continuous(
    job_of: Callable[..., JobSpec], reference: str, standalone: bool
) -> Callable[[Workload, Path], dict[str, pa.Table]]:
    """A continuous run on Flink, from Kafka to Kafka.

    Args:
        job_of: gives the job for a workload and an output folder.
        reference: name of the folder beside the output's that a batch has written to; its columns have the types wanted.
        standalone: on a cluster of processes; otherwise on Flink within the job server.
    """

    def run(workload: Workload, output: Path) -> dict[str, pa.Table]:
        with kafka_broker() as broker, flink_cluster() if standalone else nullcontext() as flink:
            kafka = Cluster(broker)
            for name in ("records", "labels"):
                kafka.topic(1, name)
                _send(broker.bootstrap, name, (workload.folder / f"{name}.csv").read_bytes().splitlines()[1:])
            for name in OUTPUTS:
                kafka.topic(1, f"to-{name}")
            settings = {"mode": "continuous", "runner": "flink", "tick": "1m", "checkpoint_every": "2s"}
            if flink is not None:
                settings |= {"master": flink.master, "workers": flink.workers, "preinstalled": True}
            outcome = ContinuousExecution(_from_topics(job_of(workload, output), broker.bootstrap, settings)).run()
            assert outcome.finished, outcome
            given = {}
            for name in OUTPUTS:
                rows = kafka.read(f"to-{name}")
                assert len(rows) == outcome.counts[name]
                given[name] = _table(rows, canonical(output.parent / reference, name).schema)
            return given

    return run


def _from_topics(job: JobSpec, bootstrap: str, settings: dict[str, Any]) -> JobSpec:
    """The job over topics instead of files."""
    given = job.model_dump(mode="json", exclude_none=True)
    for section, topic in ((given["source"], "records"), (given["labels"]["source"], "labels")):
        del section["path"]
        section |= {"format": "csv", "kafka": {"bootstrap": bootstrap, "topic": topic}}
    given["publish"] = {"bootstrap": bootstrap, **{name: f"to-{name}" for name in OUTPUTS}}
    given["run"] |= settings
    return JobSpec.model_validate(given)


def _send(bootstrap: str, topic: str, lines: list[bytes]) -> None:
    producer = KafkaClient(bootstrap).producer(**{"linger.ms": 20})
    for line in lines:
        while True:
            try:
                producer.produce(topic, line, partition=0)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Messages as a table with the columns and types of a batch's."""
    columns = {}
    for field in schema:
        if field.name in LEFT_OUT:
            continue
        values = [row[field.name] for row in rows]
        if pa.types.is_timestamp(field.type):
            columns[field.name] = (
                pa.array([value and value.rstrip("Z") for value in values], pa.string())
                .cast(pa.timestamp(field.type.unit))
                .cast(field.type)
            )
        else:
            columns[field.name] = pa.array(values, field.type)
    return sort(pa.table(columns))
