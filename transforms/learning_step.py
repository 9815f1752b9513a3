"""One window learnt: from a version and its rows to the next version, published."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pyarrow as pa

from models.gate.gate import check_learnt
from models.learning import LearningModel
from models.opened import shared_registry
from models.registry import Training
from transforms.learning_windows import Window

MAIN = ""  # the line of versions that goes live


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
        registry = shared_registry(self.registry)
        learner = _learners.take(self.registry, self.model, parent, line)
        measured, events = learner.learn_with_events(rows)
        for _ in range(times - 1):
            learner.learn_with_events(rows)
        manifest = registry.publish_variables(
            self.model,
            parent=parent,
            write_variables=learner.write_variables,
            training=Training(window.start_us, window.end_us, rows.num_rows),
            metrics=measured | (metrics or {}),
            publication=f"{self.by}/learn/{window.key}{line and '/'}{line}",
            check=check_learnt(registry.path(self.model, parent), learner.served),
            reference=None if reference is None else lambda _: reference,
        )
        _learners.put(self.registry, self.model, manifest.version, learner, line)
        return manifest.version, events

    def move(self, version: int, line: str) -> None:
        """The learner of another line becomes that of the main one."""
        _learners.put(self.registry, self.model, version, _learners.take(self.registry, self.model, version, line))


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


def load_learner(registry: str, model: str, version: int) -> None:
    """Loads the learner that this process will bring forward, before the first window wants it."""
    _learners.put(registry, model, version, _learners.take(registry, model, version))
