"""Clusters that come and go, against what is known of streams that were made for it, and against plain NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cluster_metrics import adjusted_rand_index, measure
from bench.cluster_streams import StreamConfig, make_stream
from models.learners.cluster_births import LEAST_ROWS
from models.learners.cluster_blocks import EM_STEPS, MEAN_ROWS, PRIOR_ROWS
from models.learners.cluster_shapes import (
    FULL_COLUMNS,
    covariances,
    join,
    matrices,
    moments,
    number_of_terms,
    separations,
    shrunk,
    squared_distances,
    terms_of,
    turn,
    whitening,
    widen,
)
from models.learners.cluster_state import SHAPE_ROWS, gate
from models.learners.cluster_tables import unpack
from models.learners.clusters import Clusters, ClustersConfig

Floats = npt.NDArray[np.float64]
WINDOW_ROWS = 250


class Run:
    """A learner over a stream, window by window: what it predicted before it learnt, and its events."""

    def __init__(self, rows: Floats, *, compiled: bool = False, **options: int) -> None:
        names = tuple(f"x{place}" for place in range(rows.shape[1]))
        self.learner = Clusters(ClustersConfig(names, compiled=compiled, **options))
        signatures = self.learner.signatures()
        found, self.events = [], []
        for at in range(0, len(rows), WINDOW_ROWS):
            columns = {name: tf.constant(rows[at : at + WINDOW_ROWS, place]) for place, name in enumerate(names)}
            found.append(signatures["serving_default"](**columns)["cluster"].numpy())
            told = signatures["learn"](**columns)
            told = [told[f"event_{name}"].numpy().tolist() for name in ("kind", "cluster", "other")]
            self.events += [(kind.decode(), cluster, other) for kind, cluster, other in zip(*told, strict=True)]
        self.found = np.concatenate(found)


@pytest.fixture(scope="module")
def run() -> Callable[..., Run]:
    """Runs are kept: several tests look at the same one."""
    kept: dict[tuple, Run] = {}

    def make(config: StreamConfig, **options: int) -> Run:
        key = (config, *options.items())
        if key not in kept:
            kept[key] = Run(make_stream(config).rows, **options)
        return kept[key]

    return make


@pytest.mark.parametrize("width", [2, 16])
def test_it_finds_what_is_there_while_it_changes(run: Callable[..., Run], width: int) -> None:
    config = StreamConfig(width, 5, rows=10_000, births=2, deaths=2, merges=0, splits=1)
    quality = measure(make_stream(config).labels, run(config).found)
    print(f"seed {config.seed}: {quality}")
    assert quality.ari > 0.9 and quality.count_within_one > 0.95 and quality.stable > 0.9
    kinds = [kind for kind, _, _ in run(config).events]
    assert kinds.count("born") >= 5 and "died" in kinds


def blobs(counts: list[int], centres: list[list[float]], seed: int, deviation: float = 0.3) -> Floats:
    draw = np.random.default_rng(seed)
    rows = np.concatenate([draw.normal(centre, deviation, (n, 2)) for n, centre in zip(counts, centres, strict=True)])
    return rows[draw.permutation(len(rows))]


def test_birth_death_and_an_id_that_stays() -> None:
    two = [blobs([125, 125], [[0, 0], [6, 0]], seed) for seed in range(6)]
    three = [blobs([84, 83, 83], [[0, 0], [6, 0], [0, 6]], seed) for seed in range(6, 12)]
    one_gone = [blobs([125, 125], [[6, 0], [0, 6]], seed) for seed in range(12, 18)]
    run = Run(np.concatenate(two + three + one_gone))
    first, second, third = run.found[5 * 250 : 6 * 250], run.found[11 * 250 : 12 * 250], run.found[17 * 250 :]
    assert [sorted(np.unique(part[part >= 0])) for part in (first, second, third)] == [
        [0, 1],
        [0, 1, 2],
        sorted({2} | ({0, 1} - {_died(run)})),
    ]
    assert [kind for kind, _, _ in run.events] == ["born", "born", "born", "died"]


def _died(run: Run) -> int:
    return next(cluster for kind, cluster, _ in run.events if kind == "died")


def test_a_cluster_that_falls_in_two_and_two_that_become_one() -> None:
    apart = [
        blobs([83, 83, 84], [[-d, 0], [d, 0], [0, 8]], seed) for seed, d in enumerate([0.0] * 6 + [0.4, 0.8, 1.2] + [1.5] * 8)
    ]
    run = Run(np.concatenate(apart))
    assert [kind for kind, _, _ in run.events] == ["born", "born", "split"]
    back = [
        blobs([83, 83, 84], [[-d, 0], [d, 0], [0, 8]], 99 + seed)
        for seed, d in enumerate([1.5] * 6 + [1.2, 0.8, 0.4] + [0.0] * 20)
    ]
    run = Run(np.concatenate(back))
    # While they hurry towards each other, rows ahead of them may look like a new cluster, for less than a window.
    assert run.events[:3] == [("born", place, place) for place in range(3)] and run.events[-1][0] == "merged"
    assert {kind for kind, _, _ in run.events} == {"born", "merged"}
    assert len(np.unique(run.found[-250:][run.found[-250:] >= 0])) == 2


def test_noise_makes_no_cluster_and_belongs_to_none() -> None:
    draw = np.random.default_rng(3)
    noise = draw.uniform(-10, 10, (4000, 3))
    cluster = draw.normal(2.0, 0.3, (4000, 3))
    rows = np.where(draw.random(4000)[:, None] < 0.2, noise, cluster)
    noisy = (rows == noise).all(axis=1)
    run = Run(rows)
    assert run.events == [("born", 0, 0)]
    late = np.arange(4000) >= 1000
    assert np.mean(run.found[late & ~noisy] == 0) > 0.99 and np.mean(run.found[late & noisy] == -1) > 0.95


def test_scales_and_the_order_of_columns_make_no_difference() -> None:
    rows = make_stream(StreamConfig(3, 8, rows=4000)).rows
    plain = Run(rows)
    scaled = Run(rows * [1024.0, 2.0**-20, 1.0] + [0.0, 0.0, 0.0])
    turned = Run(rows[:, [2, 0, 1]])
    assert np.array_equal(plain.found, scaled.found)  # powers of two: not even a rounding differs
    assert adjusted_rand_index(plain.found, turned.found) > 0.999
    assert adjusted_rand_index(plain.found, Run(rows * [1e5, 1e-4, 3.0] + [1e7, 0.5, -4.0]).found) > 0.999


def test_the_compiled_block_is_the_plain_one() -> None:
    rows = make_stream(StreamConfig(4, 6, rows=5000)).rows
    plain, compiled = Run(rows), Run(rows, compiled=True)
    assert adjusted_rand_index(plain.found, compiled.found) > 0.999 and plain.events == compiled.events


def known(learner: Clusters) -> dict[str, Floats]:
    return {name: value.numpy() for name, value in unpack(learner.state.read())._asdict().items()}


def test_a_step_is_that_of_an_oracle() -> None:
    """One block after the first window: EM over clusters that are there, as in the textbook, with the same weights."""
    rows = blobs([200, 150, 150], [[0, 0], [5, 0], [0, 5]], 1)
    run = Run(rows[:250])
    before = known(run.learner)
    frame = before["shift"], before["scale"]
    alive = before["id"] >= 0
    x = (rows[250:500] - frame[0]) / frame[1]
    place = before["mean"][alive] + before["velocity"][alive]
    covariance, weight = matrices(before["spread"][alive], 2).numpy(), before["weight"][alive]
    deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    white = before["whitening"][alive] / deviation[:, None]
    precision = white.transpose(0, 2, 1) @ white
    mean = place
    limit = gate(2, 4.0)
    for _ in range(EM_STEPS):
        away = x[:, None] - mean
        squared = np.einsum("nkj,kjl,nkl->nk", away, precision, away)
        likelihood = np.where(
            squared <= limit, weight / weight.sum() * np.exp(-0.5 * squared) * np.sqrt(np.linalg.det(precision)), 0
        )
        share = likelihood / np.maximum(likelihood.sum(axis=1, keepdims=True), 1e-300)
        came = share.sum(axis=0)
        middle = share.T @ x / came[:, None]
        mean = place + (came / (came + MEAN_ROWS))[:, None] * (middle - place)
    spread = np.stack([(share[:, [k]] * (x - mean[k])).T @ (x - mean[k]) for k in range(len(mean))])
    prior = (np.minimum(weight, SHAPE_ROWS) + PRIOR_ROWS)[:, None, None]
    # The weight is decayed only after it was used.
    expected = (prior * covariance + spread) / (prior + came[:, None, None])
    run.learner.learn(tf.constant(rows[250:500]))
    after = known(run.learner)
    np.testing.assert_allclose(after["mean"][alive], mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(after["weight"][alive], weight * 0.5 ** (250 / 2000) + came, rtol=1e-9)
    np.testing.assert_allclose(matrices(after["spread"][alive], 2), expected, rtol=1e-9, atol=1e-15)
    correlation = shrunk(after["spread"][alive], 2, np.minimum(after["weight"][alive], SHAPE_ROWS)).numpy()
    white = after["whitening"][alive]
    np.testing.assert_allclose(white @ correlation @ white.transpose(0, 2, 1), np.stack([np.eye(2)] * len(mean)), atol=1e-9)


small = st.integers(2, 6)


def oblong(draw: np.random.Generator, slots: int, width: int) -> Floats:
    half = draw.normal(size=(slots, width, width))
    return half @ half.transpose(0, 2, 1) + 0.1 * np.eye(width)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), small, st.sampled_from([1, 2, 3, 5, FULL_COLUMNS + 1]))
def test_arithmetic_is_that_of_loops(seed: int, slots: int, width: int) -> None:
    draw = np.random.default_rng(seed)
    mean, covariance = draw.normal(size=(slots, width)), oblong(draw, slots, width)
    if width > FULL_COLUMNS:
        covariance = covariance * np.eye(width)
    spread, precision = (terms_of(tf.constant(each)) for each in (covariance, np.linalg.inv(covariance)))
    assert spread.shape[1] == number_of_terms(width)
    np.testing.assert_array_equal(matrices(spread, width), covariance)
    np.testing.assert_allclose(turn(spread, mean), np.einsum("kij,kj->ki", covariance, mean), rtol=1e-9, atol=1e-12)
    rows, share = draw.normal(size=(9, width)), draw.uniform(size=(9, slots))
    wide = widen(tf.constant(rows))
    direct = [[(r - m) @ np.linalg.solve(c, r - m) for m, c in zip(mean, covariance, strict=True)] for r in rows]
    np.testing.assert_allclose(squared_distances(wide, mean, precision), direct, rtol=1e-7, atol=1e-8)
    apart = separations(mean, spread, precision, tf.ones(slots, tf.bool)).numpy()
    between = mean[0] - mean[1]
    lines = [np.linalg.solve(covariance[k], between) for k in (0, 1)]
    far = [2.0 * abs(u @ between) / sum(np.sqrt(u @ covariance[k] @ u) for k in (0, 1)) for u in lines]
    np.testing.assert_allclose([apart[0, 1], apart[1, 0]], [max(far)] * 2, rtol=1e-6)
    count, middle = (value.numpy() for value in moments(tf.constant(share), wide))
    np.testing.assert_allclose(count, share.sum(axis=0))
    np.testing.assert_allclose(middle, share.T @ rows / count[:, None], atol=1e-12)
    for k, found in enumerate(matrices(covariances(tf.constant(share), wide, count, middle), width).numpy()):
        expected = np.cov(rows.T, aweights=share[:, k], ddof=0).reshape(width, width)
        np.testing.assert_allclose(found, expected if width <= FULL_COLUMNS else expected * np.eye(width), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 500))
def test_correlations_are_drawn_to_none_as_far_as_chance_may_have_made_them(seed: int, width: int, rows: int) -> None:
    covariance = oblong(np.random.default_rng(seed), 1, width)
    spread, seen = terms_of(tf.constant(covariance)), tf.constant([float(rows)], tf.float64)
    found = shrunk(spread, width, seen)
    deviation = np.sqrt(np.diag(covariance[0]))
    squares = (covariance[0] / np.outer(deviation, deviation))[~np.eye(width, dtype=bool)] ** 2
    drawn = np.clip(((1 - squares) ** 2).sum() / rows / max(squares.sum(), 1e-24), 1e-4, 1.0)
    expected = (1 - drawn) * covariance[0] / np.outer(deviation, deviation) + drawn * np.eye(width)
    np.testing.assert_allclose(found[0], expected * (1 + (1 - drawn) * (width + 1) / rows), rtol=1e-9)
    white = whitening(found).numpy()[0]
    np.testing.assert_allclose(white @ found[0] @ white.T, np.eye(width), atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
def test_joined_clusters_have_the_moments_of_their_rows(seed: int, first: int, second: int) -> None:
    draw = np.random.default_rng(seed)
    parts = draw.normal(size=(first, 3)), draw.normal(2.0, 3.0, size=(second, 3))
    weight = tf.constant([float(first), float(second)], tf.float64)
    mean = tf.constant(np.stack([part.mean(axis=0) for part in parts]))
    spread = terms_of(tf.constant(np.stack([np.cov(part.T, bias=True) for part in parts])))
    total, middle, both = join(weight, mean, spread, tf.constant(0), tf.constant(1))
    together = np.concatenate(parts)
    assert float(total) == first + second
    np.testing.assert_allclose(middle, together.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(matrices(both[None], 3)[0], np.cov(together.T, bias=True), atol=1e-12)


def test_long_clusters_that_lie_aslant_are_found_whole() -> None:
    """Ten times as long as wide, each in a direction of its own: by variances of columns alone the index is 0.68."""
    draw = np.random.default_rng(2)
    shapes = np.linalg.qr(draw.normal(size=(4, 3, 3)))[0] * [3.0, 1.0, 0.3]
    covariance = shapes @ shapes.transpose(0, 2, 1)
    centres: list[Floats] = []
    while len(centres) < 4:  # seven deviations apart
        place, new = draw.uniform(0, 12, 3), len(centres)
        away = [place - centre for centre in centres]
        if all(d @ np.linalg.solve((covariance[k] + covariance[new]) / 2, d) > 7.0**2 for k, d in enumerate(away)):
            centres.append(place)
    truth = draw.integers(0, 4, 4000)
    run = Run(np.array(centres)[truth] + np.einsum("nij,nj->ni", shapes[truth], draw.normal(size=(4000, 3))))
    assert adjusted_rand_index(truth[1000:], run.found[1000:]) > 0.98
    assert [kind for kind, _, _ in run.events] == ["born"] * 4


def test_few_rows_and_outliers_do_no_harm() -> None:
    learner = Clusters(ClustersConfig(("a", "b"), compiled=False))
    assert int(learner.learn(tf.zeros([LEAST_ROWS - 1, 2], tf.float64))["clusters"]) == 0
    rows = blobs([250, 250], [[0, 0], [6, 0]], 4)
    rows[17], rows[30] = [1e30, 0.0], [np.inf, np.nan]
    run = Run(np.concatenate([rows, blobs([500, 500], [[0, 0], [6, 0]], 5)]))
    assert len(np.unique(run.found[-250:][run.found[-250:] >= 0])) == 2
    assert all(np.isfinite(variable.numpy()).all() for variable in run.learner.state.variables if variable.dtype.is_floating)
