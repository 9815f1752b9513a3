"""Which predictions turned out right, once their labels were known.

References:
    Bifet et al., "Efficient Online Evaluation of Big Data Stream Classifiers", KDD 2015 (the persistent classifier).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.parts import Bools, Int64s, Parts, in_order
from transforms.batches import EVENT_TIME, SEQUENCE
from transforms.label_join import LABEL_TIME

_BLOCK_ROWS = 1_048_576


@dataclass(frozen=True)
class Evaluations:
    """The evaluated records, one entry each.

    Attributes:
        times_us: event times.
        versions: that predicted.
        classes: the labels that occur, as text, the most frequent first.
        codes: place of the record's label in `classes`.
        right: the live model was right.
        right_frozen: the first version would have been; None where it was not asked.
        right_persistent: the label that was known last would have been.
    """

    times_us: Int64s
    versions: Int64s
    classes: tuple[str, ...]
    codes: npt.NDArray[np.int32]
    right: Bools
    right_frozen: Bools | None
    right_persistent: Bools


def read_evaluations(output: str, label: str | None) -> Evaluations | None:
    """Reads a job's evaluations; None without any.

    Args:
        output: a job's output folder.
        label: name of the label column; None for a job without labels.

    Raises:
        ValueError: a column is missing.
    """
    parts = Parts(output, "evaluations")
    if label is None or not parts.rows:
        return None
    parts.require(SEQUENCE, EVENT_TIME, LABEL_TIME, label, "prediction", "version")
    answers = ["prediction", *["first_prediction"] * ("first_prediction" in parts.types)]
    numbers = (SEQUENCE, EVENT_TIME, LABEL_TIME, "version")
    # Filled in place: lists of batches, concatenated at the end, would need twice the memory.
    columns = [np.empty(parts.rows, np.int64) for _ in numbers]
    right = [np.empty(parts.rows, np.bool_) for _ in answers]
    labels, end = [], 0
    for batch in parts.batches(list(dict.fromkeys([*numbers, *answers, label]))):
        batch = batch.filter(batch.column(label).is_valid())
        truth = batch.column(label)
        start, end = end, end + batch.num_rows
        for column, name in zip(columns, numbers, strict=True):
            column[start:end] = batch.column(name).cast(pa.int64()).fill_null(0).to_numpy()
        for equal, name in zip(right, answers, strict=True):
            equal[start:end] = _equal(batch.column(name), truth)
        labels.append(_plain(truth).cast(pa.string()))
    sequence, times_us, label_us, versions = (column[:end] for column in columns)
    codes, classes = _by_frequency(pa.chunked_array(labels, pa.string()))
    del labels
    place = latest_known(times_us, label_us, sequence)
    persistent = (codes[place] == codes) & (place >= 0)
    frozen = right[1][:end] if len(answers) == 2 else None
    return Evaluations(times_us, versions, classes, codes, right[0][:end], frozen, persistent)


def estimates_numbers(output: str, label: str | None) -> bool:
    """Whether the predictions are decimal numbers, so that they are near or far and not right or wrong."""
    types = Parts(output, "evaluations").types if label is not None else {}
    return "prediction" in types and pa.types.is_floating(types["prediction"])


def root_mean_square(output: str, label: str) -> tuple[float | None, int]:
    """The error of predictions that are numbers, and of how many records; those without a prediction are left out."""
    total, count = 0.0, 0
    for batch in Parts(output, "evaluations").batches(["prediction", label]):
        off = pc.subtract(batch.column("prediction").cast(pa.float64()), batch.column(label).cast(pa.float64())).drop_null()
        total += float(np.sum(off.to_numpy() ** 2))
        count += len(off)
    return (float(np.sqrt(total / count)) if count else None), count


def latest_known(times_us: Int64s, label_us: Int64s, sequence: Int64s) -> Int64s:
    """For each record the place of the record whose label was the latest known one when it happened; -1 where none was known.

    A label counts as known to a record if its (label time, sequence) is below the record's (event time, sequence); latest is
    the greatest such pair. With labels at once this is the record before, as in the definition of the persistent classifier,
    and ties in time are taken in order of `sequence`. A record never knows its own label.

    Args:
        times_us: (rows,) event times.
        label_us: (rows,) when each label became known; before the event time is taken as at it.
        sequence: (rows,) distinct.
    """
    known_us = np.maximum(label_us, times_us)
    order = in_order(known_us, sequence)
    known_us, numbers = known_us[order], sequence[order]
    places = np.full(len(times_us), -1)
    # In blocks, so that what the search needs beside its answer stays small.
    for start in range(0, len(times_us), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        times, own = times_us[block], sequence[block]
        low, high = np.searchsorted(known_us, times, "left"), np.searchsorted(known_us, times, "right")
        # Of the labels known in that very microsecond, those before the record by `sequence`: a binary search for all at once.
        active = np.flatnonzero(low < high)
        while len(active):
            middle = (low[active] + high[active]) // 2
            before = numbers[middle] < own[active]
            low[active[before]] = middle[before] + 1
            high[active[~before]] = middle[~before]
            active = active[low[active] < high[active]]
        places[block] = np.where(low > 0, order[low - 1], -1)
    return places


def _by_frequency(labels: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """The labels as codes from 0, the most frequent first, and what the codes mean."""
    encoded = labels.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy()
    by_count = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")
    ranks = np.empty(len(names), np.int32)
    ranks[by_count] = np.arange(len(names))
    return ranks[codes], tuple(names[place] for place in by_count.tolist())


def _equal(prediction: pa.Array, truth: pa.Array) -> Bools:
    """Where both agree, a null prediction nowhere; numbers as numbers, all else as text."""
    prediction, truth = (_plain(column) for column in (prediction, truth))
    if prediction.type != truth.type and pa.string() in (prediction.type, truth.type):
        prediction, truth = prediction.cast(pa.string()), truth.cast(pa.string())
    return pc.equal(prediction, truth).fill_null(False).to_numpy(zero_copy_only=False)


def _plain(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_boolean(column.type):
        return column.cast(pa.int8())
    return column.cast(pa.string()) if pa.types.is_large_string(column.type) else column
