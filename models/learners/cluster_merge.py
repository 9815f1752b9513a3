"""One model over many partitions: the clusters that learners found apart, put together.

A cluster is a weight, a mean and a covariance, and those of two parts are exactly those of their rows together. What has to be
decided is which clusters of different partitions are one; that is done once, at the end, with all of them in a fixed order, so
that it makes no difference in what order or in what groups the partitions came.

References:
    Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The American Statistician 37, 1983.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.learners.cluster_changes import ONE_HEAP
from models.learners.cluster_shapes import TINY
from models.learners.cluster_state import LEAST_SHARE, gate
from models.loaded_graph import variables_prefix
from models.serving import ModelError

Floats = npt.NDArray[np.float64]


class Found(NamedTuple):
    """Clusters in the units of the records: `weight` (n,) decayed rows, `mean` (n, width), `covariance` (n, width, width)."""

    weight: Floats
    mean: Floats
    covariance: Floats

    @classmethod
    def none(cls, width: int) -> Found:
        return cls(np.zeros(0), np.zeros((0, width)), np.zeros((0, width, width)))


def clusters_of(path: str) -> Found:
    """The clusters of a version of `models.learners.clusters`.

    Args:
        path: the SavedModel's folder.

    Raises:
        ModelError: it is no such model.
    """
    from models.learners.cluster_shapes import matrices
    from models.learners.cluster_tables import read_saved

    try:
        value = read_saved(variables_prefix(path))
    except ValueError as error:
        raise ModelError(f"{path} is no model of clusters: {error}") from error
    alive = value["id"] >= 0
    scale = value["scale"]
    mean = value["mean"][alive] * scale + value["shift"]
    covariance = matrices(value["spread"][alive], len(scale)).numpy() * (scale[:, None] * scale)
    return Found(value["weight"][alive], mean, covariance)


def gathered(parts: Iterable[Found]) -> Found:
    """All clusters of some partitions, in an order that depends on them alone."""
    parts = list(parts)
    weight, mean, covariance = (np.concatenate([part[place] for part in parts]) for place in range(3))
    order = np.lexsort([*covariance.reshape(len(weight), covariance.shape[1] ** 2).T[::-1], *mean.T[::-1], -weight])
    return Found(weight[order], mean[order], covariance[order])


def merged(parts: Iterable[Found], one_heap: float = ONE_HEAP) -> Found:
    """The clusters of all partitions, those that are one put together, the closest first.

    Args:
        parts: one from each partition; at least one.
        one_heap: clusters are one whose centres are less than this apart, in standard deviations along their line.
    """
    weight, mean, covariance = gathered(parts)
    while len(weight) > 1:
        apart = separations(mean, covariance)
        one, other = sorted(np.unravel_index(int(apart.argmin()), apart.shape))
        if apart[one, other] >= one_heap:
            break
        total = weight[one] + weight[other]
        part, rest = weight[one] / total, weight[other] / total
        middle = part * mean[one] + rest * mean[other]
        between = mean[one] - mean[other]
        spread = part * covariance[one] + rest * covariance[other] + part * rest * np.outer(between, between)
        weight[one], mean[one], covariance[one] = total, middle, spread
        weight, mean, covariance = (np.delete(values, other, axis=0) for values in (weight, mean, covariance))
    return Found(weight, mean, covariance)


def separations(mean: Floats, covariance: Floats) -> Floats:
    """As `cluster_shapes.separations`, of covariances as they are: (n, n), inf on the diagonal."""
    between = mean[:, None] - mean
    line = np.linalg.solve(covariance[:, None] + TINY * np.eye(mean.shape[1]), between[..., None])[..., 0]
    squared = np.einsum("abj,abj->ab", line, between)
    others = np.einsum("abj,bjk,abk->ab", line, covariance, line)
    apart = squared / np.maximum(0.5 * (np.sqrt(squared) + np.sqrt(others)), TINY)
    apart = np.maximum(apart, apart.T)
    np.fill_diagonal(apart, np.inf)
    return apart


def assigned(rows: Floats, clusters: Found, gate_deviations: float = 4.0) -> npt.NDArray[np.int64]:
    """The likeliest cluster of each row, as its place in `clusters`; -1 beyond the gate of all."""
    away = rows[:, None] - clusters.mean
    squared = np.einsum("nkj,kjl,nkl->nk", away, np.linalg.inv(clusters.covariance), away, optimize=True)
    share = np.maximum(clusters.weight / clusters.weight.sum(), LEAST_SHARE)
    near = squared <= gate(rows.shape[1], gate_deviations)
    score = np.log(share) - 0.5 * np.linalg.slogdet(clusters.covariance)[1] - 0.5 * squared
    return np.where(near.any(axis=1), np.where(near, score, -np.inf).argmax(axis=1), -1)
