"""Promotion and rollback by rule in a continuous job: the job's command reads what the job has written, and decides.

Only what bears on a question is read: from a minute before the entry of the log that raised it, and only while one is open. So
a command that is started again, in the middle of years of predictions, comes to its decision from the same evidence.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.json as pj
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from models.activation_log import ActivationLog, LogError
from models.activations import Activation
from models.gate.rules import Rules
from models.kafka_client import KafkaClient, Topic
from models.serving import shared_cache
from pipelines.graph import BESIDE, EVALUATIONS, PREDICTIONS, Resolved
from pipelines.judge import Judge, Question, rules_of
from pipelines.resolve import JobError
from transforms.batches import EVENT_TIME, TIME_TYPE

_CLOCKS_MS = 60_000  # clocks of brokers and of who writes the log may be so far apart
_MESSAGES, _WAIT_S = 50_000, 0.05  # taken at a time


class LiveJudge:
    """Reads a job's topics on, and applies its rules."""

    def __init__(self, resolved: Resolved, client: KafkaClient, topics: Mapping[str, str]) -> None:
        """Creates the judge.

        Args:
            resolved: a job with rules.
            client: the cluster that the job writes to.
            topics: by name of the output.

        Raises:
            JobError: the evidence is not written to a topic.
        """
        job = resolved.job
        label = job.labels.column if job.labels is not None else None
        wanted = [PREDICTIONS] if label is None else [PREDICTIONS, EVALUATIONS]
        if missing := [name for name in wanted if name not in topics]:
            raise JobError(
                f"rules read a continuous job's {' and '.join(wanted)} from their topics: give --param {missing[0]}_topic=NAME"
            )
        rules: Rules = rules_of(job.rules)
        self._log = ActivationLog(job.model.registry, job.model.name)
        self._judge = Judge(self._log, job.name, label, rules)
        self._resolved, self._client, self._topics = resolved, client, {name: topics[name] for name in wanted}
        self._open: dict[str, Consumer] = {}
        self._sequence: int | None = None

    def look(self) -> Activation | None:
        """Reads what is new, as far as it bears on a question, and decides.

        Returns:
            The entry that was appended; None if nothing was decided.

        Raises:
            KafkaException, KafkaUnavailable, OSError, LogError: something cannot be read just now.
        """
        question = self._judge.question()
        if question is None or self._is_over(question):
            self.close()
            return None
        if question.sequence != self._sequence:
            self.close()
            self._begin(question)
        new = False
        for name, consumer in self._open.items():
            if values := self._came(consumer):
                self._judge.see(**{name: self._table(values)})
                new = True
        if not new:
            return None
        model = self._resolved.job.model
        cache = shared_cache(model.registry, block_rows=model.block_rows, max_versions=model.max_versions)
        return self._judge.judge(cache.latencies(model.name))

    def decide(self, tell: Callable[[str], Any]) -> str | None:
        """Looks, and says what was decided; what cannot be read just now is read later.

        Args:
            tell: is called with what happened, for people.
        """
        try:
            entry = self.look()
        except (KafkaException, LogError, OSError) as error:
            self.close()
            tell(f"the rules wait: {error}")
            return None
        if entry is None:
            return None
        said = f"{entry.kind} to version {entry.version}: {entry.reason}"
        tell(said)
        return said

    def close(self) -> None:
        """Lets go of the connections."""
        for consumer in self._open.values():
            consumer.close()
        self._open, self._sequence = {}, None

    def _is_over(self, question: Question) -> bool:
        """Whether a live version is compared no more: the version before predicts beside it for a while only."""
        if question.role != "live":
            return False
        job = self._resolved.job
        late_us = self._resolved.horizon_us if job.labels is not None else 0
        return self._log.sealed_us(job.name) > question.since_us + (job.model.guard or 0) + late_us

    def _begin(self, question: Question) -> None:
        entry = next(entry for entry in self._log.decisions() if entry.sequence == question.sequence)
        from_ms = int(datetime.fromisoformat(entry.at).timestamp() * 1000) - _CLOCKS_MS
        for name, topic in self._topics.items():
            asked = Topic(self._client, topic)
            try:
                places = asked.at_time(from_ms)
            finally:
                asked.close()
            self._open[name] = self._client.consumer(**{"queued.max.messages.kbytes": 16384})
            self._open[name].assign([TopicPartition(topic, number, offset) for number, offset in places.items()])
        self._sequence = question.sequence

    @staticmethod
    def _came(consumer: Consumer) -> list[bytes]:
        values = []
        for message in consumer.consume(_MESSAGES, _WAIT_S):
            error = message.error()
            if error is None:
                values.append(message.value() or b"")
            elif error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
        return values

    def _table(self, values: list[bytes]) -> pa.Table:
        """Messages as a table. JSON has no NaN: where it says null, a version that predicted gave none."""
        assert self._resolved.outputs is not None
        fields: dict[str, Any] = {EVENT_TIME: pa.string(), "version": pa.int64(), BESIDE + "version": pa.int64()}
        for field in self._resolved.outputs:
            if not pa.types.is_nested(field.type):
                fields |= {field.name: field.type, BESIDE + field.name: field.type}
        options = pj.ParseOptions(explicit_schema=pa.schema(fields.items()), unexpected_field_behavior="infer")
        table = pj.read_json(io.BytesIO(b"\n".join(values)), parse_options=options)
        times = table.column(EVENT_TIME).cast(TIME_TYPE)
        return table.set_column(table.schema.get_field_index(EVENT_TIME), EVENT_TIME, times)
