"""A closed loop in a stream without end: rows are released to be predicted once all that could make their version is learnt.

In a bounded run the learnt activations are a side input of the prediction, and Beam's watermark makes predictions wait. Here
one operator learns and then releases, so that its watermark, the least of records and labels, does the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from transforms.grouping import concat
from transforms.operators import Operator, State, Tables, earliest, own_state, prefixed
from transforms.training import activate_learnt
from transforms.windowing import times_of

RELEASED = "released"


@dataclass(frozen=True)
class LearnThenRelease:
    """An `Operator`: the inputs of `learn` come in, and its outputs go out, the activations appended to the log before.

    Output `released`: the rows of input `records` (in order of time already), once the watermark is at their event time and
    everything up to it is learnt and activated.

    Attributes:
        learn: the learner's operator, whose first output is `activations`; its input of records is `records`, or `in` where
            it has no labels.
        registry, model, by: for `activate_learnt`.
        rows: the tag of the input that is released.
    """

    learn: Operator
    registry: str
    model: str
    by: str
    rows: str = "records"

    @property
    def outputs(self) -> tuple[str, ...]:
        return (RELEASED, *self.learn.outputs[1:])

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        learnt_state, given = self.learn.advance(own_state(state, "learn"), inputs, watermark_us)
        activations, *others = self.learn.outputs
        if activations in given:
            for _ in activate_learnt(self.registry, self.model, self.by, True, given[activations].to_pylist()):
                pass
        pieces = [table for table in (state.get("held"), inputs.get(self.rows)) if table is not None and table.num_rows]
        new_state, released = prefixed("learn", learnt_state), {tag: given[tag] for tag in others if tag in given}
        if pieces:
            rows = concat(pieces)
            ready = times_of(rows) <= watermark_us
            released[RELEASED] = rows.filter(pa.array(ready))
            new_state["held"] = rows.filter(pa.array(~ready))
        return new_state, released

    def wake_us(self, state: State) -> int | None:
        held = state.get("held")
        return earliest(
            [
                self.learn.wake_us(own_state(state, "learn")),
                int(times_of(held).min()) if held is not None and held.num_rows else None,
            ]
        )
