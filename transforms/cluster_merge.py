"""The clusters of many partitions as one model, in Beam: `versions | beam.CombineGlobally(MergeClusters())`."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam

from models.learners.cluster_merge import Found, gathered, merged


class MergeClusters(beam.CombineFn):
    """Merges `Found`s (`models.learners.cluster_merge.clusters_of` reads one from a version) into one; None if there is none.

    The accumulator keeps all clusters apart, some dozens a partition, and they are put together at the end: so the result does
    not depend on how the runner groups the partitions.
    """

    def create_accumulator(self) -> tuple[Found, ...]:
        return ()

    def add_input(self, accumulator: tuple[Found, ...], element: Found) -> tuple[Found, ...]:
        return (gathered([*accumulator, element]),)

    def merge_accumulators(self, accumulators: Iterable[tuple[Found, ...]]) -> tuple[Found, ...]:
        parts = [part for accumulator in accumulators for part in accumulator]
        return (gathered(parts),) if parts else ()

    def extract_output(self, accumulator: tuple[Found, ...]) -> Found | None:
        return merged(accumulator) if accumulator else None
