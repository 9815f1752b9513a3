"""A registry on a file system that is away for a moment is waited for: what waits is not lost, what guesses is wrong."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from models.activation_log import LogCorrupt
from models.registry import UnknownVersion

Wanted = TypeVar("Wanted")
# What a file system says that is away for a moment.
_PASSING = (errno.ENOENT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0  # between tries


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def patiently(do: Callable[[], Wanted], patience_s: float, wait: Callable[[float], bool] = _sleep) -> Wanted:
    """Does it again and again while the registry or its log cannot be read.

    Args:
        do: reads or appends.
        patience_s: how long.
        wait: waits for so many seconds, and says whether to give up.

    Raises:
        OSError, LogCorrupt, UnknownVersion: the last one, when patience is at its end; at once what will not go by itself, as a
            full disk.
    """
    deadline, pause_s = time.monotonic() + patience_s, _FIRST_PAUSE_S
    while True:
        try:
            return do()
        except (OSError, LogCorrupt, UnknownVersion) as error:
            stays = isinstance(error, OSError) and error.errno not in _PASSING
            if stays or time.monotonic() > deadline or wait(pause_s):
                raise
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
