"""Work on a version that nobody has tried yet, in a process of its own: it may hang, crash or eat memory, and harms nobody.

The child is a fresh interpreter (`models.isolated`), never a fork: a fork of a process with TensorFlow's threads deadlocks. It
says which step it is in, so that a version that hangs or crashes is told of by where it did.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULT, STEPS, ERRORS = "result.json", "steps.txt", "stderr.txt"
OUT_OF_MEMORY = 77  # the child's exit status when it ran into its limit and could still say so
_TAIL_BYTES = 4000
_SIGNS_OF_MEMORY = ("MemoryError", "bad_alloc", "Cannot allocate memory", "OOM", "ResourceExhausted", "out of memory")


@dataclass(frozen=True)
class Limits:
    """What the child may take.

    Attributes:
        seconds: wall clock, importing TensorFlow not counted.
        memory_bytes: address space beyond what it has once TensorFlow is imported.
        nice: how far it steps back behind other processes.
    """

    seconds: float = 120.0
    memory_bytes: int = 4 << 30
    nice: int = 0


class IsolatedFailure(Exception):
    """The child did not come to an end.

    Attributes:
        kind: hung, crashed, memory or failed.
        step: what it was doing.
    """

    def __init__(self, kind: str, step: str, said: str) -> None:
        super().__init__(said)
        self.kind, self.step = kind, step


STARTUP_S = 120.0  # importing TensorFlow on a busy machine


def run_isolated(task: str, arguments: Mapping[str, Any], limits: Limits, keep: str | None = None) -> dict[str, Any]:
    """Runs a task of `models.isolated` in a process of its own.

    Args:
        task: its name there.
        arguments: JSON-able.
        limits: what it may take.
        keep: a folder for files that the task leaves; thrown away if None.

    Returns:
        What the task gave.

    Raises:
        IsolatedFailure: says what happened, in which step.
    """
    with tempfile.TemporaryDirectory(prefix="midstream-isolated-") as scratch:
        folder = Path(scratch)
        order = {"task": task, "arguments": dict(arguments), "limits": vars(limits), "folder": keep or scratch}
        (folder / "order.json").write_text(json.dumps(order))
        with (folder / ERRORS).open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "models.isolated", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=scratch,
                env=_environment(),
                start_new_session=True,
            )
        try:
            status = child.wait(limits.seconds + STARTUP_S)
        except subprocess.TimeoutExpired:
            status = -signal.SIGALRM
        finally:
            _end(child)
        steps = (folder / STEPS).read_text().split("\n") if (folder / STEPS).exists() else []
        step = next((line for line in reversed(steps) if line), "starting")
        if status == 0 and (folder / RESULT).exists():
            return dict(json.loads((folder / RESULT).read_text()))
        raise _failure(status, step, _tail(folder / ERRORS), limits)


_CHATTER = re.compile(r"[IW]\d{4} |WARNING: All log messages")  # what TensorFlow says of its surroundings


def _failure(status: int, step: str, tail: str, limits: Limits) -> IsolatedFailure:
    last = next((line for line in reversed(tail.splitlines()) if line.strip() and not _CHATTER.match(line)), "")
    if status in (-signal.SIGALRM, -signal.SIGXCPU):
        return IsolatedFailure("hung", step, f"it was not done with {step} after {limits.seconds:g} s")
    if status == OUT_OF_MEMORY or any(sign in tail for sign in _SIGNS_OF_MEMORY):
        return IsolatedFailure("memory", step, f"{step} took more than the {limits.memory_bytes:,} bytes that are allowed")
    if status < 0:
        name = signal.Signals(-status).name
        return IsolatedFailure("crashed", step, f"the process died of {name} while {step}{f': {last[:200]}' if last else ''}")
    return IsolatedFailure("failed", step, f"{step} failed: {last[:400] or f'exit status {status}'}")


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parent.parent)
    path = os.environ.get("PYTHONPATH")
    quiet = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
    }
    return {**os.environ, **quiet, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root}


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends the child and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tail(file: Path) -> str:
    with file.open("rb") as errors:
        errors.seek(0, os.SEEK_END)
        errors.seek(max(0, errors.tell() - _TAIL_BYTES))
        return errors.read().decode(errors="replace")


def remove(folder: str) -> None:
    """Removes what a task left."""
    shutil.rmtree(folder, ignore_errors=True)
