"""Generated series of the kinds that the Numenta benchmark's documentation names, with labelled windows.

The benchmark's eleven series that are at hand hold one of its 17 server metrics, one of seven road sensors, and none of ten
counts of tweets or six advertising prices. What is made here has the groups, intervals, lengths and numbers of windows of all
58; how the series look is an assumption, not a copy. A third of the labelled anomalies are small beside the noise, and some
things that stand out are not labelled, as in data that people have labelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.nab import PROBATION_ROWS, Floats, Series

SIZES = (0.2, 0.3, 0.45, 0.65, 1.0)  # of a labelled anomaly, beside what its kind would be at its clearest
WINDOW_SHARE = 0.1  # of the rows of a series is in windows, which share it evenly
DAY_S = 86_400
HOUR_S, FIVE_MINUTES_S = 3600, 300


@dataclass
class Canvas:
    """A series in the making.

    Attributes:
        draw: where all randomness comes from.
        seconds: (rows,) the time of each row, in seconds since 1970.
        at: the first row of each labelled anomaly.
    """

    draw: np.random.Generator
    seconds: npt.NDArray[np.int64]
    at: list[int]

    @classmethod
    def of(cls, draw: np.random.Generator, rows: int, anomalies: int, step_s: int, irregular: bool = False) -> Canvas:
        gaps = step_s * (draw.choice([1, 1, 1, 2, 2, 3, 4, 10], rows) if irregular else np.ones(rows))
        begin = 1_391_212_800 + int(draw.integers(0, 60 * DAY_S))  # early in 2014
        first = int(max(0.2 * rows, min(0.15 * rows, PROBATION_ROWS) + 20))
        at: list[int] = []
        while len(at) < anomalies:  # apart by more than half of what they would be if they were evenly spread over a tenth
            place = int(draw.integers(first, int(0.97 * rows)))
            if all(abs(place - other) > 0.06 * rows / anomalies for other in at):
                at.append(place)
        return cls(draw, begin + np.cumsum(gaps).astype(np.int64), sorted(at))

    @property
    def rows(self) -> int:
        return len(self.seconds)

    @property
    def hour(self) -> Floats:
        """The time of day, from 0 to 1."""
        return self.seconds % DAY_S / DAY_S

    @property
    def weekend(self) -> npt.NDArray[np.bool_]:
        return (self.seconds // DAY_S + 3) % 7 >= 5

    def day(self, peak: float) -> Floats:
        """A wave a day, from -1 to 1."""
        return np.cos(2 * np.pi * (self.hour - peak))

    def wander(self, memory: float, deviation: float) -> Floats:
        """Noise that remembers: an autoregression of order one."""
        steps = self.draw.normal(0, deviation * np.sqrt(1 - memory**2), self.rows)
        found, value = np.empty(self.rows), self.draw.normal(0, deviation)
        for row, step in enumerate(steps):
            value = memory * value + step
            found[row] = value
        return found

    def noise(self, deviation: float) -> Floats:
        return self.draw.normal(0, deviation, self.rows)

    def size(self, low: float, high: float) -> float:
        """How far a labelled anomaly goes."""
        return float(self.draw.uniform(low, high) * self.draw.choice(SIZES))

    def stretch(self, first: int, low: int, high: int) -> slice:
        """Some rows from a row on."""
        return slice(first, first + int(self.draw.integers(low, high + 1)))

    def spikes(self, x: Floats, share: float, low: float, high: float, rows: int = 1) -> None:
        """What stands out and is not labelled: part of how the series is."""
        for first in np.flatnonzero(self.draw.random(self.rows) < share).tolist():
            x[self.stretch(first, 1, rows)] += self.draw.uniform(low, high)

    def series(self, name: str, x: Floats, *, messy: bool = True) -> Series:
        """The series with its windows; a messy one may have a shift and some peaks that nobody labelled."""
        if messy:
            low, deviation = x.min(), x.std()
            if self.draw.random() < 0.3:
                x[int(self.draw.integers(self.rows // 5, self.rows)) :] += self.draw.uniform(-2, 2) * deviation
            for first in self.draw.integers(self.rows // 10, self.rows, int(self.draw.integers(0, 4))).tolist():
                x[self.stretch(first, 1, 3)] += self.draw.uniform(2, 8) * deviation
            x = np.maximum(x, 0.0) if low >= 0 else x
        half, windows = max(int(WINDOW_SHARE * self.rows / max(len(self.at), 1)), 2) // 2, list[tuple[int, int]]()
        for place in self.at:
            first, last = max(place - half, 0), min(place + half, self.rows - 1)
            if windows and first <= windows[-1][1]:
                first = windows.pop()[0]
            windows.append((first, last))
        stamps = np.datetime_as_string(self.seconds.astype("datetime64[s]"), unit="s")
        return Series(name, [stamp.replace("T", " ") for stamp in stamps.tolist()], np.round(x, 4), windows)


def artificial(draw: np.random.Generator, number: int, labelled: bool) -> Series:
    """A day's plateau, a square wave, noise, nothing at all; one day that is another, spikes that become dense."""
    of = Canvas.of(draw, 4032, 0, FIVE_MINUTES_S)
    day = 288 * int(draw.integers(8, 13))
    own = np.arange(4032) // 288 == day // 288
    of.seconds += -of.seconds[0] % DAY_S  # days begin at midnight
    busy = (of.hour > 0.4) & (of.hour < 0.75)
    plateau = 20 + 60 * np.clip((of.hour - 0.35) / 0.05, 0, 1) * np.clip((0.8 - of.hour) / 0.05, 0, 1)
    jitter = draw.uniform(-4, 4, 4032)
    if not labelled:
        x = [plateau, np.where(busy, 80.0, 20.0), plateau + jitter, np.full(4032, 45.0), 20 + jitter / 2][number]
        return of.series(f"artificialNoAnomaly/{number}.csv", x, messy=False)
    begin = day + (115 if number < 4 else 0)
    if number < 4:  # flat at noon, down, up, no jump at all
        change = [np.where(busy, -30 * own, 0), np.where(busy, -40 * own, 0), np.where(busy, 40 * own, 0)]
        x = np.where(own, 20.0, plateau) + jitter if number == 3 else plateau + jitter + change[number]
    elif number == 4:
        period = int(draw.choice([72, 144, 288]))
        x = np.where(np.arange(4032) % np.where(own, period // 12, period) == 5, 60.0, 20.0)
    else:
        x = draw.uniform(0, 2, 4032)
        x[draw.choice(np.arange(day, day + 150), 12, replace=False)] += draw.uniform(2.5, 4, 12)
    of.at = [begin]
    return of.series(f"artificialWithAnomaly/{number}.csv", x, messy=False)


def advertising(draw: np.random.Generator, number: int) -> Series:
    """Hourly prices: noisy, above 0, with a day."""
    of = Canvas.of(draw, int(draw.integers(1530, 1650)), int(draw.choice([0, 1, 2, 3], p=[0.1, 0.3, 0.3, 0.3])), HOUR_S)
    x = (0.1, 0.5)[number % 2] * np.exp(0.25 * of.day(draw.random()) + of.wander(0.6, 0.2) + of.wander(0.995, 0.15))
    for first in of.at:
        if draw.random() < 0.7:
            x[of.stretch(first, 1, 5)] *= 1 + of.size(1, 4)
        else:
            x[of.stretch(first, 24, 100)] *= draw.choice([0.45, 1.9])
    for first in draw.integers(0, of.rows, 5).tolist():
        x[first] *= draw.uniform(1.3, 2.2)
    return of.series(f"realAdExchange/{number}.csv", x)


def server(draw: np.random.Generator, number: int) -> Series:
    """Metrics of machines; see `_SERVERS`."""
    rows = 1243 if number == 14 else 4032
    of = Canvas.of(draw, rows, 0 if number == 6 else int(draw.choice([1, 2, 2, 3] if rows > 2000 else [1, 2])), FIVE_MINUTES_S)
    return of.series(f"realAWSCloudWatch/{number}.csv", _SERVERS[number](of))


def _server(
    usual: Callable[[Canvas], Floats],
    size: tuple[float, float],
    rows: tuple[int, int] = (1, 10),
    spikes: tuple[float, float, float] = (0.003, 0.0, 0.0),
    *,
    lasting: float = 0.0,
    within: tuple[float, float] = (0.0, np.inf),
) -> Callable[[Canvas], Floats]:
    """What a metric usually is, how far and long its anomalies go, what stands out now and then, the share that lasts."""

    def make(of: Canvas) -> Floats:
        x = usual(of)
        of.spikes(x, *spikes)
        for first in of.at:
            lasts = of.draw.random() < lasting
            x[slice(first, None) if lasts else of.stretch(first, *rows)] += of.size(*size) * (0.4 if lasts else 1.0)
        return np.clip(x, *within)

    return make


def _quantised(level: float, step: float) -> Callable[[Canvas], Floats]:
    return lambda of: level + step * of.draw.choice([-1, 0, 0, 0, 1], of.rows)


def _heavy(middle: float, spread: float) -> Callable[[Canvas], Floats]:
    return lambda of: np.exp(middle + spread * of.noise(1.0) + 0.3 * of.day(0.5))


def _peaks(of: Canvas) -> Floats:
    period = int(of.draw.choice([72, 144, 288]))
    return 2.3 + np.abs(of.noise(0.3)) + 20 * (np.arange(of.rows) % period < 2)


def _bursts(of: Canvas) -> Floats:
    x = np.abs(of.noise(0.3)) + 0.4
    of.spikes(x, 0.006, 5, 60, rows=5)
    return x


def _rare_writes(of: Canvas) -> Floats:
    x = np.where(of.draw.random(of.rows) < 0.85, 0.0, np.exp(12 + 1.2 * of.noise(1.0)))
    return x + 5e6 * (np.arange(of.rows) % 288 == 40)


def _requests(of: Canvas) -> Floats:
    return of.draw.poisson(60 * np.exp(0.6 * of.day(0.6) + of.wander(0.95, 0.25))).astype(np.float64)


def _group(of: Canvas) -> Floats:
    return 33 + of.wander(0.6, 1.2) + 4 * of.day(0.5)


_CPU = (0.0, 100.0)
_SERVERS: Sequence[Callable[[Canvas], Floats]] = (
    _server(_quantised(0.132, 0.002), (0.3, 2.2), (1, 3), (0.002, 0.02, 0.08)),
    _server(lambda of: 1.8 + of.wander(0.3, 0.07) + 0.1 * of.day(0.5), (0.6, 1.2), (1, 5), (0.003, 0.1, 0.4), lasting=0.5),
    _server(lambda of: 43 + of.wander(0.5, 2.0), (9, 18), (2, 40), (0.004, 4, 12), lasting=0.4, within=_CPU),
    _server(_bursts, (60, 100), (15, 80), within=_CPU),
    _server(lambda of: 95 + of.wander(0.7, 1.5), (-45, -15), (5, 150), (0.003, -8, -3), within=_CPU),
    _server(lambda of: 35 + of.wander(0.9, 3) + 5 * of.day(0.5), (25, 65), (1, 10), (0.004, 5, 20), lasting=0.5, within=_CPU),
    _server(_quantised(0.09, 0.003), (0, 0), (1, 1), (0.004, 0.01, 0.05)),
    _server(_peaks, (20, 75), (1, 25), within=_CPU),
    _server(_rare_writes, (2e7, 3e8), (1, 8)),
    _server(_heavy(13.5, 0.35), (2e7, 1e8), (1, 8)),
    _server(_heavy(11, 0.3), (1.5e6, 5e6), (1, 15), (0.008, 2e5, 9e5)),
    _server(_heavy(4.2, 0.3), (1500, 5000), (1, 15), (0.008, 200, 1000)),
    _server(_requests, (350, 600), (1, 6), (0.004, 60, 200)),
    _server(_group, (-40, -30), (20, 300), within=_CPU),
    _server(_heavy(15, 0.3), (1e7, 3e7), (2, 20), (0.01, 2e6, 7e6)),
    _server(lambda of: 6 + of.wander(0.4, 0.4) + np.arange(of.rows) * 4e-4, (8, 18), (1, 10), (0.003, 1, 4), within=_CPU),
    _server(lambda of: 15 + of.wander(0.8, 0.9) + 2 * of.day(0.5), (-9, -6), (20, 200), (0.003, 2, 7), within=_CPU),
)


def traffic(draw: np.random.Generator, number: int) -> Series:
    """Travel times, occupancy and speed, at irregular times, with rush hours."""
    of = Canvas.of(draw, int(draw.integers(1127, 2500)), int(draw.choice([1, 2, 2, 3, 4])), FIVE_MINUTES_S, irregular=True)
    rush = np.exp(-(((of.hour - 0.33) / 0.04) ** 2)) + 1.2 * np.exp(-(((of.hour - 0.72) / 0.05) ** 2))
    rush *= np.where(of.weekend, 0.2, 1.0)
    if number < 2:
        x = 100 + 120 * rush + draw.gamma(1.2, 40, of.rows)
        of.spikes(x, 0.02, 150, 500)
        size, most = (900.0, 4000.0), 10
    elif number < 4:
        x = np.maximum(4 + 3 * of.day(0.5) + 8 * rush + of.noise(1.2), 0)
        of.spikes(x, 0.01, 3, 10)
        size, most = (18.0, 45.0), 15
    else:
        x = 70 - 12 * rush + of.noise(3)
        of.spikes(x, 0.015, -16, -6)
        size, most = (-45.0, -20.0), 15
    for first in of.at:
        x[of.stretch(first, 1, most)] += of.size(*size)
    return of.series(f"realTraffic/{number}.csv", np.round(np.maximum(x, 0)))


def mentions(draw: np.random.Generator, number: int) -> Series:
    """Counts in five minutes: a day, bursts of all sizes that die away, and a few that are labelled."""
    of = Canvas.of(draw, int(draw.integers(15_820, 15_910)), int(draw.choice([2, 3, 3, 4, 4])), FIVE_MINUTES_S)
    base = float(np.exp(draw.uniform(np.log(4), np.log(90))))
    rate = base * np.exp(draw.uniform(0.2, 0.8) * of.day(draw.random()) + of.wander(0.9, 0.25) + of.wander(0.999, 0.2))
    usual = [
        (int(first), min(draw.pareto(1.6) * 0.8 + 0.3, 14.0), draw.uniform(1, 10)) for first in draw.integers(0, of.rows, 100)
    ]
    for first, height, rows in [*usual, *((first, of.size(4, 24), of.size(1, 30)) for first in of.at)]:
        fading = np.exp(-np.arange(int(5 * rows) + 1) / rows)[: of.rows - first]
        rate[first : first + len(fading)] += base * height * fading
    shape = draw.uniform(3, 10)
    return of.series(f"realTweets/{number}.csv", draw.poisson(draw.gamma(shape, rate / shape)).astype(np.float64))


def known(draw: np.random.Generator, number: int) -> Series:
    """Temperatures, a group of servers, latency, a machine, passengers, what a person types."""
    rows, anomalies, step_s = [
        (7267, 2, HOUR_S), (18_050, 1, 300), (4032, 3, 300), (22_695, 4, 300), (10_320, 5, 1800), (1882, 2, HOUR_S),
        (5315, 2, 300),
    ][number]  # fmt: skip
    of = Canvas.of(draw, rows, anomalies, step_s)
    size, most = (7.0, 9.0), 100
    if number == 0:
        x = 71 + of.wander(0.99, 2.5) + 1.5 * of.day(0.6) + of.noise(0.5)
    elif number == 1:
        x, size, most = np.clip(45 + 10 * of.day(0.5) + of.wander(0.9, 4), 0, 100), (20.0, 30.0), 1500
    elif number == 2:
        x, size, most = 45 + of.noise(1.5), (20.0, 40.0), 10
        of.spikes(x, 0.004, 4, 12)
    elif number == 3:
        x, size, most = 85 + of.wander(0.998, 5) + of.noise(0.6), (-60.0, -25.0), 250
    elif number == 4:
        rhythm = 15_000 + 8000 * of.day(0.6) + 3000 * of.day(0.3) * of.day(0.6) + 2500 * of.weekend * of.day(0.1)
        x, size, most = rhythm * np.exp(of.wander(0.95, 0.06)), (-9000.0, -5000.0), 48
    else:
        active = (of.hour > 0.35) & (of.hour < 0.75) & ~of.weekend & (draw.random(of.rows) < 0.8)
        x, size, most = np.where(active, draw.gamma(1.3, 0.02, of.rows), 0.0), (0.05, 0.2), 30
    for first in of.at:
        x[of.stretch(first, 2, most)] += of.size(*size)
    return of.series(f"realKnownCause/{number}.csv", x)


def family(seed: int) -> list[Series]:
    """58 series; the same for the same seed."""
    kinds: list[tuple[Callable[[np.random.Generator, int], Series], int]] = [
        (lambda draw, number: artificial(draw, number, False), 5),
        (lambda draw, number: artificial(draw, number, True), 6),
        (advertising, 6),
        (server, 17),
        (traffic, 7),
        (mentions, 10),
        (known, 7),
    ]
    return [
        make(np.random.default_rng([seed, kind, number]), number)
        for kind, (make, count) in enumerate(kinds)
        for number in range(count)
    ]
