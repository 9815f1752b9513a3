"""Versions that this process has just published: who loads one here takes its variables from memory and not from the disk.

Known by the digest of their variables, so what is taken is what the version is. Each is taken once; what nobody takes goes
when the same learner publishes again, and beyond a bound nothing is kept: then the version is read from its folder.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

MOST_BYTES = 128 << 20

_kept: dict[str, tuple[str, int, Mapping[str, Any]]] = {}  # by digest: whose, bytes, the tensors by checkpoint key
_lock = threading.Lock()


def keep(owner: str, digest: str, values: Mapping[str, Any]) -> None:
    """Keeps the variables of a version, if there is room.

    Args:
        owner: who will call `forget`.
        digest: of the variables.
        values: the tensors by checkpoint key.
    """
    size = sum(int(value.shape.num_elements()) * value.dtype.size for value in values.values())
    with _lock:
        if size + sum(other for _, other, _ in _kept.values()) <= MOST_BYTES:
            _kept[digest] = owner, size, values


def take(digest: str) -> Mapping[str, Any] | None:
    """The variables with this digest, if they are here; the next one who asks will not find them."""
    with _lock:
        found = _kept.pop(digest, None)
    return None if found is None else found[2]


def forget(owner: str) -> None:
    """Lets go of what this owner left."""
    with _lock:
        for digest in [digest for digest, (whose, _, _) in _kept.items() if whose == owner]:
            del _kept[digest]
