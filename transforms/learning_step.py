"""One window learnt: from a version and its rows to the next version, published."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
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

MOST_BEHIND = 3  # versions that are still being published when the next one is learnt
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
        """Learns windows one after the other as `learn` does; each is published while the next ones are learnt.

        Where one is refused, what was learnt on from it is thrown away, and learnt again on from the version before.

        Args:
            parent: the version to learn on from.
            windows: with the rows of each as one batch.
        """
        learner: LearningModel | None = None
        behind: deque[_Published] = deque()  # being published, the oldest first; without any, the learner is at `parent`
        with ThreadPoolExecutor(1, "rows") as before, ThreadPoolExecutor(1, "publish") as beside:
            coming = _Coming(iter(windows), before)
            while (found := coming.next(learner)) is not None or behind:
                made, refused = None, None
                if found is not None:
                    try:
                        learner = learner or _learners.take(self.registry, self.model, parent)
                        made = learner.step(found.tensors or learner.tensors(found.rows))
                    except ModelError as error:
                        refused, learner = error, None
                while len(behind) > (0 if made is None else MOST_BEHIND - 1):
                    oldest = behind.popleft()
                    yield (last := oldest.learnt())
                    if last.version is None:  # the others were learnt on from what is not there
                        coming.again(given for given in (*(other.given for other in behind), found) if given is not None)
                        behind.clear()
                        learner, found, made = None, None, None
                    else:
                        parent = last.version
                if found is None:
                    continue
                if made is None or learner is None:
                    yield Learnt(found.window, found.rows, None, None, str(refused))
                    continue
                base = behind[-1].version if behind else parent
                version = beside.submit(self._publish_beside, base, learner, made, found.rows.num_rows, found.window)
                behind.append(_Published(found, made.events, version))
        if learner is not None:
            _learners.put(self.registry, self.model, parent, learner)

    def _publish_beside(self, base: int | Future[int], learner: LearningModel, made: Step, count: int, window: Window) -> int:
        parent = base if isinstance(base, int) else base.result()
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


class _Given(NamedTuple):
    """A window with its rows, and these as a learner wants them, where they are ready and fit."""

    window: Window
    rows: pa.RecordBatch
    tensors: dict[str, Any] | None


class _Coming:
    """The windows to learn, each made ready while the one before is learnt."""

    def __init__(self, windows: Iterator[tuple[Window, pa.RecordBatch]], beside: Executor) -> None:
        self._windows, self._beside = windows, beside
        self._ahead = beside.submit(self._ready, None)
        self._again: deque[_Given] = deque()

    def next(self, learner: LearningModel | None) -> _Given | None:
        """The next window; None behind the last one."""
        if self._again:
            return self._again.popleft()
        found = self._ahead.result()
        if found is not None:
            self._ahead = self._beside.submit(self._ready, learner)
        return found

    def again(self, given: Iterable[_Given]) -> None:
        """Gives these next, in this order."""
        self._again.extendleft(reversed([*given]))

    def _ready(self, learner: LearningModel | None) -> _Given | None:
        found = next(self._windows, None)
        if found is None:
            return None
        try:
            return _Given(*found, None if learner is None else learner.tensors(found[1]))
        except ModelError:
            return _Given(*found, None)  # who learns them will be told


class _Published(NamedTuple):
    """What was learnt from a window, and its version, which is being published beside."""

    given: _Given
    events: pa.Table | None
    version: Future[int]

    def learnt(self) -> Learnt:
        """What came of it; waits for the version."""
        window, rows, _ = self.given
        try:
            return Learnt(window, rows, self.version.result(), self.events)
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
