"""What a finished job has to show for itself: one line of numbers, recomputed from the files that it wrote.

Nothing here trusts a counter. Lost and doubled records are found by comparing the `sequence` numbers in the output with the
number of records that were read, so a fault anywhere between source and sink shows.

References:
    Bifet et al., "Efficient Online Evaluation of Big Data Stream Classifiers", KDD 2015 (kappa-temporal).
    Žliobaitė et al., "Evaluation methods and decision theory for classification of streaming data with temporal dependence",
    Machine Learning 98, 2015.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.evaluated import estimates_numbers, read_evaluations, root_mean_square
from pipelines.parts import Int64s, Parts, in_order
from transforms.batches import EVENT_TIME, SEQUENCE
from transforms.known_classes import UNKNOWN_CLASS

# Dead letters that are about a label or about learning from it. The record itself was predicted, or never was one.
ABOUT_LABELS = ("no_record", "duplicate_label", "null_label", "learner_refused", UNKNOWN_CLASS)


@dataclass(frozen=True)
class Summary:
    """The numbers of a run.

    Attributes:
        records: records that were read.
        predictions: rows in the output.
        lost: records that came out nowhere; below 0 if more came out than were read. None where windows replace the records.
        duplicated: rows of records (or windows) that came out before, as a prediction or as a dead letter.
        dead_letters: rows and sources that could not be used.
        filtered: records that a filter step dropped.
        cold_start: predictions from before the first version was live.
        versions: versions that were published.
        swaps: how often the version changed from one prediction to the next in event time; the end of the cold start is none.
        accuracy: share of the evaluated records that the live model got right; without a prediction a record is wrong.
        accuracy_frozen: the same for the first version, had it stayed.
        kappa_temporal: 1 is perfect, 0 no better than repeating the label that was known last.
        evaluated: records whose label became known.
        seconds: how long the run took, with getting ready and summing up.
        records_per_s: records over the time from the first one read to the last output in place, of this go at the job; None
            where nothing was read. Making the job ready and loading its first version come before.
        rmse: of predictions that are numbers; there is no accuracy then.
    """

    records: int
    predictions: int
    lost: int | None
    duplicated: int
    dead_letters: int
    filtered: int
    cold_start: int
    versions: int
    swaps: int
    accuracy: float | None
    accuracy_frozen: float | None
    kappa_temporal: float | None
    evaluated: int
    seconds: float
    records_per_s: float | None = None
    rmse: float | None = None

    def to_json(self) -> str:
        """One line of JSON, keys in the order of the attributes, shares with six digits."""
        digits = {"seconds": 3, "records_per_s": 0}
        rounded = {
            name: round(value, digits.get(name, 6)) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }
        return json.dumps(rounded)

    def problems(self) -> list[str]:
        """What must not be: one sentence each, none if every record came out exactly once."""
        found, lost = [], self.lost or 0
        if lost > 0:
            found.append(
                f"{lost:,} of {self.records:,} records are lost: they are neither in the predictions nor in the dead "
                "letters, and no filter dropped them."
            )
        if lost < 0:
            found.append(f"{-lost:,} more records came out than the {self.records:,} that were read.")
        if self.duplicated:
            found.append(
                f"{self.duplicated:,} rows are duplicates: their record came out before, as a prediction or as a dead letter."
            )
        return found


@dataclass(frozen=True)
class VersionRuns:
    """The stretches of event time that one version predicted alone: when each started, which version, with how many rows."""

    from_us: Int64s
    versions: Int64s
    rows: Int64s

    @property
    def swaps(self) -> int:
        """Changes from one version to another; leaving the cold start is none."""
        return int(np.count_nonzero(self.versions[:-1] != 0))


def version_runs(times_us: Int64s, sequence: Int64s, versions: Int64s) -> VersionRuns:
    """Cuts the predictions, in order of (event time, sequence), where the version changes."""
    order = in_order(times_us, sequence)
    versions = versions[order]
    starts = np.flatnonzero(np.append(True, versions[1:] != versions[:-1])[: len(versions)])
    return VersionRuns(times_us[order[starts]], versions[starts], np.diff(np.append(starts, len(versions))))


def summarise(
    output: str,
    records: int,
    filtered: int,
    label: str | None,
    seconds: float,
    versions: Sequence[Mapping[str, Any]],
    windowed: bool = False,
) -> Summary:
    """Computes the summary of a job from its output.

    Args:
        output: the job's output folder.
        records: records that were read.
        filtered: records that a filter step dropped.
        label: name of the label column in the evaluations; None for a job without labels.
        seconds: how long the run took.
        versions: the published versions.
        windowed: whether the predictions are about windows of records, whose numbers are not those of records.

    Raises:
        ValueError: a file of the output lacks a column.
    """
    parts = Parts(output, "predictions")
    times_us, sequence, served = parts.int64s(EVENT_TIME, SEQUENCE, "version")
    swaps = version_runs(times_us, sequence, served).swaps
    cold_start = int(np.count_nonzero(served == 0))
    del times_us, served
    sequence.sort()
    predicted = sequence[np.append(True, sequence[1:] != sequence[:-1])[: len(sequence)]]
    letters = Parts(output, "dead_letters")
    dead = _dead_sequences(letters)
    both = np.intersect1d(predicted, dead, assume_unique=True) if not windowed else dead[:0]
    duplicated = len(sequence) - len(predicted) + len(both)
    came_out = len(predicted) + len(dead) - len(both)
    del sequence, predicted, dead

    rmse, evaluated = None, 0
    if estimates_numbers(output, label):
        assert label is not None
        rmse, evaluated = root_mean_square(output, label)
        label = None
    evaluations = read_evaluations(output, label)
    accuracy = accuracy_frozen = kappa = None
    if evaluations is not None and len(evaluations.right):
        accuracy = float(np.mean(evaluations.right))
        accuracy_frozen = None if evaluations.right_frozen is None else float(np.mean(evaluations.right_frozen))
        kappa = kappa_temporal(accuracy, float(np.mean(evaluations.right_persistent)))
    return Summary(
        records=records,
        predictions=parts.rows,
        lost=None if windowed else records - filtered - came_out,
        duplicated=duplicated,
        dead_letters=letters.rows,
        filtered=filtered,
        cold_start=cold_start,
        versions=len(versions),
        swaps=swaps,
        accuracy=accuracy,
        accuracy_frozen=accuracy_frozen,
        kappa_temporal=kappa,
        evaluated=evaluated if evaluations is None else len(evaluations.right),
        seconds=float(seconds),
        rmse=rmse,
    )


def kappa_temporal(accuracy: float, accuracy_persistent: float) -> float | None:
    """(p0 - p_per) / (1 - p_per); None where the persistent classifier makes no mistake, as then nothing can be better."""
    if accuracy_persistent >= 1.0:
        return None
    return (accuracy - accuracy_persistent) / (1.0 - accuracy_persistent)


def _dead_sequences(letters: Parts) -> Int64s:
    """The distinct records that ended as a dead letter; sources and what is only about a label left out."""
    letters.require(SEQUENCE, "reason")
    found = [np.empty(0, np.int64)]
    for batch in letters.batches([SEQUENCE, "reason"]) if letters.rows else ():
        about_labels = pc.is_in(batch.column("reason"), pa.array(ABOUT_LABELS))
        numbers = batch.column(SEQUENCE).filter(pc.invert(about_labels))
        found.append(numbers.drop_null().to_numpy())
    return np.unique(np.concatenate(found))
