"""Runs a stream as a row of bounded Beam runs, exactly once.

For each micro-batch: decide what it reads and write that down; run it from the state the one before left; write down that it
is done. The input, the state and the names of the outputs follow from the number of the micro-batch, so one that was killed
anywhere is simply run again. Spark's Structured Streaming works in the same way (Armbrust et al., "Structured Streaming",
SIGMOD 2018, section 6.1).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from runners.checkpoint import Checkpoint

# At the end of a bounded stream nothing more can come: the last micro-batch lets go of all that is held. It is the one that
# reads the last records where that can be told beforehand; otherwise one without input comes behind.
DRAIN = "drain"


class Planner(Protocol):
    """Cuts a source into micro-batches."""

    def plan(self, position: dict[str, Any] | None) -> dict[str, Any] | None:
        """What to read next.

        Args:
            position: the `end` of the last plan; None at the start.

        Returns:
            A JSON-able plan with at least `end`; None if there is nothing new.
        """

    def nothing_behind(self, position: dict[str, Any]) -> bool:
        """Whether it is known, without reading on, that nothing is behind the `end` of the last plan."""


@dataclass(frozen=True)
class MicroBatch:
    """One bounded run.

    Attributes:
        number: counted from 0.
        plan: what it reads, as the planner said; None in a last micro-batch without input.
        state_in: folder of the state to start from; None at the start of the stream.
        state_out: folder for the state to leave.
        previous: what was noted when the micro-batch before was done.
        is_drain: this is the last micro-batch of a stream that has ended.
    """

    number: int
    plan: dict[str, Any] | None
    state_in: str | None
    state_out: str
    previous: dict[str, Any] = field(default_factory=dict)
    is_drain: bool = False


class Stop:
    """Asks a driver to stop once the micro-batch in hand is done; SIGTERM and Ctrl-C do the same."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits; True as soon as a stop is asked for."""
        return self._event.wait(seconds)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for a stop; a second one ends the process at once, which loses nothing either."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, _: Any) -> None:
            if self.is_set():
                raise KeyboardInterrupt
            self.set()

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class MicroBatchDriver:
    """Runs micro-batches until the input is used up, or on and on."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        planner: Planner,
        run: Callable[[MicroBatch], dict[str, Any]],
        *,
        on_commit: Callable[[MicroBatch, dict[str, Any]], None] = lambda batch, note: None,
        stop: Stop | None = None,
    ) -> None:
        """Creates the driver.

        Args:
            checkpoint: where it stands.
            planner: cuts the input.
            run: runs one micro-batch to its end and gives a JSON-able note that is kept with the commit; may be called again
                for the same micro-batch, and must then have the same effect.
            on_commit: told after each commit.
            stop: set to stop.
        """
        self._checkpoint, self._planner, self._run, self._on_commit = checkpoint, planner, run, on_commit
        self.stop = stop or Stop()

    @property
    def is_drained(self) -> bool:
        """Whether the stream has ended: nothing more will be read."""
        last = self._checkpoint.last_commit()
        return last is not None and bool((self._checkpoint.commit(last) or {}).get(DRAIN))

    def new_input(self) -> bool:
        """Whether there is input behind the last plan; also told of a stream that has ended."""
        number = self._next_number()
        while number and (self._checkpoint.offset(number - 1) or {}).get("plan") is None:
            number -= 1
        return self._planner.plan(self._position(number)) is not None

    def available_now(self, *, drain: bool) -> bool:
        """Runs what is there now, and returns.

        Args:
            drain: the input ends here: let go of all that waits for more. A drained stream cannot be gone on with.

        Returns:
            Whether it got to the end; False if it was stopped before.
        """
        with self.stop.on_signals():
            while not self.stop.is_set():
                if self._step(drain):
                    continue
                if drain and not self.is_drained:
                    number = self._next_number()
                    self._checkpoint.write_offset(number, {"plan": None, DRAIN: True})
                    self._run_one(number, None, True)
                return True
            return False

    def every(self, seconds: float) -> None:
        """Looks for new input every so many seconds, until it is stopped. Input that waits is worked off without a pause."""
        with self.stop.on_signals():
            while not self.stop.is_set():
                if not self._step():
                    self.stop.wait(seconds)

    def _step(self, drain: bool = False) -> bool:
        if self.is_drained:
            return False
        number = self._next_number()
        offset = self._checkpoint.offset(number)
        if offset is None:
            plan = self._planner.plan(self._position(number))
            if plan is None:
                return False
            offset = {"plan": plan}
            if drain and self._planner.nothing_behind(plan["end"]):
                offset[DRAIN] = True
            self._checkpoint.write_offset(number, offset)
        self._run_one(number, offset["plan"], offset.get(DRAIN, False))
        return True

    def _run_one(self, number: int, plan: dict[str, Any] | None, is_drain: bool) -> None:
        previous = (self._checkpoint.commit(number - 1) if number else None) or {}
        batch = MicroBatch(
            number,
            plan,
            str(self._checkpoint.state_folder(number - 1)) if number else None,
            str(self._checkpoint.fresh_state_folder(number)),
            previous,
            is_drain,
        )
        note = self._run(batch)
        self._checkpoint.write_commit(number, note | {DRAIN: batch.is_drain})
        self._on_commit(batch, note)

    def _next_number(self) -> int:
        last = self._checkpoint.last_commit()
        return 0 if last is None else last + 1

    def _position(self, number: int) -> dict[str, Any] | None:
        if number == 0:
            return None
        offset = self._checkpoint.offset(number - 1)
        assert offset is not None, f"micro-batch {number - 1} is committed and has no offset"
        return offset["plan"]["end"]
