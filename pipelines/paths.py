"""The paths of a job that runs elsewhere: what is relative here is not relative there."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from pydantic import BaseModel

_PATHS = ("path", "registry", "output", "table", "config", "against")
AnySection = TypeVar("AnySection", bound=BaseModel)


def absolute(job: AnySection) -> AnySection:
    """The job with every path of a file or folder from the root on; URLs stay as they are."""
    return type(job).model_validate(_absolute(job.model_dump(mode="json")))


def _absolute(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _absolute(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_absolute(inner) for inner in value]
    if name in _PATHS and isinstance(value, str) and "://" not in value:
        return os.path.abspath(value)  # noqa: PTH100  normalises `..` too, and may be a pattern
    return value
