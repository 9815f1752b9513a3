"""Processes are waited for, spoken for, and never left behind."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from runners import guard
from runners.engines import EngineError
from runners.processes import Supervisor, free_ports, with_free_ports

SAY_AND_WAIT = "import time; print('listening on 42', flush=True); time.sleep(600)"


def test_waits_for_the_line_that_says_that_it_answers(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        process = supervisor.start(
            "echo", [sys.executable, "-c", SAY_AND_WAIT], log_folder=tmp_path, ready=r"listening on (\d+)"
        )
        assert process.wait_until_ready()[1] == "42"
        assert process.running
    assert not process.running
    assert (tmp_path / "echo.log").read_text() == "listening on 42\n"


def test_one_that_dies_first_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with Supervisor() as supervisor, pytest.raises(EngineError, match=r"status 3 before it answered:\n.*port 9 is taken"):
        supervisor.start(
            "echo", [sys.executable, "-c", "print('port 9 is taken'); exit(3)"], log_folder=tmp_path, ready="listening"
        )


def test_one_that_says_nothing_is_an_error_and_ended(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        with pytest.raises(EngineError, match="has not answered for 0 s"):
            supervisor.start("sleep", ["sleep", "600"], log_folder=tmp_path, ready="never", timeout_s=0.1)
        assert supervisor._processes == []


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with Supervisor() as supervisor, pytest.raises(EngineError, match="nowhere could not be started"):
        supervisor.start("nowhere", ["/no/such/program"], log_folder=tmp_path)


def test_errors_of_an_engine_reach_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = "print('INFO all is well'); print('ERROR disk full'); print('ready', flush=True); import time; time.sleep(600)"
    with caplog.at_level(logging.INFO, "midstream.engines"), Supervisor() as supervisor:
        supervisor.start("disk", [sys.executable, "-c", code], log_folder=tmp_path, ready="ready")
    assert [record.getMessage() for record in caplog.records] == ["disk: ERROR disk full"]


def test_what_a_process_started_goes_with_it(tmp_path: Path) -> None:
    # The shell's child ignores SIGTERM: it has to be killed.
    script = "trap '' TERM; (trap '' TERM; echo child $BASHPID; sleep 600 & wait) & wait"
    with Supervisor() as supervisor:
        process = supervisor.start("shell", ["bash", "-c", script], log_folder=tmp_path, ready=r"child (\d+)")
        child = int(process.wait_until_ready()[1])
        assert guard._alive(child)
        process.kill()
    assert not guard._alive(child)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_the_parent_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    parent = textwrap.dedent(f"""
        from pathlib import Path
        from runners.processes import Supervisor
        with Supervisor() as supervisor:
            folder = supervisor.folder("test")
            supervisor.start("sleep", ["sleep", "600"], log_folder=Path({str(tmp_path)!r}))
            print(supervisor._processes[0].pid, supervisor._guard.pid, folder, flush=True)
            input()
    """)
    started = subprocess.Popen(
        [sys.executable, "-c", parent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(guard.__file__).parents[1])},
    )
    assert started.stdout is not None
    pid, watcher, folder = started.stdout.readline().split()
    assert guard._alive(int(pid))
    assert Path(folder).is_dir()
    started.send_signal(number)
    started.communicate()
    _wait_for_end(int(watcher))
    assert not guard._alive(int(pid))
    assert not Path(folder).exists()


def test_free_ports_differ_and_another_try_takes_others() -> None:
    assert len(set(free_ports(20))) == 20
    tried: list[int] = []

    def start(ports: list[int]) -> str:
        tried.extend(ports)
        if len(tried) == 1:
            raise EngineError("java.net.BindException: Address already in use")
        return "up"

    assert with_free_ports(1, start) == "up"
    assert len(tried) == 2


def _wait_for_end(pid: int) -> None:
    """Of a process that is no child of this one any more."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    import select

    assert select.select([handle], [], [], 20)[0], "the guard did not end"
    os.close(handle)
