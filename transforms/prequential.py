"""How good the predictions were, in windows of evaluated records, for each version and for each segment.

Every record was predicted before its label was known (prequential, or test-then-train). A row of figures comes for each
window of `every_rows` evaluated records, of all and of each segment, in order of (label time, sequence), and for each version
that predicted some of them; `version` is null in the row of all versions, and `segment` in those of all records. Beside the
window's own figures there is a faded one, in which a record counts half after `half_life_rows`.

References:
    Gama, Sebastião and Rodrigues, "On evaluating stream learning algorithms", Machine Learning 90, 2013 (fading factors).
    Bifet et al., "Efficient Online Evaluation of Big Data Stream Classifiers", KDD 2015 (kappa, kappa-temporal).
    Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27, 2006 (AUC by ranks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import rankdata

from transforms.batches import EVENT_TIME, SEQUENCE, TIME_TYPE
from transforms.grouping import concat
from transforms.label_join import LABEL_TIME
from transforms.operators import State, Tables, own_state, prefixed

Floats = npt.NDArray[np.float64]
LEAST_PROBABILITY = 1e-7  # so that one record that was surely wrong does not make the log loss infinite
METRICS = pa.schema(
    [
        pa.field(EVENT_TIME, TIME_TYPE),  # when the window's last label became known
        pa.field(SEQUENCE, pa.int64()),  # of the window's last record
        pa.field("segment", pa.string()),  # null for all records together
        pa.field("version", pa.int64()),  # null for all versions together
        pa.field("rows", pa.int64()),
        *(pa.field(name, pa.float64()) for name in ("accuracy", "kappa", "kappa_temporal", "log_loss", "auc", "rmse")),
        pa.field("faded", pa.float64()),  # accuracy, or the mean square error of numbers; of the segment so far
    ]
)


@dataclass(frozen=True)
class Prequential:
    """An `Operator`: input `in`, rows of `evaluations`; output `metrics` (schema `METRICS`).

    What a figure cannot be computed from is null: accuracy and kappas of decimal predictions, the log loss and the AUC without
    a score or of other labels than 0 and 1, the RMSE of classes.

    Attributes:
        label: the label column.
        every_rows: evaluated records of a window.
        by: the column whose values are the segments; None for none.
        half_life_rows: of the faded figure.
    """

    label: str
    every_rows: int = 1000
    by: str | None = None
    half_life_rows: float = 1000.0
    outputs: ClassVar[tuple[str, ...]] = ("metrics",)

    def wake_us(self, state: State) -> int | None:
        return None

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        came = inputs.get("in")
        if came is None or not came.num_rows:
            return state, {}
        new_state: dict[str, pa.Table] = {}
        given: list[dict] = []
        for name, by in (("all", None), ("by", self.by)) if self.by else (("all", None),):
            own, found = self._windows(own_state(state, name), came, by)
            new_state |= prefixed(name, own)
            given += found
        return new_state, {"metrics": pa.Table.from_pylist(given, METRICS)}

    def _windows(self, state: State, came: pa.Table, by: str | None) -> tuple[State, list[dict]]:
        """The windows of the segments by a column, or of all records; the rows that wait for theirs to be full are kept."""
        rows = concat([*([state["rows"]] if "rows" in state else []), came])
        rows = rows.sort_by([(LABEL_TIME, "ascending"), (SEQUENCE, "ascending")])
        segments = rows.column(by).cast(pa.string()).fill_null("") if by else None
        past = {row["segment"]: row for row in state["past"].to_pylist()} if "past" in state else {}
        given, waiting = [], []
        for segment in [None] if segments is None else sorted(pc.unique(segments).to_pylist()):
            own = rows if segments is None else rows.filter(pc.equal(segments, segment))
            full = own.num_rows // self.every_rows * self.every_rows
            for start in range(0, full, self.every_rows):
                window = own.slice(start, self.every_rows)
                before = past.get(segment, {"last": None, "sum": 0.0, "weight": 0.0})
                found, past[segment] = self._window(segment, window, before)
                given += found
            waiting.append(own.slice(full))
        new_state = {"rows": concat(waiting)}
        if past:
            new_state["past"] = pa.Table.from_pylist([{**row, "segment": segment} for segment, row in past.items()])
        return new_state, given

    def _window(self, segment: str | None, window: pa.Table, before: dict) -> tuple[list[dict], dict]:
        """The rows of figures of a window, and what the next one of the segment wants to know."""
        truth, said = window.column(self.label), window.column("prediction")
        numbers = pa.types.is_floating(said.type)
        if numbers:
            right = (said.cast(pa.float64()).to_numpy() - truth.cast(pa.float64()).to_numpy()) ** 2
            last = None
        else:
            texts = truth.cast(pa.string())
            right = pc.equal(said.cast(pa.string()), texts).fill_null(False).to_numpy().astype(np.float64)
            last = texts[-1].as_py()
        right = np.nan_to_num(right)
        weight = 0.5 ** (np.arange(len(right), 0, -1) / self.half_life_rows) * 2 ** (1 / self.half_life_rows)
        kept = 0.5 ** (len(right) / self.half_life_rows)
        after = {
            "last": last,
            "sum": before["sum"] * kept + float(right @ weight),
            "weight": before["weight"] * kept + float(weight.sum()),
        }
        stamp = {
            EVENT_TIME: window.column(LABEL_TIME)[-1].as_py(),
            SEQUENCE: window.column(SEQUENCE)[-1].as_py(),
            "segment": segment,
            "faded": after["sum"] / after["weight"],
        }
        versions = window.column("version").fill_null(0).to_numpy()
        found = []
        for version in (None, *np.unique(versions).tolist()):
            here = np.ones(len(versions), bool) if version is None else versions == version
            figures = {"rmse": float(np.sqrt(right[here].mean()))} if numbers else self._classes(window, right, here, before)
            found.append(stamp | {"version": version, "rows": int(here.sum())} | figures)
        return found, after

    def _classes(self, window: pa.Table, right: Floats, here: npt.NDArray[np.bool_], before: dict) -> dict[str, float | None]:
        truth = window.column(self.label).cast(pa.string()).to_numpy(zero_copy_only=False)
        said = window.column("prediction").cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False)
        persistent = np.concatenate([[before["last"]], truth[:-1]]) == truth
        accuracy = float(right[here].mean())
        classes = np.unique(truth[here])
        chance = float(sum((truth[here] == c).mean() * (said[here] == c).mean() for c in classes))
        figures = {
            "accuracy": accuracy,
            "kappa": _beyond(accuracy, chance),
            "kappa_temporal": _beyond(accuracy, float(persistent[here].mean())),
        }
        if "score" in window.schema.names and set(classes) <= {"0", "1"}:
            score = window.column("score").cast(pa.float64()).fill_null(0.5).to_numpy()[here]
            label = (truth[here] == "1").astype(np.float64)
            of_label = np.maximum(np.where(label == 1, score, 1 - score), LEAST_PROBABILITY)
            figures |= {"log_loss": float(-np.log(of_label).mean()), "auc": auc(label, score)}
        return figures


def auc(label: Floats, score: Floats) -> float | None:
    """The share of pairs of a 1 and a 0 in which the 1 has the higher score, ties as a half; None where a class is missing."""
    ones = int(label.sum())
    zeros = len(label) - ones
    if not ones or not zeros:
        return None
    return float((rankdata(score)[label == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _beyond(accuracy: float, baseline: float) -> float | None:
    """How much of what the baseline gets wrong is right; None where the baseline makes no mistake."""
    return None if baseline >= 1.0 else (accuracy - baseline) / (1.0 - baseline)
