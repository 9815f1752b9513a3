"""One sequence of entries with any number of writers: how an activation log is read on and appended to.

Whoever appends reads to the end, drafts an entry that is right given all that is there, and has it created as the next number,
if that is not there yet; if it is, somebody was faster: then theirs is read and the draft made again. So every entry was right
given all entries before it, whenever a writer is killed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from models.activations import FORMAT, Activation, Entry, Pause, Seal, from_json, to_json
from models.log_faults import LogCorrupt, LogError
from models.log_files import LogFiles
from models.log_store import LogStore, TopicPlace, moved_to
from models.log_view import LogView

DEFAULT_GRID_US = 1_000_000

NewEntry = TypeVar("NewEntry", Activation, Seal, Pause)


class LogSequence:
    """The entries of a log as far as they were read, and the way to the next one.

    Attributes:
        grid_us: the refresh grid in microseconds.
        view: the log as far as it was read; replaced as a whole, so that threads may share it.
        topic: where the log is kept, as far as it was read; None for the folder.
    """

    def __init__(self, folder: str, model: str, grid_us: int | None = None) -> None:
        """Opens the log; the first entry begins it.

        Args:
            folder: of the log.
            model: the model's name.
            grid_us: the refresh grid; None for the grid the log has, or `DEFAULT_GRID_US` for a log that is not there yet.

        Raises:
            LogError: the log has another grid.
            LogCorrupt: what was written down when it began is garbled.
        """
        if grid_us is not None and grid_us < 1:
            raise LogError(f"expected a refresh grid of at least 1 microsecond, came {grid_us}")
        self._folder, self._model, self._asked_grid_us = folder, model, grid_us
        self._store: LogStore = LogFiles(folder)
        self.topic: TopicPlace | None = None
        self.view = LogView()
        self._lock = threading.RLock()
        self.grid_us = self._read_grid() or grid_us or DEFAULT_GRID_US

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def refreshed(self) -> LogView:
        """The log up to now.

        Raises:
            LogCorrupt: an entry is missing or garbled.
        """
        with self._lock:
            while True:
                came = self._store.read(self.view.length)
                moved = moved_to(came[-1]) if came else None
                self._take(came if moved is None else came[:-1])
                if moved is None:
                    return self.view
                self._go_to(moved)

    def all(self) -> tuple[Entry, ...]:
        """All entries up to now, read anew: the view keeps only those that count.

        Raises:
            LogCorrupt: an entry is missing or garbled.
        """
        with self._lock:
            view = self.refreshed()
            texts = self._store.read(0)[: view.length]
            return tuple(self._entry(sequence, text) for sequence, text in enumerate(texts, start=1))

    def append(self, draft: Callable[[LogView], NewEntry]) -> NewEntry:
        """Appends an entry.

        Args:
            draft: gives the entry that is to follow on a view, or one that is there already, or refuses by raising.

        Returns:
            The entry, new or there before.
        """
        while True:
            view, grid_us = self.refreshed(), self.grid_us
            entry = draft(view)
            if entry.sequence <= view.length:
                return entry  # it was there
            if not view.length:
                self._begin()
                if self.grid_us != grid_us:
                    continue  # somebody began the log with another grid
            if self._store.create(entry.sequence, to_json(entry)):
                with self._lock:
                    if self.view.length == view.length:  # otherwise another thread has read it
                        self.view = view.extended([entry])
                return entry

    def move(self, place: TopicPlace) -> int:
        """Keeps the log in a topic from now on. Writers and readers follow, as the folder's last entry says so.

        A topic that holds this log's entries already, and perhaps more, is taken as it is: so a registry elsewhere is joined to
        a log, and a move that was interrupted is gone on with.

        Returns:
            How many entries the log has.

        Raises:
            LogError: the log is in another topic already, or the topic holds another log.
            KafkaUnavailable: the cluster does not answer.
        """
        from models.log_topic import LogTopic

        target = LogTopic(place)
        while True:
            view = self.refreshed()
            if self.topic is not None:
                if self.topic.topic != place.topic:
                    raise LogError(f"the log of {self._model} is in topic {self.topic.topic} at {self.topic.bootstrap} already")
                return view.length
            if view.length or target.header() is None:
                target.begin(self._header())
            self._check_header(target, place)
            there = target.read(0)
            for sequence, text in enumerate(self._store.read(0)[: view.length], start=1):
                if sequence <= len(there) and json.loads(there[sequence - 1]) != json.loads(text):
                    raise LogError(
                        f"topic {place.topic} holds another log than {self._folder}: entry {sequence} differs; name another one"
                    )
                if sequence > len(there) and not target.create(sequence, text):
                    break  # somebody else copies, too
            else:
                # The last entry of the folder; who is faster with another one has that copied, too.
                if self._store.create(view.length + 1, place.to_json(view.length + 1)):
                    return self.refreshed().length

    def _take(self, texts: list[str]) -> None:
        if not texts:
            return
        if not self.view.length:
            self._adopt_grid()
        first = self.view.length + 1
        self.view = self.view.extended([self._entry(number, text) for number, text in enumerate(texts, start=first)])

    def _entry(self, sequence: int, text: str) -> Entry:
        try:
            return from_json(text, sequence, self._model, self.grid_us)
        except (ValueError, KeyError, TypeError) as error:
            raise LogCorrupt(
                f"{self._store.place(sequence)} is no entry of this log: {error}; it holds {text[:80]!r}. Restore it; "
                "if it is the newest one and was cut off, remove it: nobody has served by it."
            ) from error

    def _go_to(self, place: TopicPlace) -> None:
        from models.log_topic import LogTopic  # takes the Kafka client, which a log in a folder never needs

        self._store, self.topic = LogTopic(place), place
        self.grid_us = self._read_grid() or self.grid_us

    def _header(self) -> str:
        return json.dumps({"format": FORMAT, "model": self._model, "grid_us": self.grid_us}) + "\n"

    def _check_header(self, target: LogStore, place: TopicPlace) -> None:
        there = json.loads(target.header() or "{}")
        if there.get("model") != self._model:
            raise LogError(f"topic {place.topic} holds the log of model {there.get('model')!r}: a log has a topic of its own")
        if self.view.length and there.get("grid_us") != self.grid_us:
            raise LogError(f"topic {place.topic} holds a log with a refresh grid of {there.get('grid_us')}, not {self.grid_us}")

    def _begin(self) -> None:
        """Writes down the grid, or takes over what somebody else wrote down first."""
        self._store.begin(self._header())
        self._adopt_grid()

    def _adopt_grid(self) -> None:
        found = self._read_grid()
        if found is None:
            raise LogCorrupt(f"the head of the log, {self._head()}, is missing, but entries are there. Restore it from a copy.")
        self.grid_us = found

    def _read_grid(self) -> int | None:
        text = self._store.header()
        if text is None:
            return None
        try:
            grid_us = int(json.loads(text)["grid_us"])
        except (ValueError, KeyError, TypeError) as error:
            raise LogCorrupt(f"{self._head()} is garbled: {text[:80]!r}. Restore it from a copy.") from error
        if self._asked_grid_us not in (None, grid_us):
            raise LogError(
                f"the activation log of {self._model} has a refresh grid of {grid_us} microseconds and was opened with "
                f"{self._asked_grid_us}. A log keeps its grid, or what was served could not be told: open it with its own."
            )
        return grid_us

    def _head(self) -> str:
        return f"{self._folder}/log.json" if self.topic is None else f"the first message of topic {self.topic.topic}"
