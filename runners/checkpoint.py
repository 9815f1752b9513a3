"""The checkpoint of a micro-batch job: what each micro-batch was to read, and which ones are done.

    job.json              which job this is; another one is refused
    offsets/000042.json   written before micro-batch 42 runs: the input it reads, and no other, however often it is tried
    commits/000042.json   written when everything micro-batch 42 gives is in place
    state/000042/         what micro-batch 42 left for micro-batch 43

A crash leaves at most one offset without its commit; that micro-batch is run again over the same input, from the same state.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import IO, Any

LOCK = "lock"
KEPT_STATES = 2  # that of the last commit, and of the one before it in case the last is being looked at


class CheckpointError(Exception):
    """A checkpoint that cannot be used; says why and what to do."""


class Checkpoint:
    """Reads and writes the folder. One process at a time; a second one is refused."""

    def __init__(self, folder: str | Path, job: dict[str, Any]) -> None:
        """Opens the checkpoint, or begins one.

        Args:
            folder: on a local or shared disk.
            job: what makes a job the same job: a checkpoint of another one is refused.

        Raises:
            CheckpointError: another process uses it, or it belongs to another job.
        """
        self.folder = Path(folder)
        for name in ("offsets", "commits", "state"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._lock_file = lock(self.folder / LOCK)
        try:
            self._open_job(job)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets another process use the checkpoint."""
        self._lock_file.close()

    def last_commit(self) -> int | None:
        """The number of the last micro-batch that is done; None at the start."""
        return max(self._numbers("commits"), default=None)

    def offset(self, number: int) -> dict[str, Any] | None:
        """What micro-batch `number` reads, if that was decided."""
        return self._read("offsets", number)

    def commit(self, number: int) -> dict[str, Any] | None:
        """What was noted when micro-batch `number` was done."""
        return self._read("commits", number)

    def write_offset(self, number: int, offset: dict[str, Any]) -> None:
        """Decides what micro-batch `number` reads."""
        self._write("offsets", number, offset)

    def write_commit(self, number: int, note: dict[str, Any]) -> None:
        """Says that micro-batch `number` is done, and drops states that nobody will need."""
        self._write("commits", number, note)
        for old in self._numbers("state"):
            if old <= number - KEPT_STATES:
                shutil.rmtree(self.state_folder(old))

    def state_folder(self, number: int) -> Path:
        """Where micro-batch `number` leaves its state."""
        return self.folder / "state" / f"{number:06d}"

    def fresh_state_folder(self, number: int) -> Path:
        """The same, empty: what an interrupted try left is gone."""
        folder = self.state_folder(number)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        return folder

    def _open_job(self, job: dict[str, Any]) -> None:
        file = self.folder / "job.json"
        text = json.dumps(job, indent=2, sort_keys=True)
        if not file.exists():
            write_atomically(file, text)
            return
        before = json.loads(file.read_text())
        now = json.loads(text)
        changes = "; ".join(_differences(before, now))
        if changes:
            raise CheckpointError(
                f"{self.folder} is the checkpoint of a job with other settings ({changes}). Use another output folder."
            )

    def _numbers(self, name: str) -> list[int]:
        return [int(entry.stem) for entry in (self.folder / name).iterdir() if entry.stem.isdigit()]

    def _read(self, name: str, number: int) -> dict[str, Any] | None:
        file = self.folder / name / f"{number:06d}.json"
        return json.loads(file.read_text()) if file.exists() else None

    def _write(self, name: str, number: int, content: dict[str, Any]) -> None:
        write_atomically(self.folder / name / f"{number:06d}.json", json.dumps(content))


def lock(file: Path) -> IO[str]:
    """Locks a checkpoint for as long as the file that this returns is open; the system lets go of it, however the process ends.

    Raises:
        CheckpointError: another process has it.
    """
    handle = file.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise CheckpointError(
            f"another process runs the job of {file.parent}: stop it first, or give this one another folder"
        ) from None
    return handle


def _differences(before: Any, now: Any, place: str = "") -> list[str]:
    """What differs, by the innermost settings."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            text for key in keys for text in _differences(before.get(key), now.get(key), f"{place}.{key}" if place else key)
        ]
    return [] if before == now else [f"{place}: was {json.dumps(before)}, is {json.dumps(now)}"]


def write_atomically(file: Path, text: str) -> None:
    """Writes a file whole or not at all, and keeps it over a crash of the machine."""
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.rename(file)
