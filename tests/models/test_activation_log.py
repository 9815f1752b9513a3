import json
import multiprocessing
import os
import pickle
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.activation_log import ActivationInPast, ActivationLog, LogCorrupt, LogError, NothingToRollBack
from models.activations import Activation, Seal
from models.digest import Digests
from models.log_files import LogFiles
from models.registry import Manifest, Registry, UnknownVersion
from models.signature import Signature
from models.timeline import MAX_TIME_US, MIN_TIME_US

S = 1_000_000


def add_versions(root, model="m", versions=range(1, 10)):
    """Published versions, as far as a log looks at them."""
    for version in versions:
        folder = Path(root, model, str(version))
        folder.mkdir(parents=True)
        manifest = Manifest(model, version, Digests("a", "b", "c"), Signature({}, {}))
        (folder / "manifest.json").write_text(manifest.to_json())
    return str(root)


@pytest.fixture
def root(tmp_path):
    return add_versions(tmp_path / "registry")


def live(log, *times_us):
    return log.timeline().as_of(np.array(times_us, dtype=np.int64)).tolist()


def test_a_version_is_live_from_the_next_boundary_of_the_grid(root):
    log = ActivationLog(root, "m")
    assert live(log, 0) == [0]
    assert log.activate(1, -1_500_000, by="ann", reason="first").effective_from_us == -1 * S
    assert log.activate(2, 1, by="ann", reason="better").effective_from_us == 1 * S
    assert live(log, -1 * S - 1, -1 * S, S - 1, S) == [0, 1, 1, 2]
    assert [entry.sequence for entry in ActivationLog(root, "m").entries()] == [1, 2]
    assert Registry(root).models() == ["m"] and Registry(root).versions("m") == list(range(1, 10))


def test_without_a_time_it_is_live_from_the_earliest_boundary_that_is_possible(root):
    log = ActivationLog(root, "m")
    assert log.activate(1, by="ann", reason="r").effective_from_us == MIN_TIME_US
    log.seal(5 * S + 1, "job")
    log.seal(3 * S, "other")
    assert log.earliest_us() == 6 * S
    assert log.activate(2, by="ann", reason="r").effective_from_us == 6 * S
    assert log.activate(3, by="ann", reason="r", not_before_us=8 * S - 1).effective_from_us == 8 * S
    assert log.activate(4, by="ann", reason="r", not_before_us=0).effective_from_us == 6 * S
    assert live(log, 0, 6 * S, 8 * S) == [1, 4, 3]


def test_what_a_job_has_begun_to_serve_is_changed_by_that_job_only(root):
    log = ActivationLog(root, "m")
    log.activate(1, by="ann", reason="r")
    log.seal(100 * S, "job 7")
    with pytest.raises(ActivationInPast) as refused:
        log.activate(2, 99 * S, by="ann", reason="r")
    for part in ("'job 7'", "1970-01-01T00:01:39", "1970-01-01T00:01:40", "version 2"):
        assert part in str(refused.value)
    with pytest.raises(ActivationInPast):
        log.activate(2, MIN_TIME_US, by="ann", reason="r")
    assert log.activate(2, 50 * S, by="job 7", reason="r").effective_from_us == 50 * S
    assert log.activate(3, 100 * S, by="ann", reason="r").effective_from_us == 100 * S
    log.seal(60 * S, "job 8")
    with pytest.raises(ActivationInPast):
        log.activate(4, 55 * S, by="job 7", reason="r")


def test_a_seal_is_never_lowered_and_written_once(root):
    log = ActivationLog(root, "m")
    first = log.seal(10 * S, "job")
    assert log.seal(10 * S - 5, "job") == log.seal(1, "job") == ActivationLog(root, "m").seal(10 * S, "job") == first
    assert log.seal(10 * S + 1, "job").until_us == 11 * S
    assert [type(entry) for entry in log.entries()] == [Seal, Seal]
    assert log.seal(MAX_TIME_US, "job").until_us == MAX_TIME_US
    with pytest.raises(ActivationInPast, match="end of time"):
        log.activate(1, by="ann", reason="r")


def test_repeating_a_call_appends_nothing(root):
    log = ActivationLog(root, "m")
    one = log.activate(1, 5 * S, by="job", reason="r")
    log.activate(2, 7 * S, by="job", reason="r")
    log.seal(50 * S, "other")
    assert ActivationLog(root, "m").activate(1, 5 * S - 1, by="job", reason="r") == one
    two = log.activate(3, by="ann", reason="r")
    assert log.activate(3, by="ann", reason="r") == two
    assert log.activate(3, by="bob", reason="r") != two
    log.activate(4, by="ann", reason="r")
    assert log.activate(3, by="ann", reason="r").sequence > two.sequence, (
        "3 was replaced, so asking for it again is a new request"
    )


