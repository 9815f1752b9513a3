"""The detector of a single column once more, row by row in plain Python: slow, and without any of the tricks."""

from __future__ import annotations

import math

import numpy as np

from models.anomaly import detector, seasons, surprise, tails


class Histogram:
    """Counts per bin instead of sums from above."""

    def __init__(self) -> None:
        self.bins = np.zeros(tails.BINS)

    def place(self, number: float) -> float:
        return min(max(math.log2(number) * tails.BINS_PER_OCTAVE + tails.MIDDLE, 0.0), tails.BINS - 1e-6)

    def p(self, number: float, weight: float) -> float:
        if number <= 0:
            return 1.0
        place = self.place(number)
        whole = int(place)
        above = lambda first: float(self.bins[first:].sum())  # noqa: E731
        larger = above(whole + 1) + self.bins[whole] * (1 - (place - whole))
        wanted = max(tails.TAIL_SHARE * weight, tails.TAIL_ROWS)
        start = max((b for b in range(tails.BINS) if above(b) >= wanted), default=0)
        if whole < start or above(start) == 0:
            return (larger + 0.5) / (weight + 1)
        excess = sum(self.bins[b] * (b + 0.5 - start) for b in range(start, tails.BINS)) / above(start)
        fitted = above(start) / (weight + 1) * math.exp(-(place - start) / max(excess, tails.SMALLEST_EXCESS))
        trust = larger / (larger + tails.TRUSTED_ROWS)
        return max(trust * larger / (weight + 1) + (1 - trust) * fitted, tails.SMALLEST_P)

    def observe(self, number: float) -> None:
        self.bins *= surprise.kept()
        if number > 0:
            self.bins[int(self.place(number))] += 1


class Oracle:
    """One series."""

    def __init__(self) -> None:
        self.rows, self.weight, self.peak, self.age = 0, 0.0, 0.0, 0
        self.fine: dict[tuple[int, int], tuple[float, int]] = {}
        self.coarse: dict[int, tuple[float, float, int]] = {}
        self.spread = self.drift = self.unit = 0.0
        self.distances = [0.0] * surprise.STAY_ROWS
        self.channels = [Histogram() for _ in range(surprise.CHANNELS)]
        self.total = Histogram()

    def row(self, x: float, phase: int, kind: int) -> tuple[float, float, bool]:
        n = self.rows
        if n == 0:
            self.level = self.short = self.long = self.low = self.high = self.last = self.last_but_one = x
        mean, deviation, seen = self.coarse.get(phase, (self.level, 0.0, 0))
        fine, fine_seen = self.fine.get((phase, kind), (0.0, 0))
        expected = fine if fine_seen > seasons.FAMILIAR else mean
        error, coarse_error = x - expected, x - mean
        self.short += max(1 / (n + 1), surprise.SHORT_RATE) * (x - self.short)
        self.long += max(1 / (n + 1), surprise.LONG_RATE) * (x - self.long)
        self.drift += surprise.DRIFT_RATE * (coarse_error - self.drift)
        least = 1e-9 * max(abs(self.level), 1e-9)
        if n == surprise.WARM_UP_ROWS:
            self.unit = max(self.spread, least)
        small, one = surprise.SPREAD_SHARE * self.spread + least, max(self.unit, 1e-18)
        self.distances.append(abs(error))
        numbers = [
            abs(error) / one,
            abs(math.log((abs(x) + small) / (abs(expected) + small))),
            abs(coarse_error) / (deviation + small) if seen > 1 else 0.0,
            abs(self.short - self.long) / one,
            abs(x - 2 * self.last + self.last_but_one) / one if n > 1 else 0.0,
            max(self.low - x, 0.0) / one,
            max(x - self.high, 0.0) / one,
            abs(self.drift) / one,
            min(self.distances[-surprise.STAY_ROWS :]) / one,
        ]
        found, p = 0.0, 1.0
        if n >= surprise.WARM_UP_ROWS:
            ps = [histogram.p(number, self.weight) for histogram, number in zip(self.channels, numbers, strict=True)]
            powers = [(-math.log10(each)) ** surprise.POWER for each in ps]
            found = float(np.average(powers, weights=surprise.WEIGHTS) ** (1 / surprise.POWER))
            odds = (10**found - 1) * detector.ODDS_UNIT
            p = self.total.p(odds, self.weight)
            for histogram, number in zip([*self.channels, self.total], [*numbers, odds], strict=True):
                histogram.observe(number)
            self.weight = self.weight * surprise.kept() + 1
        self.age += 1
        left = max(1 - self.age / detector.DetectorConfig.quiet_rows, 0)
        fresh = found >= detector.SAME_STRENGTH * self.peak * left
        if fresh:
            self.peak, self.age = found, 0
        self._learn(x, phase, kind, error, coarse_error, expected, mean, deviation, seen, fine, fine_seen)
        score = 1 - 2 ** (-(found if fresh else detector.DetectorConfig.repeated * found) / detector.SCALE)
        return score, p, fresh

    def _learn(self, x, phase, kind, error, coarse_error, expected, mean, deviation, seen, fine, fine_seen) -> None:
        cut = error
        if self.rows > surprise.TRUSTED_AFTER_ROWS:
            limit = surprise.LARGEST_ERROR * self.spread
            cut = min(max(error, -limit), limit)
        if fine_seen > 0:
            updated = expected + max(1 / (fine_seen + 1), seasons.SLOWEST) * cut
        else:
            updated = expected + 0.5 * error if seen > 0 else x
        self.fine[phase, kind] = (updated, fine_seen + 1)
        rate = max(1 / (seen + 1), seasons.SLOWEST)
        if seen > 0:
            self.coarse[phase] = (mean + rate * coarse_error, deviation + rate * (abs(coarse_error) - deviation), seen + 1)
        else:
            self.coarse[phase] = (x, 0.0, 1)
        rate = max(1 / (self.rows + 1), surprise.LEVEL_RATE)
        self.level += rate * (x - self.level)
        self.spread += rate * (abs(x - self.level) - self.spread)
        self.low, self.high = min(self.low, x), max(self.high, x)
        self.last_but_one, self.last = self.last, x
        self.rows += 1
