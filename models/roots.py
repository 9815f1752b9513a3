"""Where models may come from: the registry's own folder, and only registries that this machine allows.

MIDSTREAM_ROOTS    folders or URLs, separated by `:` (URLs by `;` or spaces); a registry must be one of them or lie below one
"""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOTS = "MIDSTREAM_ROOTS"


class PathRefused(ValueError):
    """A path that leads where models must not come from."""


def check_root(root: str) -> None:
    """Lets a registry's root pass if this machine allows it, or allows all.

    Raises:
        PathRefused: it is not below one of the roots that are allowed.
    """
    allowed = [part.rstrip("/") for part in re.split(r"[;\s]+|:(?!//)", os.environ.get(ROOTS, "")) if part]
    if not allowed:
        return
    came = root.rstrip("/") if "://" in root else os.path.realpath(root)
    for one in allowed:
        one = one if "://" in one else os.path.realpath(one)
        if came == one or (came.startswith(f"{one}/") and ".." not in came.split("/")):
            return
    raise PathRefused(
        f"a registry in {root} is not allowed here; {ROOTS} allows {', '.join(allowed)}. Publish the model there."
    )


def check_inside(path: str, root: str) -> None:
    """Lets a local version's folder pass if it and all in it lies inside the registry's root, links followed.

    Raises:
        PathRefused: a link leads out of it.
    """
    inside = os.path.realpath(root)
    for entry in [path, *(os.path.join(folder, name) for folder, _, files in os.walk(path) for name in files)]:  # noqa: PTH118
        if not Path(os.path.realpath(entry)).is_relative_to(inside):
            raise PathRefused(
                f"{entry} is a link out of the registry {root}, to {os.path.realpath(entry)}. Remove the link and publish "
                "a copy."
            )
