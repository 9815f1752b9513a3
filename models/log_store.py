"""Where the entries of an activation log are kept: one sequence of texts, numbered from 1, of which each is created once.

The first store of a log is a folder beside the versions (`models.log_files`). Its last entry may say that the log goes on in a
Kafka topic (`models.log_topic`), which has the entries before it, too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Protocol

MOVED_FORMAT = 2  # an older Midstream says of such an entry that it is to be updated


class LogStore(Protocol):
    """Keeps the entries."""

    def header(self) -> str | None:
        """What was written down when the log began; None before."""

    def begin(self, text: str) -> None:
        """Writes that down, unless somebody has."""

    def read(self, seen: int) -> list[str]:
        """The entries behind the first `seen`.

        Raises:
            LogCorrupt: one is missing, or what was seen is gone.
        """

    def create(self, sequence: int, text: str) -> bool:
        """Makes a text the entry of that number, which follows on the last; False if somebody else was faster."""

    def place(self, sequence: int) -> str:
        """Where an entry is, for messages."""


@dataclass(frozen=True)
class TopicPlace:
    """A topic that holds the log of one model.

    Attributes:
        bootstrap: the brokers.
        topic: its name.
        config: a file of `name=value` lines for the Kafka client; None for none.
    """

    bootstrap: str
    topic: str
    config: str | None = None

    def to_json(self, sequence: int) -> str:
        """As the last entry of a folder."""
        return json.dumps({"format": MOVED_FORMAT, "entry": "moved", "sequence": sequence} | asdict(self), indent=1) + "\n"


def moved_to(text: str) -> TopicPlace | None:
    """Where the log goes on, if this is the entry that says so."""
    try:
        value = json.loads(text)
        if value.pop("entry") != "moved":
            return None
        del value["format"], value["sequence"]
        return TopicPlace(**value)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
