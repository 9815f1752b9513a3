"""Streams whose clusters are known: they drift, are born, die, merge and split, at times and places that a seed decides.

A cluster is a normal distribution; what it does is decided every `STEP_ROWS` rows. All lengths are in the clusters' largest
standard deviation unless it says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

STEP_ROWS = 50
NOISE = -1  # label of rows that belong to no cluster
BOX = 10.0  # width of the space, in its own unit
MOVE_ROWS = 1500  # in which two clusters that merge come together, and two that split fall apart
SPLIT_DISTANCE = 8.0

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


class Stream(NamedTuple):
    """Rows (rows, width), and the label of each (rows,): the cluster it was drawn from, or NOISE."""

    rows: Floats
    labels: Labels


@dataclass(frozen=True)
class StreamConfig:
    """What happens in a stream.

    Attributes:
        width: number of columns.
        seed: of everything.
        rows: how many.
        start, most: clusters at the start, and at the most.
        deviation: least and largest standard deviation, in the unit of the box.
        drift: how far a cluster moves in 1,000 rows, in its own standard deviations.
        births, deaths, merges, splits: how often; spread evenly over the stream, in random order.
        noise: share of rows that are spread evenly over the box.
        skew: how many times more rows the largest cluster has than the smallest.
        apart: least distance between clusters when they are born; later they turn back from each other.
        crossing: they do not turn back, and pass through each other.
        scales: powers of ten between which the columns' units lie.
    """

    width: int
    seed: int
    rows: int = 30_000
    start: int = 5
    most: int = 6
    deviation: tuple[float, float] = (0.35, 0.6)
    drift: float = 1.0
    births: int = 3
    deaths: int = 3
    merges: int = 1
    splits: int = 1
    noise: float = 0.0
    skew: float = 1.0
    apart: float = 7.0
    crossing: bool = False
    scales: tuple[float, float] = (0.0, 0.0)


@dataclass
class _Cluster:
    place: Floats
    step: Floats
    deviation: float
    share: float
    goal: int | None = None  # the cluster that it is going to merge with
    away: Floats | None = None  # how it leaves the cluster that it was a part of
    steps_left: int = 0


@dataclass
class _World:
    config: StreamConfig
    draw: np.random.Generator
    clusters: dict[int, _Cluster] = field(default_factory=dict)
    next_label: int = 0

    def add(self, place: Floats | None = None, deviation: float | None = None) -> int:
        config, draw = self.config, self.draw
        least = config.apart * config.deviation[1]
        tries = 0
        while place is None or (tries and tries < 2000 and self._distance(place) < least):
            place, tries = draw.uniform(0.0, BOX, config.width), tries + 1
        direction = _direction(draw, config.width)
        size = draw.uniform(*config.deviation) if deviation is None else deviation
        share = float(np.exp(draw.uniform(0.0, np.log(config.skew))))
        self.clusters[self.next_label] = _Cluster(place, direction * size * config.drift * STEP_ROWS / 1000, size, share)
        self.next_label += 1
        return self.next_label - 1

    def _distance(self, place: Floats) -> float:
        return min((float(np.linalg.norm(place - other.place)) for other in self.clusters.values()), default=np.inf)

    def happen(self, kind: str) -> None:
        """A birth, death, merge or split, if there is room for it."""
        alone = [label for label, cluster in self.clusters.items() if cluster.goal is None]
        room = len(self.clusters) < self.config.most
        if kind == "birth" and room:
            self.add()
        elif kind == "death" and len(alone) > 2:
            del self.clusters[int(self.draw.choice(alone))]
        elif kind == "merge" and len(alone) > 2:
            stays, goes = (int(label) for label in self.draw.choice(alone, 2, replace=False))
            self.clusters[goes].goal, self.clusters[goes].steps_left = stays, MOVE_ROWS // STEP_ROWS
        elif kind == "split" and room:
            whole = self.clusters[int(self.draw.choice(alone))]
            part = self.clusters[self.add(whole.place.copy(), whole.deviation)]
            part.steps_left = MOVE_ROWS // STEP_ROWS
            part.away = _direction(self.draw, self.config.width) * SPLIT_DISTANCE * whole.deviation / part.steps_left

    def move(self) -> None:
        """One step of every cluster."""
        for label in list(self.clusters):
            cluster = self.clusters[label]
            goal = self.clusters.get(cluster.goal) if cluster.goal is not None else None
            if cluster.away is not None and cluster.steps_left > 0:
                cluster.place = cluster.place + cluster.away
                cluster.steps_left -= 1
            elif goal is not None:
                cluster.place = cluster.place + (goal.place - cluster.place) / max(cluster.steps_left, 1)
                cluster.steps_left -= 1
                if cluster.steps_left <= 0:
                    del self.clusters[label]
            else:
                cluster.goal = None
                self._turn_back(label, cluster)
                cluster.place = cluster.place + cluster.step

    def _turn_back(self, label: int, cluster: _Cluster) -> None:
        """From the walls of the box, and from other clusters."""
        ahead = cluster.place + cluster.step
        cluster.step = np.where((ahead < 0.0) | (ahead > BOX), -cluster.step, cluster.step)
        if self.config.crossing:
            return
        for other_label, other in self.clusters.items():
            if other_label == label or other.goal == label or other.steps_left > 0:
                continue
            between = ahead - other.place
            distance = float(np.linalg.norm(between))
            if distance < 0.9 * self.config.apart * self.config.deviation[1] and between @ cluster.step < 0.0:
                unit = between / distance
                cluster.step = cluster.step - 2.0 * (cluster.step @ unit) * unit


def make_stream(config: StreamConfig) -> Stream:
    """Draws a stream; the same configuration gives the same one."""
    draw = np.random.default_rng(config.seed)
    kinds = ["birth"] * config.births + ["death"] * config.deaths + ["merge"] * config.merges + ["split"] * config.splits
    draw.shuffle(kinds)
    steps = config.rows // STEP_ROWS
    times = ((np.linspace(0.1, 0.92, len(kinds)) + draw.uniform(-0.02, 0.02, len(kinds))) * steps).astype(int)
    world = _World(config, draw)
    for _ in range(config.start):
        world.add()
    rows, labels = [], []
    for step in range(steps):
        for kind in [kind for kind, time in zip(kinds, times, strict=True) if time == step]:
            world.happen(kind)
        world.move()
        names = np.array(list(world.clusters))
        there = list(world.clusters.values())
        shares = np.array([cluster.share for cluster in there])
        chosen = draw.choice(len(there), STEP_ROWS, p=shares / shares.sum())
        places = np.array([cluster.place for cluster in there])[chosen]
        deviations = np.array([cluster.deviation for cluster in there])[chosen]
        drawn = places + draw.normal(size=places.shape) * deviations[:, None]
        noisy = draw.random(STEP_ROWS) < config.noise
        rows.append(np.where(noisy[:, None], draw.uniform(-1.0, BOX + 1.0, drawn.shape), drawn))
        labels.append(np.where(noisy, NOISE, names[chosen]))
    units = 10.0 ** draw.uniform(*config.scales, config.width)
    return Stream(np.concatenate(rows) * units, np.concatenate(labels))


def _direction(draw: np.random.Generator, width: int) -> Floats:
    drawn = draw.normal(size=width)
    return np.asarray(drawn / np.linalg.norm(drawn))


# Three seeds for each width: what the figures are about. The others show where it ends.
MAIN = {f"{width} columns, seed {seed}": StreamConfig(width, seed) for width in (2, 4, 16) for seed in (1, 2, 3)}
OTHERS = {
    "fast drift": StreamConfig(4, 901, drift=4.0),
    "5 % noise": StreamConfig(2, 902, noise=0.05),
    "10 % noise, 16 columns": StreamConfig(16, 904, noise=0.1),
    "unequal sizes, 1 to 8": StreamConfig(4, 905, skew=8.0),
    "unequal densities, 1 to 9": StreamConfig(2, 907, deviation=(0.1, 0.9), apart=5.0),
    "columns' units 1e-4 to 1e5": StreamConfig(4, 909, scales=(-4.0, 5.0)),
    "one cluster": StreamConfig(2, 911, start=1, most=1, births=0, deaths=0, merges=0, splits=0),
    "18 to 20 clusters": StreamConfig(4, 914, start=18, most=20, births=4, deaths=4),
    "clusters that cross, 4 columns": StreamConfig(4, 917, crossing=True, drift=3.0),
    "clusters that cross, 2 columns": StreamConfig(2, 916, crossing=True, drift=3.0),
    "8 births, 8 deaths, 3 merges, 3 splits": StreamConfig(4, 919, births=8, deaths=8, merges=3, splits=3, most=9),
}
