"""No NaN and no infinity in what a version has learned."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import numpy as np

from models.digest import checkpoint_reader, variables_layout
from models.gate.result import CheckResult, passed, refused

NAME = "weights"


def nonfinite_variables(path: str, only: Container[str] | None = None) -> dict[str, int]:
    """How many values of each variable in a SavedModel's folder are NaN or infinite; variables without any are left out.

    Args:
        path: the folder.
        only: the checkpoint keys to look at; None looks at all.

    Raises:
        DigestError: the variables cannot be read.
    """
    reader = checkpoint_reader(path)
    return _nonfinite(((key, dtype, reader.get_tensor) for key, (dtype, _) in variables_layout(path).items()), only)


def nonfinite_values(values: Mapping[str, Any], only: Container[str] | None = None) -> dict[str, int]:
    """The same for tensors by checkpoint key."""
    return _nonfinite(((key, value.dtype.name, lambda key: values[key].numpy()) for key, value in values.items()), only)


def _nonfinite(variables: Iterable[tuple[str, str, Callable[[str], Any]]], only: Container[str] | None) -> dict[str, int]:
    found = {}
    for key, dtype, value_of in variables:
        if (only is None or key in only) and dtype.startswith(("float", "bfloat", "complex")):
            value = np.asarray(value_of(key))
            value = value.astype(np.float32) if dtype == "bfloat16" else value
            if bad := int(value.size - np.isfinite(value).sum()):
                found[key] = bad
    return found


def check_weights(
    path: str, meant: Iterable[str] = (), only: Container[str] | None = None, values: Mapping[str, Any] | None = None
) -> CheckResult:
    """Looks at the variables.

    Args:
        path: the SavedModel's local folder.
        meant: variables that hold such values on purpose, as the version before did: bounds not set yet, say.
        only: see `nonfinite_variables`.
        values: the variables, where they are at hand and need not be read.
    """
    try:
        every = nonfinite_variables(path, only) if values is None else nonfinite_values(values, only)
        found = {key: bad for key, bad in every.items() if key not in set(meant)}
    except (ValueError, RuntimeError, LookupError) as error:
        return refused(NAME, str(error))
    if not found:
        return passed(NAME, "all finite")
    names = ", ".join(f"{key.removesuffix('/.ATTRIBUTES/VARIABLE_VALUE')} ({bad:,})" for key, bad in list(found.items())[:4])
    return refused(
        NAME,
        f"{sum(found.values()):,} values are NaN or infinite, in {names}. Training has diverged: go back to an earlier "
        "checkpoint, "
        "and look at the learning rate and at the records for what made it so.",
        nonfinite=sum(found.values()),
    )
