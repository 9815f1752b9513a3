"""A stream that predicts while others do their worst, and what became of its records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from models.activation_log import ActivationLog
from models.registry import Registry
from pipelines import template as templates
from pipelines.execute import Execution, Outcome
from pipelines.resolve import Resolved
from tests.pipelines import jobs

START_US = int(jobs.START.astype("datetime64[us]").astype(np.int64))
SECOND_US = 1_000_000


class Counts(NamedTuple):
    """What became of the records."""

    records: int
    lost: int
    doubled: int
    mislabelled: int  # by another version than the log says, or with a value that is not this version's


class Fault(NamedTuple):
    """What became of the records while something went wrong; without counts where this machine cannot do it."""

    name: str
    runner: str
    counts: Counts | None
    said: str


class AfterEach:
    """A job's progress that does the next thing behind every micro-batch."""

    def __init__(self, actions: list[Callable[[], Any]]) -> None:
        self._actions, self._done = actions, 0

    def committed(self, records: int, resolved: Resolved, parts: dict[str, list[Path]]) -> None:
        if self._done < len(self._actions):
            self._actions[self._done]()
            self._done += 1


def serve(folder: Path, data: Path, registry: str, actions: list[Callable[[], Any]], **params: Any) -> Outcome:
    """Runs the template `serve` in this process; one record a second of event time."""
    template, here = templates.load("serve")
    given = {
        "input": str(data),
        "registry": registry,
        "model": "line",
        "time": "time",
        "columns": "id:int64,a:float64,b:float64",
        "keep": "id,a,b",
        "output": str(folder),
    }
    job = template.fill({**given, **params}, here)
    return Execution(job, progress=AfterEach(actions)).run()


def count(table: pa.Table, registry: str, slopes: dict[int, float], rows: int) -> Counts:
    """Compares predictions with the log: each record once, by the version of its time, with that version's value.

    Args:
        table: the predictions, with `id`, `a` and `b` of their records.
        registry: root folder.
        slopes: what each version was made with: score = slope * a + b.
        rows: how many records went in.
    """
    ids = table["id"].to_numpy()
    times, versions = table["event_time"].cast(pa.int64()).to_numpy(), table["version"].to_numpy()
    expected = ActivationLog(registry, "line").timeline().as_of(times)
    a, b = (table[name].to_numpy().astype(np.float32) for name in "ab")
    by_version = np.array([slopes.get(version, np.nan) for version in range(max(slopes) + 1)], np.float32)
    known = np.where(versions <= max(slopes), versions, 0)
    right = np.isclose(table["score"].to_numpy(), by_version[known] * a + b, rtol=1e-5, atol=1e-6)
    known_digests = {v: Registry(registry).manifest("line", v).digests.version for v in slopes if _there(registry, v)}
    digests = np.array([known_digests.get(version, "") for version in versions.tolist()])
    labelled = (versions == expected) & right & ((digests == "") | (digests == np.array(table["digest"].to_pylist())))
    unique = len(np.unique(ids))
    return Counts(rows, rows - unique, len(ids) - unique, int((~labelled).sum()))


def _there(registry: str, version: int) -> bool:
    return version in Registry(registry).versions("line")
