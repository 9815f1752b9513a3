"""One window learnt: from a version and its rows to the next version, published."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from models import handed_over, syncing
from models.gate.gate import check_learnt
from models.gate.result import GateRefused
from models.learning import LearningModel, Step
from models.loaded_graph import ModelError
from models.opened import shared_registry
from models.registry import Training
from transforms.learning_windows import Window

MAIN = ""  # the line of versions that goes live


class Learnt(NamedTuple):
    """What came of a window.

    Attributes:
        window: which.
        rows: of it, as one batch.
        version: what was published; None if it was refused.
        events: what the learner has to tell.
        refused: why.
    """

    window: Window
    rows: pa.RecordBatch
    version: int | None
    events: pa.Table | None
    refused: str = ""


@dataclass(frozen=True)
class LearningStep:
    """Brings a model's versions forward.

    Attributes:
        registry: root folder of the registry.
        model: name of the model.
        by: name of the job, for the publication ids.
    """

    registry: str
    model: str
    by: str

    def ask(self, version: int, rows: pa.RecordBatch, line: str = MAIN) -> dict[str, pa.Array]:
        """What a version predicts of rows.

        Raises:
            ModelError: the rows do not fit.
        """
        learner = _learners.take(self.registry, self.model, version, line)
        said = learner.predict(rows)
        _learners.put(self.registry, self.model, version, learner, line)
        return said

    def learn(
        self,
        parent: int,
        rows: pa.RecordBatch,
        window: Window,
        *,
        line: str = MAIN,
        times: int = 1,
        metrics: dict[str, float] | None = None,
        reference: str | None = None,
    ) -> tuple[int, pa.Table | None]:
        """Learns the rows of a window and publishes the next version; one that was published before is found again.

        Args:
            parent: the version to learn on from.
            rows: of the window, as one batch.
            window: its times and its key.
            line: which line of versions this one belongs to.
            times: how often to learn the rows.
            metrics: figures for the manifest beside the learner's own.
            reference: what is kept of the training rows (`models.drift`).

        Returns:
            The version, and what the learner has to tell.

        Raises:
            ModelError, GateRefused: the rows, or what was learnt, will not do; nothing was published.
        """
        learner = _learners.take(self.registry, self.model, parent, line)
        tensors = learner.tensors(rows)
        steps = [learner.step(tensors) for _ in range(times)]
        made = steps[-1]._replace(figures=steps[0].figures | (metrics or {}))
        version = self._publish(parent, learner, made, rows.num_rows, window, line, reference)
        _learners.put(self.registry, self.model, version, learner, line)
        return version, steps[0].events

    def learn_all(self, parent: int, windows: Iterable[tuple[Window, pa.RecordBatch]]) -> Iterator[Learnt]:
        """Learns windows one after the other as `learn` does; each is published while the next one is learnt.

        Where one is refused, what was learnt on from it is thrown away, and the next one is learnt on from the version before.

        Args:
            parent: the version to learn on from.
            windows: with the rows of each as one batch.
        """
        learner: LearningModel | None = None
        waiting: tuple[Window, pa.RecordBatch, pa.Table | None, Future[int]] | None = None
        coming = iter(windows)
        with ThreadPoolExecutor(1, "rows") as before, ThreadPoolExecutor(1, "publish") as beside:
            ahead = before.submit(_next, coming, None)
            while (found := ahead.result()) is not None:
                window, rows, tensors = found
                ahead = before.submit(_next, coming, learner)
                made, refused = None, None
                while made is None and refused is None:
                    try:
                        learner = learner or _learners.take(self.registry, self.model, parent)
                        made = learner.step(tensors or learner.tensors(rows))
                    except ModelError as error:
                        refused, learner = error, None
                    if waiting is not None:
                        last, waiting = _published(*waiting), None
                        if last.version is None:
                            made, refused, learner = None, None, None  # it was learnt on from what is not there
                        else:
                            parent = last.version
                        yield last
                if refused is not None:
                    yield Learnt(window, rows, None, None, str(refused))
                elif made is not None and learner is not None:
                    future = beside.submit(self._publish_beside, parent, learner, made, rows.num_rows, window)
                    waiting = window, rows, made.events, future
            if waiting is not None:
                last = _published(*waiting)
                if last.version is None:
                    learner = None
                else:
                    parent = last.version
                yield last
        if learner is not None:
            _learners.put(self.registry, self.model, parent, learner)

    def _publish_beside(self, parent: int, learner: LearningModel, made: Step, count: int, window: Window) -> int:
        with syncing.synced_by_another():
            version = self._publish(parent, learner, made, count, window, MAIN, None)
        values = {key: made.values[key] for key in learner.served}
        handed_over.keep(shared_registry(self.registry).manifest(self.model, version).digests.variables, values)
        return version

    def _publish(
        self, parent: int, learner: LearningModel, made: Step, count: int, window: Window, line: str, reference: str | None
    ) -> int:
        registry, values = shared_registry(self.registry), made.values
        manifest = registry.publish_variables(
            self.model,
            parent=parent,
            write_variables=lambda folder: learner.write_variables(folder, values),
            training=Training(window.start_us, window.end_us, count),
            metrics=made.figures,
            publication=f"{self.by}/learn/{window.key}{line and '/'}{line}",
            check=check_learnt(registry.path(self.model, parent), learner.served, values),
            reference=None if reference is None else lambda _: reference,
            values=values,
        )
        return manifest.version

    def move(self, version: int, line: str) -> None:
        """The learner of another line becomes that of the main one."""
        _learners.put(self.registry, self.model, version, _learners.take(self.registry, self.model, version, line))


def _next(
    windows: Iterator[tuple[Window, pa.RecordBatch]], learner: LearningModel | None
) -> tuple[Window, pa.RecordBatch, dict[str, Any] | None] | None:
    """The next window, with its rows as a learner wants them, if there is one and they fit; None behind the last window."""
    found = next(windows, None)
    if found is None:
        return None
    try:
        return *found, None if learner is None else learner.tensors(found[1])
    except ModelError:
        return *found, None  # who learns them will be told


def _published(window: Window, rows: pa.RecordBatch, events: pa.Table | None, future: Future[int]) -> Learnt:
    """What came of a window whose version is being published beside; waits for it."""
    try:
        return Learnt(window, rows, future.result(), events)
    except (ModelError, GateRefused) as error:
        return Learnt(window, rows, None, None, str(error))


class _Learners:
    """The learner of each line that this process brought forward last, so that the next window need not load it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[tuple[str, str, str], tuple[int, LearningModel]] = {}

    def take(self, registry: str, model: str, version: int, line: str = MAIN) -> LearningModel:
        """The learner as it was after this version. Taken out: if learning fails half-way, the next one loads afresh."""
        with self._lock:
            found = self._latest.pop((registry, model, line), None)
        if found is not None and found[0] == version:
            return found[1]
        _, path = shared_registry(registry).trusted(model, version, graph=True)
        return LearningModel(path)

    def put(self, registry: str, model: str, version: int, learner: LearningModel, line: str = MAIN) -> None:
        with self._lock:
            self._latest[registry, model, line] = version, learner


_learners = _Learners()


def load_learner(registry: str, model: str, version: int) -> LearningModel:
    """Loads the learner that this process will bring forward, before the first window wants it; it warms up beside."""
    learner = _learners.take(registry, model, version)
    learner.warm_up()
    _learners.put(registry, model, version, learner)
    return learner
