"""The files of a candidate: plain ones, with names that a SavedModel has, not too many, not too large."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from models.gate.config import GateConfig
from models.gate.result import CheckResult, passed, refused
from models.registry import NOTES

NAME = "files"
# What TensorFlow and Keras write; nothing else is ever read, so nothing else need be there.
_FILES = frozenset(["saved_model.pb", "fingerprint.pb", "keras_metadata.pb", "saved_model.json", *NOTES])
_FOLDERS = frozenset(["variables", "assets", "assets.extra"])


def check_files(path: str, config: GateConfig) -> CheckResult:
    """Looks at names, kinds and sizes; opens nothing.

    Args:
        path: the SavedModel's local folder.
        config: `max_bytes`, `max_files`.
    """
    if not Path(path).is_dir():
        return refused(NAME, f"there is no folder {path}. Give the folder that holds saved_model.pb.")
    size = files = 0
    for entry, relative in _walk(path, ""):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            target = os.path.realpath(entry.path)
            where = "into" if Path(target).is_relative_to(Path(path).resolve()) else "out of"
            return refused(NAME, f"{relative} is a link {where} the folder ({target}). Put a copy of the file in its place.")
        top = relative.split("/", 1)[0]
        if stat.S_ISDIR(mode):
            if top not in _FOLDERS:
                return refused(NAME, f"folder {relative} is no part of a SavedModel. Export the model alone into a new folder.")
            continue
        if not stat.S_ISREG(mode):
            return refused(NAME, f"{relative} is a device, pipe or socket; expected a plain file. Remove it.")
        if top not in _FILES and top not in _FOLDERS:
            return refused(NAME, f"{relative} is no part of a SavedModel. Export the model alone into a new folder.")
        size += entry.stat(follow_symlinks=False).st_size
        files += 1
        if size > config.max_bytes:
            return refused(
                NAME,
                f"more than the {config.max_bytes:,} bytes that the gate allows. Compress the model, or raise max_bytes in "
                "gate.json.",
                bytes=size,
            )
        if files > config.max_files:
            return refused(NAME, f"more than {config.max_files:,} files. Raise max_files in gate.json if that is meant.")
    return passed(NAME, f"{files} files, {size:,} bytes", bytes=size, files=files)


def _walk(path: str, prefix: str) -> Iterator[tuple[os.DirEntry[str], str]]:
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        yield entry, prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
