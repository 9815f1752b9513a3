"""Versions that this process has just published: who loads one here takes its variables from memory and not from the disk.

Known by the digest of their variables, so what is taken is what the version is. Each is taken once; beyond a bound the oldest
go, and are read from their folders.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

MOST_BYTES = 128 << 20

_kept: dict[str, tuple[int, Mapping[str, Any]]] = {}  # by digest: bytes, the tensors by checkpoint key; the oldest first
_lock = threading.Lock()


def keep(digest: str, values: Mapping[str, Any]) -> None:
    """Keeps the variables of a version.

    Args:
        digest: of the variables.
        values: the tensors by checkpoint key.
    """
    size = sum(int(value.shape.num_elements()) * value.dtype.size for value in values.values())
    with _lock:
        _kept[digest] = size, values
        total = sum(other for other, _ in _kept.values())
        while total > MOST_BYTES:
            total -= _kept.pop(next(iter(_kept)))[0]


def take(digest: str) -> Mapping[str, Any] | None:
    """The variables with this digest, if they are here; the next one who asks will not find them."""
    with _lock:
        found = _kept.pop(digest, None)
    return None if found is None else found[1]
