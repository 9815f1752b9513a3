"""The registries and logs that a process has open: what was read of them once is not read again by the next micro-batch."""

from __future__ import annotations

from functools import cache

from models.activation_log import ActivationLog
from models.registry import Registry


@cache
def shared_registry(root: str) -> Registry:
    """The process's view of a registry; versions never change, so it is never out of date."""
    return Registry(root)


@cache
def shared_log(root: str, model: str) -> ActivationLog:
    """The process's view of a model's activation log; it reads on by itself."""
    return ActivationLog(root, model)


def forget() -> None:
    """Opens everything anew from now on: for who deletes a registry."""
    shared_registry.cache_clear()
    shared_log.cache_clear()
