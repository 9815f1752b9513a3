"""Tells labels that are one of a learner's classes from others: one of these would keep a whole window from being learnt."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import TaggedOutput

from transforms.dead_letters import dead_letters
from transforms.grouping import class_codes

UNKNOWN_CLASS = "unknown_class"  # the reason of its dead letter


class KnownClasses(beam.PTransform):
    """Batches of labels to (those that are a class, dead letters of the others)."""

    def __init__(self, label: str, classes: int, vocabulary: tuple[str, ...]) -> None:
        """Creates the transform.

        Args:
            label: the column.
            classes: how many there are.
            vocabulary: the labels by class; empty for integers from 0.
        """
        super().__init__()
        self._given = label, classes, vocabulary

    def expand(self, labels: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
        split = beam.FlatMap(tell_classes, *self._given).with_output_types(pa.RecordBatch)
        given = labels | split.with_outputs(UNKNOWN_CLASS, main="known")
        return given["known"], given[UNKNOWN_CLASS]


def tell_classes(
    batch: pa.RecordBatch, label: str, classes: int, vocabulary: tuple[str, ...]
) -> Iterator[pa.RecordBatch | TaggedOutput]:
    """The rows whose label is a class or null, and the others as dead letters, if there are any; see `KnownClasses`."""
    values = batch.column(label)
    if not vocabulary and not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
        yield batch  # the learner says what is wrong with all of them
        return
    codes = class_codes(values, vocabulary).cast(pa.int64())
    known = pc.and_(pc.greater_equal(codes, 0), pc.less(codes, classes)).fill_null(True)
    known = pc.or_(known, values.is_null())
    if pc.all(known).as_py():
        yield batch
        return
    yield batch.filter(known)
    names = ", ".join(vocabulary) if vocabulary else f"0 to {classes - 1}"
    detail = f"the label is none of the classes that the learner began with ({names}); to learn it, begin anew with all classes"
    yield TaggedOutput(UNKNOWN_CLASS, dead_letters(batch.filter(pc.invert(known)), UNKNOWN_CLASS, detail))
