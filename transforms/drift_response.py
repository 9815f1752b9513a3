"""What a learner does about drift, and what it leaves behind for those who look for drift in the stream.

Before a window is learnt, the version so far is asked about its rows. If the errors have risen (`models.drift_detectors`), one
of these follows:

    raise: this window and the next few are learnt several times over: the rate goes up.
    reset: learning begins anew from the first version, with this window.
    fork: a challenger begins anew from the first version, and learns beside the old line. Once one of them has made
        significantly fewer errors, or at the end of the trial, the better one is the model.

The answers are also the scores of the training rows from before they were learnt, which is what scores in the stream have to
be compared with; so they go into the reference that is published with the version.

References:
    Gama et al., "A survey on concept drift adaptation", ACM Computing Surveys 46, 2014 (the kinds of response).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.drift import Reference
from models.drift_detectors import MOST_BLOCKS, Detector, block_means, rise
from transforms.learning_step import LearningStep
from transforms.learning_windows import Window

Action = Literal["none", "raise", "reset", "fork"]
CHALLENGER = "challenger"  # the line of a fork
RAISED_WINDOWS, RAISED_TIMES = 5, 3  # how long the rate is raised, and how often each window is learnt then
TRIAL_WINDOWS, LEAST_TRIAL_WINDOWS = 20, 3  # of a challenger
SURE = 2.0  # standard errors between the two lines, to decide before the trial is over
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DriftResponse:
    """Learns windows, and acts on drift.

    What it knows is in `state`, as all of an operator's: `errors` of the blocks since the last drift, `stands` (raised windows
    that are left, the challenger and its score), and `recent`, the latest learnt rows.

    Attributes:
        label: the label column.
        columns: columns whose summary is published.
        action: what follows on drift.
        detector: what sees it.
        reference_rows: so many of the latest learnt rows are summarised for each version; None publishes no reference.
    """

    label: str
    columns: tuple[str, ...]
    action: Action = "none"
    detector: Detector = "page-hinkley"
    reference_rows: int | None = None

    def learn(
        self, step: LearningStep, first: int, version: int, rows: pa.RecordBatch, window: Window, state: Mapping[str, pa.Table]
    ) -> tuple[int, pa.Table | None, dict[str, pa.Table]]:
        """Learns a window.

        Args:
            step: how.
            first: the version that knows nothing yet.
            version: the one so far.
            rows: of the window, labelled.
            window: its times and its key.
            state: as this gave it last; empty at the start.

        Returns:
            The next version, events to tell, and the new state.

        Raises:
            ModelError, GateRefused: nothing was learnt; the state is that from before.
        """
        said = step.ask(version, rows)
        errors = _errors(said, rows.column(self.label))
        new_state, reference = self._recent(rows, said, state)
        stands: dict[str, Any] = {"raised": 0, "challenger": 0, "trial": 0, "ahead": 0.0, "ahead_square": 0.0}
        if "stands" in state:
            (stands,) = state["stands"].to_pylist()
        before = state["errors"].column("error").to_numpy() if "errors" in state else np.zeros(0)
        series = np.concatenate([before, block_means(errors)])
        found = rise(series, len(before), self.detector) if self.action != "none" else None
        if found is not None:
            series = series[found.block + 1 :]
        new_state["errors"] = pa.table({"error": series[-MOST_BLOCKS:]})
        events: list[dict[str, Any]] = []
        parent, times = version, 1
        if found is not None:
            events.append(_event("drift", found.before, found.after))
            if self.action == "raise":
                stands["raised"] = RAISED_WINDOWS
            elif self.action == "reset":
                parent = first
            elif not stands["challenger"]:
                stands |= {"challenger": first, "trial": 0, "ahead": 0.0, "ahead_square": 0.0}
        if stands["raised"]:
            stands["raised"], times = stands["raised"] - 1, RAISED_TIMES
        figures = {"error": float(errors.mean()), "drift": float(found is not None)}
        if parent != version:
            # Another start than the version whose learner is at hand: a line of its own until it is there.
            next_version, told = step.learn(
                parent, rows, window, line="reset", times=times, metrics=figures, reference=reference
            )
            step.move(next_version, "reset")
        else:
            next_version, told = step.learn(parent, rows, window, times=times, metrics=figures, reference=reference)
        if stands["challenger"]:
            next_version = self._trial(step, first, next_version, rows, window, errors, reference, stands, events)
        new_state["stands"] = pa.Table.from_pylist([stands])
        return next_version, _together(told, events), new_state

    def _trial(
        self,
        step: LearningStep,
        first: int,
        champion: int,
        rows: pa.RecordBatch,
        window: Window,
        errors: Floats,
        reference: str | None,
        stands: dict[str, Any],
        events: list[dict[str, Any]],
    ) -> int:
        """The challenger learns the window, too; gives the version that goes live, of either line."""
        if stands["challenger"] != first:  # in its first window it knows nothing yet
            theirs = _errors(step.ask(stands["challenger"], rows, CHALLENGER), rows.column(self.label))
            ahead = float(errors.mean() - theirs.mean())
            stands |= {
                "trial": stands["trial"] + 1,
                "ahead": stands["ahead"] + ahead,
                "ahead_square": stands["ahead_square"] + ahead * ahead,
            }
        challenger, _ = step.learn(stands["challenger"], rows, window, line=CHALLENGER, reference=reference)
        stands["challenger"] = challenger
        spread = np.sqrt(stands["ahead_square"]) or 1.0
        sure = stands["trial"] >= LEAST_TRIAL_WINDOWS and abs(stands["ahead"]) > SURE * spread
        if not sure and stands["trial"] < TRIAL_WINDOWS:
            return champion
        won, lead = stands["ahead"] > 0, stands["ahead"] / max(stands["trial"], 1)
        events.append(_event("challenger won" if won else "challenger lost", lead, None))
        stands["challenger"] = 0
        if won:
            step.move(challenger, CHALLENGER)
            return challenger
        return champion

    def _recent(
        self, rows: pa.RecordBatch, said: dict[str, pa.Array], state: Mapping[str, pa.Table]
    ) -> tuple[dict[str, pa.Table], str | None]:
        """The latest rows with what was said of them, and their summary."""
        if self.reference_rows is None:
            return {}, None
        outputs = [name for name in ("prediction", "score") if name in said]
        table = pa.table({name: rows.column(name) for name in self.columns} | {name: said[name] for name in outputs})
        recent = pa.concat_tables([state["recent"], table]) if "recent" in state else table
        recent = recent.slice(max(recent.num_rows - self.reference_rows, 0)).combine_chunks()
        return {"recent": recent}, Reference.of(recent, recent.column_names).to_json()


def _errors(said: Mapping[str, pa.Array], labels: pa.Array) -> Floats:
    """(rows,) between 0 and 1: of classes whether it is wrong, of numbers how far off in units of the labels' spread."""
    prediction = said["prediction"]
    if pa.types.is_floating(prediction.type):
        truth = labels.cast(pa.float64()).to_numpy(zero_copy_only=False)
        off = np.abs(np.nan_to_num(prediction.cast(pa.float64()).to_numpy(zero_copy_only=False) - truth))
        spread = float(truth.std())
        return off / np.maximum(off + spread, np.finfo(float).tiny)
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if pa.types.is_boolean(labels.type):
        labels = labels.cast(pa.int64())
    right = pc.equal(prediction.cast(pa.string()), labels.cast(pa.string())).fill_null(False)
    return 1.0 - right.to_numpy(zero_copy_only=False).astype(float)


def _event(kind: str, before: float, after: float | None) -> dict[str, Any]:
    return {"kind": kind, "before": before, "after": after}


def _together(told: pa.Table | None, events: list[dict[str, Any]]) -> pa.Table | None:
    if not events:
        return told
    schema = pa.schema([("kind", pa.string()), ("before", pa.float64()), ("after", pa.float64())])
    own = pa.Table.from_pylist(events, schema)
    return own if told is None else pa.concat_tables([told, own], promote_options="default")
