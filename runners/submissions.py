"""Which continuous jobs were given to clusters from this machine, by name: enough to go on with one by its name alone.

    <state folder>/jobs/NAME-<id>.json    where the job's command was given, and the job's output folder

All else is in the output folder: the job itself (`job.json`), and its checkpoints and savepoints. The state folder is that of
`runners.cluster_state`. A job whose output folder is gone is forgotten.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from runners import cluster_state
from runners.checkpoint import write_atomically
from runners.engines import EngineError

_ID = "-[0-9a-f]{12,32}"  # what a job's name has behind it, so that two of one name are two


@dataclass(frozen=True)
class Submission:
    """A job that was given to a cluster.

    Attributes:
        job: its name on the cluster, which no other job has.
        output: its output folder, absolute.
        folder: where the command was given; relative paths of the job start there.
        master: the cluster.
    """

    job: str
    output: str
    folder: str
    master: str

    @property
    def name(self) -> str:
        """As the user named it."""
        return re.sub(f"{_ID}$", "", self.job)

    @property
    def savepoints(self) -> str:
        """Where its savepoints go, so that it is gone on with from them."""
        return f"file://{self.output}/checkpoint/savepoints"


def remember(submission: Submission) -> None:
    """Notes a job, or that it is somewhere else now."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{submission.job}.json", json.dumps(asdict(submission), indent=1))


def forget(job: str) -> None:
    """Forgets a job that has come to its end."""
    (_folder() / f"{job}.json").unlink(missing_ok=True)


def remembered() -> list[Submission]:
    """All jobs whose output folder is there, by name."""
    found = [Submission(**json.loads(file.read_text())) for file in sorted(_folder().glob("*.json"))]
    return [submission for submission in found if Path(submission.output, "checkpoint").is_dir()]


def answers_to(job: str, name: str) -> bool:
    """Whether a job of this name on a cluster is what a user calls `name`."""
    return job == name or re.fullmatch(re.escape(name) + _ID, job) is not None


def find(name: str) -> Submission:
    """The job of a name, whole or without the id behind it, or with that output folder.

    Raises:
        EngineError: there is none, or more than one.
    """
    known = remembered()
    found = [one for one in known if answers_to(one.job, name) or Path(one.output) == Path(name).absolute()]
    if len(found) == 1:
        return found[0]
    if found:
        several = "; ".join(f"{one.job} in {one.output}" for one in found)
        raise EngineError(f"{len(found)} jobs are called {name!r}: name one of {several}")
    names = ", ".join(one.job for one in known) or "none"
    raise EngineError(
        f"no continuous job {name!r} was submitted from this machine; known are: {names}. A job that was submitted elsewhere "
        "is gone on with by the command that began it, with the same output folder"
    )


def _folder() -> Path:
    return cluster_state.root() / "jobs"
