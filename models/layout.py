"""Whether a checkpoint fits the graph that it will be loaded into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from models.digest import BOOKKEEPING
from models.manifest import RegistryError

Layout: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape by checkpoint key (`models.digest.checkpoint_layout`)."""

_, SAVE_COUNTER = BOOKKEEPING  # counts saves, and may be missing


def check_layout(expected: Layout, came: Layout) -> None:
    """Compares a checkpoint with its parent's.

    Args:
        expected: by key, dtype and shape of all that the parent's checkpoint holds.
        came: the same of the checkpoint that was written.

    Raises:
        RegistryError: it does not fit the parent's graph; says what is missing, too much or of another shape.
    """
    if missing := expected.keys() - came.keys() - {SAVE_COUNTER}:
        raise RegistryError(
            f"the variables written lack {', '.join(sorted(missing)[:4])}; copy the parent's where nothing changed"
        )
    if surplus := came.keys() - expected.keys() - {SAVE_COUNTER}:
        raise RegistryError(
            f"the variables written hold {', '.join(sorted(surplus)[:4])}, which the parent's graph does not know"
        )
    for key, layout in expected.items():
        if came.get(key, layout) != layout:
            raise RegistryError(f"variable {key!r} was written as {came[key]}; the parent's graph expects {layout}")
