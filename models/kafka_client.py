"""How a Kafka cluster is reached, and what is done when it does not answer.

The client is librdkafka's (confluent-kafka). Its options, TLS and SASL among them, are passed through; those on which
exactly-once rests are not for the user to change. Secrets belong into a file of their own: what a job is told is written into
its output folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

_T = TypeVar("_T")
CALL_S = 5.0  # how long one request may take before it counts as not answered
_PAUSE_S = 0.2  # between tries
_WARN_S = 5.0  # after so long without an answer the user is told
_OWN = (
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "auto.offset.reset",
    "isolation.level",
    "transactional.id",
    "enable.idempotence",
)
_SECRETS = ("sasl.password", "ssl.key.password", "ssl.keystore.password", "ssl.key.pem", "sasl.oauthbearer.client.secret")
# Trying again does not help with these.
_HOPELESS = (
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.MSG_SIZE_TOO_LARGE,
)
_told = logging.getLogger("midstream")
_log = logging.getLogger("midstream.kafka")
_log.setLevel(logging.CRITICAL)  # librdkafka's own account of lost connections; what matters of it is in the errors raised here


class KafkaUnavailable(ConnectionError):
    """The cluster did not answer for as long as the job was told to be patient, or refused."""


class KafkaDataLost(OSError):
    """Records that were to be read are not there any more."""


@dataclass(frozen=True)
class KafkaClient:
    """A cluster and how to talk to it.

    Attributes:
        bootstrap: `host:port` of some of its brokers, with commas between them.
        options: options of librdkafka, such as `("security.protocol", "SASL_SSL")`. A name that begins with `consumer.` or
            `producer.` is for that one only.
        config_file: a file of `name=value` lines with more of them; the place for passwords.
        patience_s: how long a cluster that does not answer is asked again.
    """

    bootstrap: str
    options: tuple[tuple[str, str], ...] = ()
    config_file: str | None = None
    patience_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.bootstrap.strip():
            raise ValueError("expected the brokers' addresses, such as localhost:9092, got nothing")
        if found := [
            name for name, _ in self.options if name.rpartition("consumer.")[2].rpartition("producer.")[2] in _SECRETS
        ]:
            raise ValueError(
                f"{', '.join(found)} is a secret, and a job's options are written into its output folder: put it into a file "
                "of name=value lines, and name that as the client configuration"
            )

    def consumer(self, **own: Any) -> Consumer:
        """A consumer that reads what is committed and commits nothing itself: the job's own offset log is the truth."""
        return Consumer(
            self._settings("consumer")
            | {
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
            }
            | own,
            logger=_log,
        )

    def producer(self, **own: Any) -> Producer:
        """An idempotent producer."""
        return Producer(self._settings("producer") | {"enable.idempotence": True} | own, logger=_log)

    def admin(self) -> AdminClient:
        """A client for topics."""
        settings = {name: value for name, value in self._settings("admin").items() if name != "group.id"}
        return AdminClient(settings, logger=_log)

    def _settings(self, kind: str) -> dict[str, Any]:
        # A fetch that finds nothing answers after 100 ms, so that the end of a partition is seen soon. Large fetches, ahead of
        # what is asked for (64 MiB at most), took reading a backlog from 150,000 to 270,000 records/s.
        defaults: dict[str, dict[str, Any]] = {
            "consumer": {
                "group.id": "midstream",
                "fetch.wait.max.ms": 100,
                "fetch.message.max.bytes": 8 << 20,
                "queued.min.messages": 500_000,
            },
            "producer": {"linger.ms": 20},
        }
        given = [*_read_config(self.config_file), *self.options]
        settings = defaults.get(kind, {})
        for name, value in given:
            prefix, _, rest = name.partition(".")
            if prefix in ("consumer", "producer"):
                if prefix != kind:
                    continue
                name = rest
            if name in _OWN:
                raise ValueError(f"the Kafka option {name} is set by Midstream, because exactly-once rests on it; leave it out")
            settings[name] = value
        return settings | {"bootstrap.servers": self.bootstrap}

    @property
    def call_s(self) -> float:
        """How long one request may take before it counts as not answered."""
        return min(CALL_S, self.patience_s)

    def patiently(self, what: str, call: Callable[[], _T]) -> _T:
        """Calls until it works.

        Args:
            what: what is done, for the message.
            call: raises KafkaException where it did not work.

        Raises:
            KafkaUnavailable: it has not worked for `patience_s`, or will not.
        """
        patience = Patience(self, what)
        while True:
            try:
                return call()
            except KafkaException as error:
                patience.failed(error.args[0])
                time.sleep(_PAUSE_S)