def test_a_rollback_goes_back_one_version_and_another_one_further(root):
    log = ActivationLog(root, "m")
    with pytest.raises(NothingToRollBack, match="nothing is live"):
        log.rollback("ann", "r")
    for version in (1, 2, 3):
        log.activate(version, by="ann", reason="r")
        log.seal(version * 10 * S, "job")
    log.activate(5, 90 * S, by="ann", reason="planned")
    back = log.rollback("ann", "bad")
    assert (back.version, back.kind, back.effective_from_us) == (2, "rollback", 30 * S)
    assert log.rollback("ann", "bad too").version == 1
    with pytest.raises(
        NothingToRollBack, match=r"version 1 is the first one.* Version 5 is to be live from 1970-01-01T00:01:30"
    ):
        log.rollback("ann", "r")
    assert live(log, 29 * S, 30 * S, 90 * S) == [3, 1, 5]
    assert log.rollback("ann", "to", to=3).version == 3
    assert log.rollback("ann", "to", to=3).sequence == log.entries()[-1].sequence
    with pytest.raises(NothingToRollBack, match="live already"):
        log.rollback("bob", "r", to=3)
    assert log.rollback("ann", "r", effective_from_us=95 * S).version == 3
    with pytest.raises(UnknownVersion):
        log.rollback("ann", "r", to=77)


def test_only_published_versions_become_live(root):
    with pytest.raises(UnknownVersion, match=r"no version 12 .*1 to 9"):
        ActivationLog(root, "m").activate(12, by="ann", reason="r")
    with pytest.raises(UnknownVersion, match="the models there: m"):
        ActivationLog(root, "typo").activate(1, by="ann", reason="r")
    assert not Path(root, "typo").exists() and not Path(root, "m", "activations").exists()
    with pytest.raises(LogError, match="name of a job"):
        ActivationLog(root, "m").activate(1, by="", reason="r")


def test_a_log_keeps_its_grid(root):
    early, hasty = ActivationLog(root, "m"), ActivationLog(root, "m", 7)
    ActivationLog(root, "m", 60 * S).activate(1, 1, by="ann", reason="r")
    assert ActivationLog(root, "m").grid_us == 60 * S
    assert early.activate(2, 61 * S, by="ann", reason="r").effective_from_us == 120 * S
    for open_it in (lambda: ActivationLog(root, "m", S), lambda: hasty.seal(1, "job"), hasty.entries):
        with pytest.raises(LogError, match="refresh grid of 60000000"):
            open_it()


def test_a_log_is_tailed_and_survives_pickling(root, monkeypatch):
    writer, reader = ActivationLog(root, "m"), ActivationLog(root, "m")
    one = writer.activate(1, by="ann", reason="r")
    assert reader.decisions() == (one,)
    two = writer.seal(S, "job")
    read = []
    monkeypatch.setattr(LogFiles, "_read", lambda self, number, real=LogFiles._read: read.append(number) or real(self, number))
    assert pickle.loads(pickle.dumps(reader)).sealed_us("job") == reader.sealed_us("job") == S
    assert read == [2, 2], "only what was not read before"
    assert reader.entries() == (one, two)


