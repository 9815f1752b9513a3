"""The driver: whatever dies wherever, the micro-batches that are committed are those of a run that nothing disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.checkpoint import Checkpoint
from runners.micro_batch import MicroBatchDriver, Stop
from tests.runners.streams import JOB, Input, Killed, Sink, Steps, process

NUMBERS = [3, 1, 4, 1, 5, 9, 2, 6]


def history(folder: Path) -> list[tuple[str, dict]]:
    """Everything that a checkpoint says was decided and done."""
    files = sorted([*folder.glob("offsets/*.json"), *folder.glob("commits/*.json")])
    return [(f"{file.parent.name}/{file.name}", json.loads(file.read_text())) for file in files]


def undisturbed(folder: Path, drain: bool = True) -> tuple[Sink, int]:
    sink, steps = Sink(Input(NUMBERS)), Steps()
    assert process(folder, sink, steps=steps, drain=drain)
    return sink, steps.taken


def test_undisturbed(tmp_path):
    sink, _ = undisturbed(tmp_path)
    assert sink.rows == {0: [3, 1, 4], 1: [1, 5, 9], 2: [2, 6], 3: []}
    assert [number for number, _ in sink.tries] == [0, 1, 2, 3]
    assert sink.tries[-1] == (3, None)


@pytest.mark.parametrize("drain", [True, False])
def test_killed_once_at_every_step(tmp_path, drain):
    expected, steps = undisturbed(tmp_path / "undisturbed", drain)
    assert steps > 40
    for die_at in range(steps):
        folder, sink = tmp_path / str(die_at), Sink(Input(NUMBERS))
        with pytest.raises(Killed):
            process(folder, sink, steps=Steps(die_at), drain=drain)
        assert process(folder, sink, drain=drain)
        assert (sink.rows, sink.sums) == (expected.rows, expected.sums), die_at
        assert history(folder) == history(tmp_path / "undisturbed"), die_at
        plans = dict(expected.tries)
        assert all(plan == plans[number] for number, plan in sink.tries), (
            f"killed at {die_at}: another plan for the same number"
        )
        assert len(sink.tries) <= len(expected.tries) + 1, f"killed at {die_at}: more than one micro-batch was done again"


@pytest.mark.parametrize("drain", [True, False])
def test_input_that_came_after_a_kill_changes_no_decision(tmp_path, drain):
    for die_at in range(60):
        sink = Sink(Input([1, 2], limit=3))
        with contextlib.suppress(Killed):
            process(tmp_path / str(die_at), sink, steps=Steps(die_at), drain=drain)
        decided = {name: content for name, content in history(tmp_path / str(die_at)) if name.startswith("offsets")}
        sink.source.numbers += [3, 4]
        assert process(tmp_path / str(die_at), sink, drain=drain)
        assert decided.items() <= dict(history(tmp_path / str(die_at))).items(), die_at
        ended = any(content["plan"] is None for content in decided.values())
        assert sink.all_rows() == [1, 2] + [3, 4] * (not ended)


@settings(max_examples=40, deadline=None)
@given(
    arrivals=st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=4),
    deaths=st.lists(st.integers(0, 60), max_size=6),
    limit=st.integers(1, 4),
)
def test_killed_many_times_while_input_keeps_coming(arrivals, deaths, limit):
    """Between two tries more input comes: what a micro-batch was to read must not change by that."""
    with tempfile.TemporaryDirectory() as name:
        source = Input([], limit)
        sink = Sink(source)
        for place in range(max(len(arrivals), len(deaths))):
            source.numbers += arrivals[place] if place < len(arrivals) else []
            try:
                process(Path(name), sink, steps=Steps(deaths[place] if place < len(deaths) else None), drain=False)
            except Killed:
                continue
        assert process(Path(name), sink)
        assert sink.all_rows() == source.numbers
        assert sink.sums[max(sink.sums)] == sum(source.numbers)
        plans: dict[int, object] = {}
        assert all(plans.setdefault(number, plan) == plan for number, plan in sink.tries), sink.tries
        assert len(history(Path(name))) == 2 * len(sink.rows)


def test_old_states_go(tmp_path):
    undisturbed(tmp_path)
    assert sorted(entry.name for entry in (tmp_path / "state").iterdir()) == ["000002", "000003"]


def test_no_input_at_all_still_ends(tmp_path):
    sink = Sink(Input([]))
    assert process(tmp_path, sink)
    assert sink.tries == [(0, None)]
    assert process(tmp_path, sink), "and once more: nothing is to be done"
    assert sink.tries == [(0, None)]


def test_goes_on_with_what_came_later_unless_it_has_ended(tmp_path):
    source = Input([1, 2])
    sink = Sink(source)
    process(tmp_path, sink, drain=False)
    process(tmp_path, sink, drain=False)
    assert len(sink.tries) == 1, "nothing new"
    source.numbers += [3]
    process(tmp_path, sink)
    assert sink.rows == {0: [1, 2], 1: [3], 2: []}
    source.numbers += [4]
    process(tmp_path, sink)
    assert sink.rows == {0: [1, 2], 1: [3], 2: []}, "a stream that has ended cannot be gone on with"
    checkpoint = Checkpoint(tmp_path, JOB)
    driver = MicroBatchDriver(checkpoint, source, sink.run)
    assert driver.is_drained
    assert driver.new_input()
    source.numbers.pop()
    assert not driver.new_input()
    checkpoint.close()


def test_a_run_that_fails_is_not_committed(tmp_path):
    sink, calls = Sink(Input(NUMBERS)), []

    def fails(batch):
        calls.append(batch.number)
        if batch.number == 1:
            raise OSError("disk full")
        return sink.run(batch)

    checkpoint = Checkpoint(tmp_path, JOB)
    with pytest.raises(OSError, match="disk full"):
        MicroBatchDriver(checkpoint, sink.source, fails).available_now(drain=True)
    assert (checkpoint.last_commit(), calls) == (0, [0, 1])
    checkpoint.close()
    assert process(tmp_path, sink)
    assert sink.all_rows() == NUMBERS


class TestStop:
    def test_the_batch_in_hand_is_finished(self, tmp_path):
        stop, sink = Stop(), Sink(Input(NUMBERS))
        run = sink.run
        sink.run = lambda batch: (stop.set(), run(batch))[1]  # type: ignore[method-assign]
        assert not process(tmp_path, sink, stop=stop)
        assert sink.rows == {0: [3, 1, 4]}
        sink.run = run  # type: ignore[method-assign]
        assert process(tmp_path, sink)
        assert sink.all_rows() == NUMBERS

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_signal_in_mid_batch(self, tmp_path, number):
        before = signal.getsignal(number)
        sink = Sink(Input(NUMBERS))
        checkpoint = Checkpoint(tmp_path, JOB)

        def signalled(batch):
            os.kill(os.getpid(), number)
            return sink.run(batch)

        assert not MicroBatchDriver(checkpoint, sink.source, signalled).available_now(drain=True)
        assert checkpoint.last_commit() == 0
        checkpoint.close()
        assert signal.getsignal(number) is before, "the handler is as it was"
        assert process(tmp_path, sink)
        assert sink.all_rows() == NUMBERS

    def test_a_second_signal_ends_at_once_and_loses_nothing(self, tmp_path):
        sink = Sink(Input(NUMBERS))
        checkpoint = Checkpoint(tmp_path, JOB)

        def signalled_twice(batch):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("went on")

        with pytest.raises(KeyboardInterrupt):
            MicroBatchDriver(checkpoint, sink.source, signalled_twice).available_now(drain=True)
        assert checkpoint.last_commit() is None
        checkpoint.close()
        assert process(tmp_path, sink)
        assert sink.all_rows() == NUMBERS

    def test_every_waits_for_input_until_it_is_stopped(self, tmp_path):
        """Input that comes while it waits is read; the stop ends the waiting."""
        source = Input([1, 2])
        sink, waits = Sink(source), []

        class Waiting(Stop):
            def wait(self, seconds: float) -> bool:
                waits.append(seconds)
                if len(waits) == 1:
                    source.numbers.append(3)
                elif len(waits) == 3:
                    self.set()
                return self.is_set()

        checkpoint = Checkpoint(tmp_path, JOB)
        MicroBatchDriver(checkpoint, source, sink.run, stop=Waiting()).every(7.0)
        checkpoint.close()
        assert sink.rows == {0: [1, 2], 1: [3]}
        assert waits == [7.0] * 3
