"""The table of bad versions: each is tried while a stream predicts, and the stream must not notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from models.activation_log import ActivationLog
from models.activations import Activation
from tests.chaos.bad_versions import MODEL, Attempt, Place, Served, after_activation, attempts
from tests.chaos.stream import SECOND_US, START_US, Counts, count, serve
from tests.pipelines import jobs

BATCH = 20  # records, and so seconds of event time, of a micro-batch


class Row(NamedTuple):
    """What one attempt was told."""

    kind: str
    door: str
    refused: bool
    said: str


class Found(NamedTuple):
    """The whole table, and what became of the stream's records."""

    rows: list[Row]
    counts: Counts
    changed: int  # predictions that are not those of the same stream in peace


def run_table(folder: Path, *, isolate: bool, wanted: Callable[[Attempt], bool] = lambda attempt: True) -> Found:
    """Tries every kind while a stream predicts.

    Args:
        folder: to work in.
        isolate: every candidate in a process of its own, as `midstream publish` does it; otherwise only those that would take
            this process along.
        wanted: which kinds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(folder, isolate=isolate)
    rows: list[Row] = []
    tries = [attempt for attempt in attempts(place) if wanted(attempt)]
    batches = len(tries) + 12
    records = BATCH * batches
    data = jobs.write_csv(folder / "data" / "records.csv", jobs.records(records))
    boundaries = [START_US + (batches - 5 + number) * BATCH * SECOND_US + 3 * SECOND_US for number in range(4)]
    late = after_activation(place, boundaries)

    def tried(attempt: Attempt) -> Callable[[], Any]:
        def act() -> None:
            try:
                rows.append(Row(attempt.kind, attempt.door, True, attempt.run()))
            except Served as served:
                rows.append(Row(attempt.kind, attempt.door, False, f"NOT REFUSED {served}"))

        return act

    names: dict[str, str] = {}

    def activated(kind: str) -> Callable[[], Any]:
        return lambda: names.update({late[kind](): kind})

    peace = serve(folder / "peace", data, place.registry.root, [], mode="batch", name="peace")
    assert not peace.problems, peace.problems
    # The batch sealed all of the time; a log of its own lets the same time be served again.
    log = Path(place.registry.root, MODEL, "activations")
    for entry in sorted(log.glob("0*.json"))[1:]:
        entry.unlink()
    actions = [tried(attempt) for attempt in tries] + [activated(kind) for kind in late]
    outcome = serve(folder / "war", data, place.registry.root, actions, micro_batch_records=BATCH)
    reasons = [e.reason for e in ActivationLog(place.registry.root, MODEL).entries() if isinstance(e, Activation)]
    for version, kind in names.items():
        told = next((reason for reason in reasons if reason.startswith(f"{version} was requested and cannot be loaded")), None)
        rows.append(Row(kind, "worker", told is not None, told or "NOT REFUSED"))
    assert not outcome.problems, outcome.problems
    before, after = (jobs.read(folder / name).drop_columns(["policy"]) for name in ("peace", "war"))
    changed = sum(left != right for left, right in zip(before.to_pylist(), after.to_pylist(), strict=True))
    return Found(rows, count(jobs.read(folder / "war"), place.registry.root, {1: 1.0}, records), changed)
