"""The entries of an activation log as files, one small file an entry.

    <folder>/log.json             what holds for the whole log, fixed when it begins
    <folder>/000000000001.json    the first entry, and so on without gaps

Files are created with "only if absent" (`models.storage.create`): right with any number of writers on a local disk, with one at
a time on an object store.
"""

from __future__ import annotations

import re

from models import storage
from models.log_faults import LogCorrupt

_ENTRY = re.compile(r"(\d{12})\.json")


class LogFiles:
    """See `models.log_store.LogStore`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def header(self) -> str | None:
        try:
            return storage.read_text(storage.join(self._folder, "log.json"))
        except FileNotFoundError:
            return None

    def begin(self, text: str) -> None:
        storage.create(storage.join(self._folder, "log.json"), text.encode())

    def read(self, seen: int) -> list[str]:
        end = self._end(seen)
        if end < seen:
            raise LogCorrupt(f"{self.place(end + 1)} was there and is gone; entries are never removed. Restore it from a copy.")
        return [self._read(sequence) for sequence in range(seen + 1, end + 1)]

    def create(self, sequence: int, text: str) -> bool:
        return storage.create(self.place(sequence), text.encode())

    def place(self, sequence: int) -> str:
        return storage.join(self._folder, f"{sequence:012d}.json")

    def _end(self, seen: int) -> int:
        """The number of the last entry that is there, given how many were read."""
        if seen and storage.is_local(self._folder):
            # Without gaps, asking for the next names is enough, and quicker than listing all. The one after the next is asked
            # for first: if it is there, the next one was before it. So a lost entry is noticed, and a racing writer is no gap.
            end = seen if storage.exists(self.place(seen)) else seen - 1
            while end >= seen and any(storage.exists(self.place(end + ahead)) for ahead in (2, 1)):
                end += 1
            return end
        numbers = (int(match[1]) for name in storage.names(self._folder) if (match := _ENTRY.fullmatch(name)))
        return max(numbers, default=0)

    def _read(self, sequence: int) -> str:
        file = self.place(sequence)
        try:
            return storage.read_text(file)
        except FileNotFoundError:
            raise LogCorrupt(f"{file} is missing, but later entries are there. Restore it from a copy.") from None
        except UnicodeDecodeError as error:
            raise LogCorrupt(f"{file} is garbled: {error}. Restore it from a copy.") from error
