"""From measurements to what `make bench` reports: rates, slopes, ratios, aims."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

BARE, BEAM, TFX_BSL, BATCH, MICRO_BATCH = "bare loop", "Beam RunInference", "tfx-bsl RunInference", "batch", "micro-batch"
AIM_BARE, AIM_BEAM, AIM_TFX_BSL, AIM_MEMORY = 0.5, 40.0, 15.0, 1.1


class Case(NamedTuple):
    """What is measured: a contender over a file."""

    contender: str
    kind: str  # csv, parquet, tfrecord
    rows: int


@dataclass(frozen=True)
class Item:
    """One line of the report.

    Attributes:
        name: what is measured.
        unit: of `ours` and of the rivals.
        n: records.
        ours: Midstream's value.
        rivals: name to value; the first is the one that `ratio` is over.
        ratio: ours over the first rival.
        aim: what the ratio is to be; None where the line is for information.
        better: which way the ratio is better, `higher` or `lower`.
    """

    name: str
    unit: str
    n: int
    ours: float
    rivals: dict[str, float]
    ratio: float
    aim: float | None
    better: str

    @property
    def reached(self) -> bool | None:
        """Whether the aim is; None where there is none."""
        if self.aim is None:
            return None
        return self.ratio >= self.aim if self.better == "higher" else self.ratio <= self.aim


class Measurements:
    """What was measured, several times a case; every value that comes out is a median."""

    def __init__(self) -> None:
        self._found: dict[Case, list[dict[str, Any]]] = defaultdict(list)

    def add(self, case: Case, found: dict[str, Any]) -> None:
        self._found[case].append(found)

    def median(self, case: Case, entry: str) -> float:
        return statistics.median(found[entry] for found in self._found[case])

    def rate(self, case: Case, entry: str = "seconds") -> float:
        """Records/s from the first moment to the last, start-up included."""
        return case.rows / self.median(case, entry)

    def slope(self, small: Case, large: Case, entry: str = "seconds") -> float:
        """Records/s of the records that the larger file has more: without start-up. Infinite if noise hides them."""
        seconds = self.median(large, entry) - self.median(small, entry)
        return (large.rows - small.rows) / seconds if seconds > 0 else float("inf")

    def spread(self, case: Case, entry: str = "seconds") -> float:
        """(slowest - fastest) / median."""
        values = [found[entry] for found in self._found[case]]
        return (max(values) - min(values)) / statistics.median(values)


def items(measured: Measurements, sizes: Sequence[int], rival_sizes: Sequence[int]) -> list[Item]:
    """The lines of the report.

    Args:
        measured: all cases that `bench.run` plans.
        sizes: records at 1x, 4x and 16x.
        rival_sizes: records for Beam's RunInference and tfx-bsl's.
    """
    return [line for mode in (BATCH, MICRO_BATCH) for line in _of_mode(measured, mode, tuple(sizes), tuple(rival_sizes))]


def _of_mode(measured: Measurements, mode: str, sizes: tuple[int, ...], rival_sizes: tuple[int, ...]) -> Iterator[Item]:
    """Midstream's clock stops when the last Parquet file is in its place, but for the line with summary and report."""
    written = "parquet_s"
    ours, bare = ([Case(name, "csv", rows) for rows in sizes] for name in (mode, BARE))
    for times, own, rival in zip((1, 4, 16), ours, bare, strict=True):
        aim = AIM_BARE if own is ours[-1] else None
        yield _higher(f"{mode}, {times}x", own.rows, measured.rate(own, written), {BARE: measured.rate(rival)}, aim)
    most, least = ours[-1], ours[-2]
    slope, bare_slope = measured.slope(least, most, written), measured.slope(bare[-2], bare[-1])
    yield _higher(f"{mode}, slope from 4x to 16x", most.rows, slope, {BARE: bare_slope}, None)
    whole = measured.rate(most)
    yield _higher(f"{mode}, 16x, with summary and report", most.rows, whole, {BARE: measured.rate(bare[-1])}, None)
    if mode == BATCH:
        own, rival = Case(mode, "parquet", most.rows), Case(BARE, "parquet", most.rows)
        yield _higher(f"{mode}, 16x, from Parquet", most.rows, measured.rate(own, written), {BARE: measured.rate(rival)}, None)
    for name, kind, aim in ((BEAM, "csv", AIM_BEAM), (TFX_BSL, "tfrecord", AIM_TFX_BSL)):
        small, large = (Case(name, kind, rows) for rows in (rival_sizes[0], rival_sizes[-1]))
        # The rival's better figure, with or without its start-up, against ours with it.
        best = max(measured.rate(large), measured.slope(small, large))
        rivals = {f"{name} ({large.rows:,} records)": best}
        yield _higher(f"{mode}, 16x", most.rows, measured.rate(most, written), rivals, aim)
    peak, before = measured.median(most, "peak_mib"), measured.median(least, "peak_mib")
    rivals = {"the same at 4x": before, f"{BARE} at 16x": measured.median(bare[-1], "peak_mib")}
    yield Item(f"{mode}, 16x, peak memory", "MiB", most.rows, peak, rivals, peak / before, AIM_MEMORY, "lower")


def _higher(name: str, rows: int, ours: float, rivals: dict[str, float], aim: float | None) -> Item:
    return Item(name, "records/s", rows, ours, rivals, ours / next(iter(rivals.values())), aim, "higher")
