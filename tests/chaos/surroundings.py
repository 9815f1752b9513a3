"""A small disk that can be filled, and a clock that can be made to jump, for a job's processes alone."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from pathlib import Path

START_S = 10.0


class SmallDisk:
    """A file system of its own, in memory and of some MB, that only the commands in it see (a mount namespace of Linux)."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        """Mounts it.

        Raises:
            Unavailable: this machine does not let its users mount.
        """
        folder.mkdir(parents=True)
        self.folder = folder
        script = f'mount -t tmpfs -o size={megabytes}m none "$0" && echo ready && exec sleep infinity'
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(folder)]
        try:
            self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except OSError as error:
            raise Unavailable(str(error)) from error
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise Unavailable("users may not mount here")
        # The same folder, seen from outside.
        self.inside = Path(f"/proc/{self._holder.pid}/root{folder.resolve()}")

    def enter(self, command: list[str]) -> list[str]:
        """A command as one that sees the disk."""
        return ["nsenter", "--user", "--mount", "--preserve-credentials", f"--target={self._holder.pid}", *command]

    def fill(self, leave_bytes: int = 0) -> None:
        """Leaves no room, or hardly any."""
        room = shutil.disk_usage(self.inside).free - leave_bytes
        with (self.inside / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while leave_bytes == 0 or file.tell() < room:
                file.write(bytes(4096))

    def free(self) -> None:
        """Makes room again."""
        (self.inside / "filler").unlink()

    def close(self) -> None:
        """It is gone with the last process that sees it."""
        self._holder.kill()
        self._holder.wait()


class Unavailable(Exception):
    """This machine lacks what a fault takes; says what."""


class JumpingClock:
    """A wall clock for a job's processes."""

    def __init__(self, folder: Path) -> None:
        """Compiles the library that is preloaded.

        Raises:
            Unavailable: there is no C compiler.
        """
        compiler = shutil.which("cc")
        if compiler is None:
            raise Unavailable("no C compiler")
        library, self._file = folder / "clock.so", folder / "clock.txt"
        source = Path(__file__).parent / "clock.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True, capture_output=True)
        self.jump(0)
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._file)}

    def jump(self, seconds: int) -> None:
        """So many seconds off the real time, from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._file)


def wait_until(done: object, what: str, timeout_s: float) -> None:
    """Waits for something; fails if it does not come."""
    assert callable(done)
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"after {timeout_s:g} s not yet: {what}"
        time.sleep(0.05)
