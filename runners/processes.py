"""Starts processes that belong to this one, waits until they answer, and sees to it that none is left behind.

    with Supervisor() as supervisor:
        folder = supervisor.folder("kafka")
        broker = supervisor.start("kafka", command, ready=r"Kafka Server started")

Each process has a group of its own. Whatever way the block is left, by its end, an error or Ctrl-C, all groups are ended and
all folders deleted; `runners.guard` does the same if this process is killed. Output goes to a log file; errors go to
Python's logging as well, and the last lines into the error if a process dies before it answers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from runners import guard
from runners.engines import EngineError

Started = TypeVar("Started")
_log = logging.getLogger("midstream.engines")
START_S = 90.0  # an engine that has not answered by then will not; on two busy cores Flink was seen to take 25
_TAIL_LINES = 25
_ERROR = re.compile(r"\b(ERROR|FATAL|SEVERE)\b|^Exception in thread")
# What engines say as an error at every start or stop, and nobody can do anything about.
_NOISE = re.compile(
    r"RECEIVED SIGNAL|executing runnable|data plane|in thread read_|Clean up app dir|listener notification task|Failed to add|"
    r"SerializingExecutor|DefaultJobBundleFactory|log4j:|SLF4J|StatusLogger|Failed to shut ?down|Shutting down"
)


class Process:
    """A process in a group of its own, with its output."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_file: Path,
        *,
        ready: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Starts it.

        Args:
            name: for messages.
            command: program and arguments.
            log_file: takes its output.
            ready: regular expression of the line that says that it answers.
            env: variables beside those of this process.
            cwd: where it runs.

        Raises:
            EngineError: it cannot be started.
        """
        self.name, self.log_file = name, log_file
        self._ready = None if ready is None else re.compile(ready)
        self._answer: Future[re.Match[str] | None] = Future()
        self._last_lines: deque[str] = deque(maxlen=_TAIL_LINES)
        try:
            self._popen = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | (env or {}),
                cwd=cwd,
                start_new_session=True,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise EngineError(f"{name} could not be started: {error}") from None
        self._reader = threading.Thread(target=self._read, name=f"log of {name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id, which is that of its group."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def has_ended(self, within_s: float) -> bool:
        """Whether it is gone, or goes within some seconds."""
        try:
            self._popen.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait_until_ready(self, timeout_s: float = START_S) -> re.Match[str]:
        """Waits for the line that says that it answers, and gives the match.

        Raises:
            EngineError: it ended first, or the time was up; with the last lines it said.
        """
        try:
            answer = self._answer.result(timeout_s)
        except TimeoutError:
            raise EngineError(f"{self.name} has not answered for {timeout_s:.0f} s:\n{self.tail()}") from None
        if answer is None:
            raise EngineError(f"{self.name} ended with status {self._popen.wait()} before it answered:\n{self.tail()}")
        return answer

    def tail(self) -> str:
        """The last lines of its output."""
        return "\n".join(self._last_lines)

    def stop(self, grace_s: float = guard.GRACE_S) -> None:
        """Ends it and all that it started; does nothing if it is gone."""
        guard.end_groups([self.pid], grace_s)
        self._popen.wait()
        self._reader.join(timeout=5)

    def kill(self) -> None:
        """Ends it as a power cut would: for tests of recovery."""
        self.stop(grace_s=0)

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self.log_file.open("a", encoding="utf-8") as file, self._popen.stdout as lines:
            for line in lines:
                file.write(line)
                file.flush()
                self._last_lines.append(line.rstrip("\n"))
                if not self._answer.done() and self._ready is not None and (found := self._ready.search(line)):
                    self._answer.set_result(found)
                if _ERROR.search(line) and not _NOISE.search(line):
                    _log.error("%s: %s", self.name, line.strip())
        self._popen.wait()
        if not self._answer.done():
            self._answer.set_result(None)


class Supervisor:
    """Owns processes and scratch folders; a context manager."""

    def __init__(self) -> None:
        self._processes: list[Process] = []
        self._folders: list[Path] = []
        self._lock = threading.Lock()
        self._guard: subprocess.Popen[str] | None = None

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def folder(self, name: str) -> Path:
        """A new scratch folder, which goes with the supervisor."""
        path = Path(tempfile.mkdtemp(prefix=f"midstream-{name}-"))
        self._folders.append(path)
        self._tell(f"+folder {path}")
        return path

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_folder: Path,
        ready: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = START_S,
    ) -> Process:
        """Starts a process and waits for the line that says that it answers.

        Args:
            name: for messages, and of the log file.
            command: program and arguments.
            log_folder: where `NAME.log` goes, and where the process runs.
            ready: regular expression; None does not wait.
            env: variables beside those of this process.
            timeout_s: how long it may take until it answers.

        Raises:
            EngineError: it cannot be started, dies first, or does not answer in time.
        """
        process = Process(name, command, log_folder / f"{name}.log", ready=ready, env=env, cwd=log_folder)
        self._tell(f"+group {process.pid}")
        with self._lock:
            self._processes.append(process)
        if ready is not None:
            try:
                process.wait_until_ready(timeout_s)
            except BaseException:
                self.end(process)
                raise
        return process

    def end(self, process: Process) -> None:
        """Ends one process, before the others."""
        process.stop()
        with self._lock:
            if process in self._processes:
                self._processes.remove(process)
        self._tell(f"-group {process.pid}")

    def close(self) -> None:
        """Ends all processes and deletes all folders."""
        with self._lock:
            processes, self._processes = self._processes, []
        # Together: each may take its time, and clients should go before what they talk to.
        guard.end_groups([process.pid for process in reversed(processes)])
        for process in processes:
            process.stop(grace_s=0)
        for path in self._folders:
            shutil.rmtree(path, ignore_errors=True)
        self._folders = []
        if self._guard is not None:
            assert self._guard.stdin is not None
            for process in processes:
                self._tell(f"-group {process.pid}")  # its number may be another's by now
            with contextlib.suppress(OSError):
                self._guard.stdin.close()
            self._guard.wait()
            self._guard = None

    def _tell(self, line: str) -> None:
        if self._guard is None:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                text=True,
            )
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):
            self._guard.stdin.write(f"{line}\n")
            self._guard.stdin.flush()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses now; all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def is_free(port: int) -> bool:
    """Whether a process of this machine could listen there."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def with_free_ports(count: int, start: Callable[[list[int]], Started], tries: int = 3) -> Started:
    """Starts something on free ports; once more on others if somebody took one in between."""
    for left in reversed(range(tries)):
        try:
            return start(free_ports(count))
        except EngineError as error:
            if not left or not re.search(r"already in use|BindException|Failed to bind", str(error)):
                raise
    raise AssertionError
