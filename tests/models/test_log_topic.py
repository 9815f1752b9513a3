"""The activation log in a topic of a real broker: one sequence, whoever writes, and whenever one of them is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from models.activation_log import ActivationInPast, ActivationLog, LogCorrupt, LogError
from models.activations import Activation
from models.log_store import TopicPlace
from models.log_topic import LogTopic, make_topic
from pipelines.cli import main
from runners.local_kafka import kafka_broker
from tests.kafka import Cluster
from tests.models.test_activation_log import S, add_versions, append_for_ever, append_many

GRID = json.dumps({"format": 1, "model": "m", "grid_us": S})


@pytest.fixture
def root(tmp_path: Path) -> str:
    return add_versions(tmp_path / "registry")


@pytest.fixture
def place(kafka: Cluster) -> TopicPlace:
    made = TopicPlace(kafka.bootstrap, f"log-{os.urandom(4).hex()}")
    make_topic(made)
    return made


def test_a_log_moves_with_its_entries_and_whoever_has_it_open_follows(root, place) -> None:
    writer, job = ActivationLog(root, "m", 5 * S), ActivationLog(root, "m")
    first, sealed = writer.activate(1, 0, by="ann", reason="r"), job.seal(7 * S, "job")
    copied = pickle.loads(pickle.dumps(job))
    assert writer.move(place) == 2 and writer.topic == place
    assert writer.move(place) == 2, "once more changes nothing"
    second = writer.activate(2, by="ann", reason="r")
    assert second.sequence == 3 and second.effective_from_us == sealed.until_us == 10 * S
    for log in (job, copied, pickle.loads(pickle.dumps(job)), ActivationLog(root, "m")):
        assert log.entries() == (first, sealed, second)
        assert log.grid_us == 5 * S and log.decisions() == (first, second)
    assert job.seal(20 * S, "job").sequence == 4
    with pytest.raises(ActivationInPast, match="job 'job' has begun to serve"):
        writer.activate(3, 11 * S, by="ann", reason="r")
    with pytest.raises(LogError, match="refresh grid of 5000000"):
        ActivationLog(root, "m", S).entries()
    assert sorted(file.name for file in Path(root, "m", "activations").iterdir()) == [
        *(f"{number:012d}.json" for number in (1, 2, 3)),
        "log.json",
    ]


def test_a_registry_without_a_common_disk_joins_the_log(root, place, tmp_path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    shutil.copytree(root, elsewhere)
    job, operator = ActivationLog(root, "m"), ActivationLog(elsewhere, "m")
    job.activate(1, by="ann", reason="r")
    job.move(place)
    assert operator.entries() == ()
    assert operator.move(place) == 1 and operator.entries() == job.entries()
    operator.activate(2, 5 * S, by="ann", reason="from afar")
    assert job.live(6 * S).version == 2
    apart = add_versions(tmp_path / "apart")
    stranger = ActivationLog(apart, "m")
    stranger.activate(4, by="bob", reason="another story")
    with pytest.raises(LogError, match=r"holds another log than .*entry 1 differs"):
        stranger.move(place)
    with pytest.raises(LogError, match="holds the log of model 'm'"):
        ActivationLog(add_versions(tmp_path / "other", "n"), "n").move(place)


def test_the_first_message_of_a_number_counts(kafka, place) -> None:
    # What two writers that have read as far as each other send.
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for key, value in [("log", GRID), ("log", "{}"), ("entry", entry(1, 1)), ("entry", entry(1, 2)), ("entry", entry(2, 3))]:
        producer.produce(place.topic, value, key)
    producer.flush()
    store = LogTopic(place)
    assert store.header() == GRID
    assert [json.loads(text)["version"] for text in store.read(0)] == [1, 3]
    assert [json.loads(text)["version"] for text in store.read(1)] == [3]
    assert store.create(2, entry(2, 9)) is False
    assert store.create(3, entry(3, 9)) is True
    assert [json.loads(text)["version"] for text in store.read(2)] == [9]


def test_threads_that_create_the_same_entry_agree_on_who_was_first(place) -> None:
    stores = [LogTopic(place) for _ in range(4)]
    barrier, won = threading.Barrier(4), []

    def race(number: int) -> None:
        for sequence in range(1, 26):
            stores[number].read(sequence - 1)
            barrier.wait()
            if stores[number].create(sequence, entry(sequence, number + 1)):
                won.append((sequence, number + 1))
            barrier.wait()

    threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    given = [json.loads(text) for text in LogTopic(place).read(0)]
    assert sorted(won) == [(one["sequence"], one["version"]) for one in given]
    assert [one["sequence"] for one in given] == list(range(1, 26))


def entry(sequence: int, version: int) -> str:
    return json.dumps({"sequence": sequence, "version": version})


def test_two_processes_append_at_once_and_nothing_is_lost(root, place) -> None:
    ActivationLog(root, "m").move(place)
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=append_many, args=(root, name, 60)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    entries = ActivationLog(root, "m").entries()
    assert [entry.sequence for entry in entries] == list(range(1, 121))
    for name in ("a", "b"):
        assert [entry.reason for entry in entries if entry.by == name] == [str(number) for number in range(60)]


def test_writers_killed_at_any_moment_leave_a_whole_log_that_others_write_on_at_once(root, place) -> None:
    seed = 20250301
    moments, spawn, promised = random.Random(seed), multiprocessing.get_context("spawn"), {}
    ActivationLog(root, "m").move(place)
    other = ActivationLog(root, "m")
    for number in range(3):
        ours, theirs = spawn.Pipe(duplex=False)
        writer = spawn.Process(target=append_for_ever, args=(root, f"w{number}", theirs))
        writer.start()
        theirs.close()
        messages, seen = [ours.recv_bytes()], 0  # it has begun
        deadline = time.monotonic() + moments.uniform(0.0, 0.2)
        while time.monotonic() < deadline:
            other.activate(1 + seen % 9, seen * S, by="other", reason=f"{number} {seen}")  # races with it
            seen += 1
            while ours.poll(0):
                messages.append(ours.recv_bytes())
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        began = time.monotonic()
        other.activate(9, by="after", reason=f"{number}")
        assert time.monotonic() - began < 5.0, "nothing of who was killed is waited for"
        try:
            while True:
                messages.append(ours.recv_bytes())
        except (EOFError, OSError):
            pass
        for message in messages:
            sequence, reason = message.decode().split(" ", 1)
            promised[int(sequence)] = reason
        entries = ActivationLog(root, "m").entries()
        assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1)), f"seed {seed}"
        reasons = {entry.sequence: entry.reason for entry in entries if isinstance(entry, Activation)}
        assert promised.items() <= reasons.items(), f"seed {seed}"
        assert entries == other.entries()
    assert {"other", "w0", "w1", "w2"} <= {entry.by for entry in entries}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"partitions": 2}, "has 2 partitions"),
        ({"config": {"cleanup.policy": "compact"}}, "would forget entries .*cleanup.policy=compact"),
        ({"config": {"retention.ms": "1000"}}, "would forget entries .*retention.ms=1000"),
    ],
)
def test_a_topic_that_will_not_do_is_refused(kafka, settings, says) -> None:
    with pytest.raises(LogError, match=says):
        make_topic(TopicPlace(kafka.bootstrap, kafka.topic(**settings)))


def test_what_was_removed_or_does_not_belong_is_noticed(root, place, kafka) -> None:
    log = ActivationLog(root, "m")
    log.move(place)
    log.activate(1, by="ann", reason="r")
    kafka.send(place.topic, [b"hello"])
    with pytest.raises(LogCorrupt, match=r"offset 2 of topic .* is no entry"):
        log.entries()
    kafka.remove_before(place.topic, 0, 3)
    with pytest.raises(LogCorrupt, match="were removed: it has offsets 3 to 3"):
        ActivationLog(root, "m").entries()


def test_a_broker_that_comes_back_has_the_log(root, tmp_path) -> None:
    with kafka_broker(tmp_path / "kafka") as broker:
        place = TopicPlace(broker.bootstrap, "log")
        make_topic(place)
        log = ActivationLog(root, "m")
        log.move(place)
        log.activate(1, by="ann", reason="r")
        broker.kill()
        back = threading.Thread(target=broker.start)
        back.start()
        assert log.activate(2, 5 * S, by="ann", reason="while it was away").sequence == 2
        back.join()
        assert [entry.version for entry in ActivationLog(root, "m").entries()] == [1, 2]


def test_the_commands_work_as_before(root, kafka) -> None:
    def midstream(*arguments: str) -> str:
        given = [arguments[0], "--registry", root, *arguments[1:]]
        done = CliRunner().invoke(main, given, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    ActivationLog(root, "m").activate(1, by="ann", reason="r")
    topic = f"log-{os.urandom(4).hex()}"
    told = midstream("move-log", "--model", "m", "--bootstrap", kafka.bootstrap, "--topic", topic)
    assert f"the log of m, 1 entries, is in topic {topic}" in told
    midstream("pause", "--model", "m", "--reason", "holidays")
    assert [(row["kind"], row["reason"]) for row in json.loads(midstream("log", "--model", "m", "--json"))] == [
        ("activate", "r"),
        ("pause", "holidays"),
    ]
    [row] = json.loads(midstream("status", "--json"))
    assert (row["live"], row["last entry"]) == (1, 2) and "holidays" in row["paused by"]
