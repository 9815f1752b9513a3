"""The checkpoint folder: one process, one job, files whole or not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runners.checkpoint import Checkpoint, CheckpointError, write_atomically
from tests.runners.streams import JOB

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkpoint(tmp_path):
    opened = Checkpoint(tmp_path / "deep" / "checkpoint", JOB)
    yield opened
    opened.close()


def test_what_is_written_is_read(checkpoint):
    assert checkpoint.last_commit() is None
    assert checkpoint.offset(0) is None
    assert checkpoint.commit(0) is None
    checkpoint.write_offset(0, {"plan": {"end": 1}})
    assert checkpoint.last_commit() is None, "decided is not done"
    checkpoint.write_commit(0, {"records": 7})
    assert (checkpoint.offset(0), checkpoint.commit(0), checkpoint.last_commit()) == ({"plan": {"end": 1}}, {"records": 7}, 0)


def test_numbers_beyond_six_digits(checkpoint):
    for number in (999_999, 1_000_000):
        checkpoint.write_commit(number, {"records": number})
    assert checkpoint.last_commit() == 1_000_000


def test_fresh_state_is_empty(checkpoint):
    folder = checkpoint.fresh_state_folder(3)
    (folder / "left").write_text("by a try that was killed")
    assert not list(checkpoint.fresh_state_folder(3).iterdir())


def test_files_that_are_half_written_do_not_count(checkpoint):
    (checkpoint.folder / "commits" / ".000005.json.tmp").write_text("{")
    (checkpoint.folder / "commits" / "notes.txt").write_text("by hand")
    assert checkpoint.last_commit() is None


def test_second_opening_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match=r"another process runs the job of .*stop it first"):
        Checkpoint(checkpoint.folder, JOB)
    checkpoint.close()
    Checkpoint(checkpoint.folder, JOB).close()


def test_second_process_is_refused_and_a_dead_one_does_not_block(tmp_path):
    script = (
        "import sys; from runners.checkpoint import Checkpoint\n"
        f"held = Checkpoint({str(tmp_path)!r}, {JOB!r}); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(CheckpointError, match="another process"):
            Checkpoint(tmp_path, JOB)
    finally:
        other.kill()
        other.communicate()
    Checkpoint(tmp_path, JOB).close()


def test_another_job_is_refused_with_what_differs(checkpoint):
    checkpoint.close()
    changed = {"name": "job", "source": {"path": "elsewhere", "columns": ["a", "b"]}, "new": 1}
    with pytest.raises(CheckpointError) as refused:
        Checkpoint(checkpoint.folder, changed)
    assert 'source.path: was "in", is "elsewhere"' in str(refused.value)
    assert "new: was null, is 1" in str(refused.value)
    assert "columns" not in str(refused.value), "what is the same is not said"
    Checkpoint(checkpoint.folder, JOB).close()  # the refused one left neither a lock nor its settings


def test_the_same_job_may_be_a_tuple_or_a_list(checkpoint):
    checkpoint.close()
    Checkpoint(checkpoint.folder, JOB | {"source": {"columns": ("a", "b"), "path": "in"}}).close()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "file.json"
    write_atomically(file, "old")
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
