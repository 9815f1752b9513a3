"""One model over many partitions: what is merged does not depend on how, and costs little accuracy."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cluster_merging import compare
from models.learners.cluster_merge import Found, clusters_of, merged
from models.serving import ModelError
from tests.pipelines.jobs import save_module
from transforms.cluster_merge import MergeClusters


def found(draw: np.random.Generator, clusters: int) -> Found:
    half = draw.normal(0, 1, (clusters, 2, 2))
    covariance = half @ half.transpose(0, 2, 1) + 0.1 * np.eye(2)
    return Found(draw.uniform(1, 9, clusters), draw.normal(0, 5, (clusters, 2)), covariance)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.data())
def test_order_and_grouping_make_no_difference(seed: int, partitions: int, data: st.DataObject) -> None:
    draw = np.random.default_rng(seed)
    parts = [found(draw, int(draw.integers(0, 4))) for _ in range(partitions)]
    combine = MergeClusters()

    def run(order: list[int], cut: int) -> Found:
        accumulators = []
        for group in (order[:cut], order[cut:]):
            accumulator = combine.create_accumulator()
            for place in group:
                accumulator = combine.add_input(accumulator, parts[place])
            accumulators.append(accumulator)
        given = combine.extract_output(combine.merge_accumulators(accumulators))
        assert given is not None
        return given

    expected = run(list(range(partitions)), 0)
    order = data.draw(st.permutations(range(partitions)))
    came = run(order, data.draw(st.integers(0, partitions)))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(came, expected, strict=True))
    # No row is lost, and the clusters' mean is that of all rows.
    total = sum(part.weight.sum() for part in parts)
    assert came.weight.sum() == pytest.approx(total)
    if total:
        middle = sum(part.weight @ part.mean for part in parts) / total
        np.testing.assert_allclose(came.weight @ came.mean / total, middle, atol=1e-9)


def test_in_beam() -> None:
    draw = np.random.default_rng(2)
    parts = [found(draw, 3) for _ in range(5)]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        given = pipeline | beam.Create(parts) | beam.CombineGlobally(MergeClusters())
        given | beam.Map(_check, merged(parts))


def _check(came: Found, expected: Found) -> None:
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(came, expected, strict=True))


def test_partitions_together_are_nearly_as_good_as_one_learner() -> None:
    cost = compare(width=2, seed=3, rows=8000, partitions=2, compiled=False)
    print(cost)
    assert cost.clusters_merged == cost.clusters_one
    assert cost.ari_merged > 0.95 and cost.ari_one - cost.ari_merged < 0.03


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no model of clusters"):
        clusters_of(str(save_module(tmp_path / "line")))
