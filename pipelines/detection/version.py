"""Which detector a job goes by: a version of the registry, published when the job begins, until another one is activated.

A job that is gone on with after the program has changed still scores with the graph it began with. A version with other
settings goes on with the same states; scores are probabilities, so they stay comparable.
"""

from __future__ import annotations

from dataclasses import replace

from models.activation_log import ActivationLog
from models.registry import Registry
from pipelines.detection.job import DetectSpec
from transforms.detection import Detect, DetectorVersion


def with_version(job: DetectSpec, step: Detect) -> Detect:
    """The step with the job's version, which is published and made live now if this is the job's first run."""
    from models.anomaly.saved import exported

    columns = len(step.values)
    root, model = job.registry or f"{job.output}/registry", job.model if columns == 1 else f"{job.model}-{columns}-columns"
    registry, publication = Registry(root), f"{job.name}/detector/{columns}/{step.seed}"
    found = registry.find_publication(model, publication)
    if found is None:
        found = registry.publish(model, exported(columns, step.seed), publication=publication)
    log = ActivationLog(root, model)
    # Once: a job that is gone on with must not take back what somebody activated since.
    if not any(entry.version == found.version for entry in log.activations()):
        log.activate(found.version, by=job.name, reason="the detector that this job began with")
    return replace(step, version=DetectorVersion(root, model, found.version, found.digests.version, job.name))
