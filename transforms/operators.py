"""What a stateful step is, apart from any engine: state and rows in, state and rows out.

An operator never sees Beam. `transforms.stateful` runs it in a bounded run (batch or micro-batch) with the state read from and
written to the checkpoint. Because the result depends only on the rows, their order of arrival and the watermark, cutting
the same stream into other micro-batches gives the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeAlias

import pyarrow as pa

# Named tables, all of them Arrow, so that every state is saved, shown and compared in the same way. Empty at the start.
State: TypeAlias = Mapping[str, pa.Table]
Tables: TypeAlias = Mapping[str, pa.Table]


class Operator(Protocol):
    """A stateful step over one shard of a stream."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tags of the tables that `advance` may give."""

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        """Takes the rows that came since the last call, and the new watermark.

        Args:
            state: what the last call returned; empty at the start.
            inputs: the new rows by input tag, in order of `sequence`, or, in a chain, in the order that the operator before
                gave them; a tag without rows is missing or has an empty table.
            watermark_us: no record with an event time below this is expected any more; `MAX_WATERMARK_US` at the end of the
                stream. Never below that of the last call.

        Returns:
            The new state, and the rows that are complete now by output tag; a tag without rows may be missing.
        """

    def wake_us(self, state: State) -> int | None:
        """From which watermark on `advance` may give more although no rows come; None if it never will.

        Only a continuous job asks, in order to set a timer. What has been given already does not count; a time at or below the
        watermark of the last call means: as soon as the watermark moves.
        """


class Chain:
    """Operators in a row: the first output of each is the only input, `in`, of the next; other outputs are passed on.

    The first operator may have other inputs. Where two give rows with the same tag they come together; a column that only some
    of them have is null in the others. An operator that holds rows back beyond the watermark (an aggregation with allowed
    lateness) wants at least the same lateness in those after it that close windows.
    """

    def __init__(self, *operators: Operator) -> None:
        if not operators:
            raise ValueError("a chain wants at least one operator")
        self._operators = operators

    @property
    def outputs(self) -> tuple[str, ...]:
        side = [tag for operator in self._operators[:-1] for tag in operator.outputs[1:]]
        return tuple(dict.fromkeys([*self._operators[-1].outputs, *side]))

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        new_state: dict[str, pa.Table] = {}
        given: dict[str, list[pa.Table]] = {}
        for place, operator in enumerate(self._operators):
            new_own, tables = operator.advance(own_state(state, str(place)), inputs, watermark_us)
            new_state |= prefixed(str(place), new_own)
            main, *side = operator.outputs
            last = place == len(self._operators) - 1
            for tag in side + [main] * last:
                if tag in tables:
                    given.setdefault(tag, []).append(tables[tag])
            inputs = {"in": tables[main]} if main in tables else {}
        # Two operators may give the same tag with other columns: late rows before and after columns were added.
        return new_state, {tag: pa.concat_tables(tables, promote_options="default") for tag, tables in given.items()}

    def wake_us(self, state: State) -> int | None:
        return earliest(operator.wake_us(own_state(state, str(place))) for place, operator in enumerate(self._operators))


def earliest(times_us: Iterable[int | None]) -> int | None:
    """The earliest of some times, any of which may be missing."""
    return min((time_us for time_us in times_us if time_us is not None), default=None)


def own_state(state: State, name: str) -> dict[str, pa.Table]:
    """What of a state is that of the operator of this name within."""
    return {key[len(name) + 1 :]: table for key, table in state.items() if key.startswith(f"{name}/")}


def prefixed(name: str, state: State) -> dict[str, pa.Table]:
    """The inverse of `own_state`."""
    return {f"{name}/{key}": table for key, table in state.items()}
