"""When what is written is put on the disk: file by file, or all at once where nothing refers to any of it before."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path


class _Syncing(threading.local):
    later = False  # whether what this thread writes is put on the disk by somebody, later


_syncing = _Syncing()


@contextlib.contextmanager
def synced_together(folder: str) -> Iterator[None]:
    """Puts what this thread writes within the block on the disk at its end, all at once, instead of file by file.

    For many small files that nothing refers to before the block has ended. Where the block fails, nothing is promised.

    Args:
        folder: a folder on the file system that is written to; on an object store this does nothing.
    """
    if "://" in folder or _syncing.later:
        yield
        return
    _syncing.later = True
    try:
        yield
    finally:
        _syncing.later = False
    if Path(folder).is_dir():
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def synced_by_another() -> Iterator[None]:
    """For a thread that writes for one that is within `synced_together`, and that waits for it there."""
    before, _syncing.later = _syncing.later, True
    try:
        yield
    finally:
        _syncing.later = before


def is_left_to_another() -> bool:
    """Whether somebody puts on the disk what this thread writes."""
    return _syncing.later


def to_disk(descriptor: int) -> None:
    """Puts an open file or folder on the disk, unless somebody does that later."""
    if not _syncing.later:
        os.fsync(descriptor)