@dataclass
class Patience:
    """Decides when to give up.

    Attributes:
        client: the cluster.
        what: what is being done, for the message.
    """

    client: KafkaClient
    what: str
    _since: float | None = field(default=None, init=False)
    _last: str = field(default="", init=False)
    _warned: bool = field(default=False, init=False)

    def worked(self) -> None:
        """There was an answer."""
        self._since, self._warned = None, False

    def note(self, error: KafkaError) -> None:
        """Remembers what the client said, to be told when patience ends."""
        self._last = error.str()

    def failed(self, error: Any = None) -> None:
        """There was none, or an error.

        Raises:
            KafkaUnavailable: it is time to give up.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._last = self._last if error is None else str(error.str() if isinstance(error, KafkaError) else error)
        if now - self._since >= _WARN_S and not self._warned:
            self._warned = True
            left = self.client.patience_s - (now - self._since)
            _told.warning(
                "Kafka at %s cannot %s just now (%s); it is asked again for up to %.0f s",
                self.client.bootstrap,
                self.what,
                self._last or "no answer",
                left,
            )
        hopeless = isinstance(error, KafkaError) and error.code() in _HOPELESS
        if hopeless or now - self._since >= self.client.patience_s:
            waited = "" if hopeless else f" for {self.client.patience_s:g} s"
            raise KafkaUnavailable(
                f"Kafka at {self.client.bootstrap} could not {self.what}{waited}: {self._last or 'no answer'}"
            )


def _read_config(path: str | None) -> list[tuple[str, str]]:
    if path is None:
        return []
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{path}, line {number}: expected name=value, got {name[:20]!r}")
        found.append((name.strip(), value.strip()))
    return found


@dataclass(frozen=True)
class TopicState:
    """What a topic holds.

    Attributes:
        id: changes if the topic is deleted and made again; None if the cluster does not tell.
        low, high: by partition, the first offset that is there and the end of what is committed.
    """

    id: str | None
    low: dict[int, int]
    high: dict[int, int]


class Topic:
    """Asks a cluster about a topic, patiently."""

    def __init__(self, client: KafkaClient, name: str) -> None:
        self._client, self.name = client, name
        self._consumer: Consumer | None = None
        self._admin: AdminClient | None = None
        self._fault: KafkaError | None = None

    def close(self) -> None:
        """Lets go of the connections."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = self._admin = None

    def partitions(self) -> list[int]:
        """The numbers of its partitions.

        Raises:
            ValueError: there is no such topic.
            KafkaUnavailable: no answer.
        """
        consumer = self._connected()
        found = self._patiently("list the topics", lambda: consumer.list_topics(timeout=self._client.call_s)).topics
        if self.name not in found or not found[self.name].partitions:
            known = ", ".join(sorted(name for name in found if not name.startswith("__"))[:20]) or "none"
            raise ValueError(f"there is no topic {self.name!r} at {self._client.bootstrap}; topics there: {known}")
        return sorted(found[self.name].partitions)

    def state(self) -> TopicState:
        """The ends of its partitions now.

        Raises:
            ValueError: there is no such topic.
            KafkaUnavailable: no answer.
        """
        consumer = self._connected()
        low, high = {}, {}
        for number in self.partitions():
            low[number], high[number] = self._patiently(
                f"tell the offsets of {self.name}/{number}",
                partial(ends, consumer, TopicPartition(self.name, number), self._client.call_s),
            )
        return TopicState(self._id(), low, high)

    def at_time(self, time_ms: int) -> dict[int, int]:
        """By partition, the first offset whose Kafka timestamp is then or later; the end where there is none."""
        consumer = self._connected()
        places = [TopicPartition(self.name, number, time_ms) for number in self.partitions()]
        timeout_s = self._client.call_s
        found = self._patiently("look up offsets by time", lambda: consumer.offsets_for_times(places, timeout=timeout_s))
        high = self.state().high
        return {place.partition: place.offset if place.offset >= 0 else high[place.partition] for place in found}

    def _id(self) -> str | None:
        if self._admin is None:
            self._admin = self._client.admin()
        try:
            asked = self._admin.describe_topics(TopicCollection([self.name]), request_timeout=self._client.call_s)
            return str(asked[self.name].result().topic_id)
        except (KafkaException, AttributeError):
            return None  # a cluster before Kafka 2.8, or no right to describe: offsets alone must tell then

    def _connected(self) -> Consumer:
        if self._consumer is None:
            self._consumer = self._client.consumer(error_cb=self._note)
        return self._consumer

    def _note(self, error: KafkaError) -> None:
        self._fault = error

    def _patiently(self, what: str, call: Callable[[], _T]) -> _T:
        def attempt() -> _T:
            try:
                return call()
            except KafkaException:
                # What the call says is that it did not work; why, as a refused password, comes by way of the callback.
                self._fault = None
                self._connected().poll(0.0)
                if self._fault is not None:
                    raise KafkaException(self._fault) from None
                raise

        return self._client.patiently(what, attempt)


def ends(consumer: Consumer, place: TopicPartition, timeout_s: float = CALL_S) -> tuple[int, int]:
    """The first offset and the end; with read_committed that is the end of the last transaction that is decided."""
    offsets: tuple[int, int] | None = consumer.get_watermark_offsets(place, timeout=timeout_s)
    if offsets is None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return offsets
