"""Jobs of a Flink cluster, by its REST interface: what runs, cancel, savepoint."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

from runners.engines import EngineError
from runners.local_flink import rest
from runners.submissions import answers_to

_SAVEPOINT_S = 120.0
_ENDED = ("FINISHED", "CANCELED", "FAILED")


class FlinkJob(NamedTuple):
    """A job: its id, the name it was given, RUNNING, FINISHED ..., and for how many seconds."""

    id: str
    name: str
    state: str
    seconds: float

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.state not in _ENDED


def jobs(master: str) -> list[FlinkJob]:
    """All jobs that the cluster knows, the newest first."""
    found = rest(master, "/jobs/overview")["jobs"]
    found.sort(key=lambda job: -job["start-time"])
    return [FlinkJob(job["jid"], job["name"], job["state"], job["duration"] / 1000) for job in found]


def running(master: str, name: str) -> FlinkJob:
    """The running job of a name (see `runners.submissions.answers_to`), or of an id.

    Raises:
        EngineError: there is none, or more than one.
    """
    alive = [job for job in jobs(master) if job.alive]
    found = [job for job in alive if job.id == name or answers_to(job.name, name)]
    if len(found) != 1:
        names = ", ".join(sorted(job.name for job in alive)) or "none"
        raise EngineError(f"{len(found)} running jobs are called {name!r}; running are: {names}. The id names one for certain")
    return found[0]


def cancel(master: str, job: str) -> None:
    """Cancels a job and waits until it has ended."""
    rest(master, f"/jobs/{job}?mode=cancel", "PATCH")
    _wait(master, f"/jobs/{job}", lambda answer: answer["state"] in _ENDED, f"job {job} does not end")


def end_jobs(master: str, name: str) -> None:
    """Cancels all jobs of a name that have not ended, and waits until they have; nothing happens where there is none.

    Raises:
        EngineError: the cluster does not answer, or a job does not end.
    """
    for job in jobs(master):
        if job.name == name and job.alive:
            cancel(master, job.id)


def was_cancelled(master: str, name: str) -> bool:
    """Whether the newest job of exactly this name was cancelled; False where the cluster does not answer."""
    try:
        newest = next((job for job in jobs(master) if job.name == name), None)
    except EngineError:
        return False
    return newest is not None and newest.state in ("CANCELED", "CANCELLING")


def checkpoints(master: str, job: str) -> dict[str, Any]:
    """What is to be told of a job's checkpoints: how many, how many failed, where the job began, and of the last one
    place, size and time."""
    found = rest(master, f"/jobs/{job}/checkpoints")
    told: dict[str, Any] = {"checkpoints": found["counts"]["completed"], "failed_checkpoints": found["counts"]["failed"]}
    if (restored := found["latest"]["restored"]) is not None:
        told["resumed_from"] = restored["external_path"]
    last = found["latest"]["completed"]
    if last is not None:
        at = datetime.fromtimestamp(last["latest_ack_timestamp"] / 1000, UTC).isoformat(timespec="seconds")
        told |= {"last_checkpoint": last["external_path"], "last_bytes": last["state_size"], "last_at": at}
    return told


def savepoint(master: str, job: str, folder: str | None = None, *, stop: bool = False) -> str:
    """Takes a savepoint; gives where it is.

    Args:
        master: host:port.
        job: its id.
        folder: where to, as file:///...; None takes the cluster's own.
        stop: cancel the job with it.

    Raises:
        EngineError: Flink could not take it.
    """
    asked: dict[str, Any] = {"cancel-job": stop} | ({} if folder is None else {"target-directory": folder})
    trigger = rest(master, f"/jobs/{job}/savepoints", "POST", asked)["request-id"]
    path = f"/jobs/{job}/savepoints/{trigger}"
    answer = _wait(master, path, lambda answer: answer["status"]["id"] == "COMPLETED", "the savepoint does not come")
    if "location" not in answer["operation"]:
        raise EngineError(f"Flink could not take a savepoint: {answer['operation']['failure-cause']['class']}")
    return str(answer["operation"]["location"])


def _wait(master: str, path: str, done: Any, fault: str) -> Any:
    deadline = time.monotonic() + _SAVEPOINT_S
    while not done(answer := rest(master, path)):
        if time.monotonic() > deadline:
            raise EngineError(f"{fault}: {answer}")
        time.sleep(0.2)
    return answer