def test_who_follows_a_log_keeps_no_seals_but_the_furthest(root):
    writer, reader = ActivationLog(root, "m"), ActivationLog(root, "m")
    sizes = []
    for number in range(1, 41):
        writer.seal(number * S, "job")
        assert reader.sealed_us("job") == number * S
        sizes.append(len(pickle.dumps(reader)))
    assert max(sizes) - min(sizes) < 100
    late = writer.activate(1, by="ann", reason="behind all seals")
    assert reader.live(40 * S) == late and reader.decisions() == (late,) and len(reader.entries()) == 41


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: (folder / "000000000002.json").unlink(), "000000000002.json is missing"),
        (lambda folder: (folder / "000000000003.json").write_text('{"format": 1, "ent'), "000000000003.json is no entry"),
        (lambda folder: (folder / "000000000003.json").write_bytes(b"\xff\x00"), "000000000003.json is garbled"),
        (lambda folder: (folder / "000000000003.json").write_text("[]"), "000000000003.json is no entry"),
        (
            lambda folder: (folder / "000000000003.json").write_bytes((folder / "000000000001.json").read_bytes()),
            "expected entry 3",
        ),
        (lambda folder: edit(folder / "000000000001.json", version="1"), "000000000001.json is no entry"),
        (lambda folder: edit(folder / "000000000001.json", effective_from_us=5), "on the grid"),
        (lambda folder: edit(folder / "000000000001.json", share=0.5), "share of 1.0"),
        (lambda folder: edit(folder / "000000000001.json", extra=1), "extra"),
        (lambda folder: (folder / "log.json").write_text("{}"), "log.json is garbled"),
    ],
)
def test_a_damaged_log_is_refused_by_the_name_of_the_file(root, harm, says):
    log = ActivationLog(root, "m")
    for version in (1, 2, 3):
        log.activate(version, by="ann", reason="r")
    harm(Path(root, "m", "activations"))
    with pytest.raises(LogCorrupt, match=says):
        ActivationLog(root, "m").entries()


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_entries_that_vanish_are_noticed_by_who_has_read_them(root):
    log = ActivationLog(root, "m")
    log.activate(1, by="ann", reason="r")
    Path(root, "m", "activations", "000000000001.json").unlink()
    with pytest.raises(LogCorrupt, match="is gone"):
        log.activate(2, by="ann", reason="r")


requests = st.lists(
    st.one_of(
        st.tuples(st.just("activate"), st.integers(1, 5), st.one_of(st.none(), st.integers(-40, 40)), st.sampled_from("ab")),
        st.tuples(st.just("seal"), st.just(0), st.integers(-40, 40), st.sampled_from("ab")),
        st.tuples(st.just("rollback"), st.just(0), st.none(), st.sampled_from("ab")),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(requests)
def test_what_was_served_never_changes_but_by_the_job_that_serves(tmp_path_factory, actions):
    root = add_versions(tmp_path_factory.mktemp("log"), versions=range(1, 6))
    log, served, moments = ActivationLog(root, "m", grid_us=5), {}, np.arange(-45, 45)
    before = log.timeline().as_of(moments)
    for reason, (what, version, time_us, by) in enumerate(actions):
        try:
            if what == "activate":
                log.activate(version, time_us, by=by, reason=str(reason))
            elif what == "rollback":
                log.rollback(by, str(reason))
            else:
                until = log.seal(time_us, by).until_us
                served[by] = max(served.get(by, -99), until)
        except (ActivationInPast, NothingToRollBack):
            continue
        now = log.timeline().as_of(moments)
        for job, until in served.items():
            if job != by and what != "seal":
                assert (now == before)[moments < until].all(), (job, until)
        before = now
        assert ActivationLog(root, "m").timeline() == log.timeline()


def append_many(root, name, count):
    log = ActivationLog(root, "m")
    for number in range(count):
        log.activate(1 + number % 9, number * S, by=name, reason=str(number))


def test_two_processes_append_at_once_and_nothing_is_lost(root):
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=append_many, args=(root, name, 200)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    entries = ActivationLog(root, "m").entries()
    assert [entry.sequence for entry in entries] == list(range(1, 401))
    for name in ("a", "b"):
        assert [entry.reason for entry in entries if entry.by == name] == [str(number) for number in range(200)]


def append_for_ever(root, name, acknowledged):
    log = ActivationLog(root, "m")
    number = 0
    while True:
        entry = log.activate(1 + number % 9, number * S, by=name, reason=f"{os.getpid()} {number}")
        acknowledged.send_bytes(f"{entry.sequence} {entry.reason}".encode())
        number += 1


def test_writers_killed_at_any_moment_leave_a_whole_log(root):
    seed = 20240611
    moments, spawn, promised = random.Random(seed), multiprocessing.get_context("spawn"), {}
    for round_number in range(4):
        ours, theirs = spawn.Pipe(duplex=False)
        writer = spawn.Process(target=append_for_ever, args=(root, f"w{round_number}", theirs))
        writer.start()
        theirs.close()
        messages = [ours.recv_bytes()]  # it has begun
        deadline = time.monotonic() + moments.uniform(0.0, 0.05)
        while time.monotonic() < deadline:
            if ours.poll(0):
                messages.append(ours.recv_bytes())
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
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
        assert all(isinstance(entry, Activation) for entry in entries)
        assert promised.items() <= {entry.sequence: entry.reason for entry in entries}.items(), f"seed {seed}"
