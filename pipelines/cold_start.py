"""What predicts before a learner's first version is live: nobody, the learner that has learnt nothing, or a parent model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable

import pyarrow as pa

from models.activation_log import ActivationLog
from models.learning import LearningModel, save_learner
from models.loaded_graph import ModelError
from models.registry import Registry
from models.serving import output_schema
from models.timeline import MIN_TIME_US, Timeline
from pipelines.job import JobSpec
from runners.micro_batch import Stop

LEARNING_PARENT = "learning parent"  # publication of a parent that is learnt on from
_AWAIT_S = 0.5  # between looks at a log in which nothing is live yet


def await_first(look: Callable[[], Timeline], stop: Stop, tell: Callable[[str], None]) -> None:
    """Waits until something is live, or for the stop: the records stay where they are meanwhile."""
    told = False
    while look().first() is None and not stop.is_set():
        if not told:
            tell("no version was activated yet; the records wait for one")
            told = True
        stop.wait(_AWAIT_S)


def seed(job: JobSpec, build: Callable[[], object]) -> int:
    """The version that a job learns on from: in the registry since its first run, made now if this is it.

    It is a fresh learner, or the parent if that can learn.

    Args:
        job: has a learner.
        build: makes a fresh learner.

    Raises:
        ValueError: the learner's options, or the parent, will not do.
    """
    registry, publication = Registry(job.model.registry), f"{job.name}/seed"
    for known in (publication, f"{job.name}/{LEARNING_PARENT}"):
        if (found := registry.find_publication(job.model.name, known)) is not None:
            return found.version
    parent = job.model.parent
    if parent is not None and _can_learn(parent):
        return registry.publish(job.model.name, parent, publication=f"{job.name}/{LEARNING_PARENT}").version
    with tempfile.TemporaryDirectory() as folder:
        save_learner(build(), f"{folder}/seed")
        return registry.publish(job.model.name, f"{folder}/seed", publication=publication).version


def begin(job: JobSpec, first: int) -> None:
    """Makes live from the beginning what is to predict before the learner's first version, if anything is. Can be repeated.

    Raises:
        ModelError: the parent gives other outputs than the learner.
        LogError: somebody has activated or served something already.
    """
    how, parent = job.model.cold_start, job.model.parent
    if how not in ("prior", "parent"):
        return
    registry, version, reason = Registry(job.model.registry), first, "cold start: the learner has learnt nothing yet"
    if parent is not None:
        reason = f"cold start: {parent}"
        if registry.find_publication(job.model.name, f"{job.name}/{LEARNING_PARENT}") is None:
            version = _published(registry, job.model.name, first, parent, f"{job.name}/parent")
    ActivationLog(job.model.registry, job.model.name).activate(version, MIN_TIME_US, by=job.name, reason=reason)


def _published(registry: Registry, model: str, first: int, parent: str, publication: str) -> int:
    found = registry.find_publication(model, publication)
    if found is None:
        found = registry.publish(model, parent, publication=publication)
    wanted, given = output_schema(registry.manifest(model, first).signature), output_schema(found.signature)
    if missing := [field for field in wanted if field.name not in given.names or given.field(field.name).type != field.type]:
        raise ModelError(
            f"the parent {parent} gives {_told(given)}; expected what the learner gives, too: {_told(missing)}. Take a version "
            "that such a learner has learnt, or give the SavedModel outputs of these names and types"
        )
    return found.version


def _can_learn(saved_model: str) -> bool:
    try:
        LearningModel(saved_model)
    except ModelError:
        return False
    return True


def _told(fields: Iterable[pa.Field]) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in fields)
