"""What people, and their machines, do to an activation log while a job runs: at once, half, or until they are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from models.activation_log import ActivationLog, LogError
from models.activations import to_json

MODEL = "line"
MOMENTS = ("open", "os.link", "os.remove")  # of writing an entry: before it appears, just when, and behind


def append_and_die(registry: str, moment: str) -> None:
    """A process that is killed while it appends to the log."""
    process = multiprocessing.get_context("spawn").Process(target=_append, args=(registry, moment))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _append(registry: str, moment: str) -> None:
    log = ActivationLog(registry, MODEL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == moment and ".tmp-" in str(args[0] if args else "") and "activations" in str(args[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    log.activate(2, by="somebody who dies", reason=moment)


def decide_at_once(registry: str) -> list[str]:
    """Two people activate versions 1 and 2, having looked at the same log; gives what those were told who came second."""
    log, ready, told = ActivationLog(registry, MODEL), threading.Barrier(2), []
    seen = log.last_decision()

    def decide(name: str, version: int) -> None:
        own = ActivationLog(registry, MODEL)
        ready.wait()
        try:
            own.activate(version, by=name, reason=f"{name}, having seen entry {seen}", after=seen)
        except LogError as error:
            told.append(str(error))

    people = [threading.Thread(target=decide, args=given) for given in (("anna", 1), ("bob", 2))]
    for person in people:
        person.start()
    for person in people:
        person.join()
    return told


class Torn(NamedTuple):
    """An entry of which half is there."""

    file: Path
    whole: bytes

    def mend(self) -> None:
        """Puts the whole entry in its place."""
        new = self.file.with_suffix(".mended")
        new.write_bytes(self.whole)
        new.replace(self.file)


def append_torn(registry: str, version: int, effective_from_us: int | None = None) -> Torn:
    """Puts half of an entry into the log, as a copy that was cut off leaves it."""
    while True:
        log = ActivationLog(registry, MODEL)
        whole = to_json(log.preview(version, effective_from_us, by="somebody cut off", reason="half an entry")).encode()
        file = Path(registry, MODEL, "activations", f"{len(log.entries()) + 1:012d}.json")
        half = file.with_suffix(".half")
        half.write_bytes(whole[: len(whole) // 2])
        try:
            os.link(half, file)
        except FileExistsError:
            continue  # somebody was faster
        finally:
            half.unlink()
        return Torn(file, whole)
