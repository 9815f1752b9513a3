"""`python -m bench.cluster_merging`: what it costs to learn clusters in partitions and merge them, against one learner."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass

import numpy as np

from bench.cluster_metrics import adjusted_rand_index
from bench.cluster_streams import Floats, StreamConfig, make_stream

WINDOW_ROWS = 250
TEST_ROWS = 1000


@dataclass(frozen=True)
class Cost:
    """ARI on the rows behind those that were learnt, of one learner and of merged ones; and how many clusters there were."""

    ari_one: float
    ari_merged: float
    clusters_one: int
    clusters_merged: int
    clusters_true: int


def compare(width: int, seed: int, rows: int = 20_000, partitions: int = 4, *, compiled: bool = True) -> Cost:
    """Learns a stream by one learner, and dealt out to `partitions` ones, row by row."""
    from models.learners.cluster_merge import assigned, clusters_of, merged

    stream = make_stream(StreamConfig(width, seed, rows=rows, drift=0.3, births=2, deaths=2, merges=0, splits=0))
    upto = rows - TEST_ROWS
    learnt = stream.rows[:upto]
    with tempfile.TemporaryDirectory() as folder:
        one = clusters_of(_learn(learnt, f"{folder}/one", compiled))
        shards = [clusters_of(_learn(learnt[place::partitions], f"{folder}/{place}", compiled)) for place in range(partitions)]
    together = merged(shards)
    rest, truth = stream.rows[upto:], stream.labels[upto:]
    ari = [adjusted_rand_index(truth, assigned(rest, found)) for found in (one, together)]
    return Cost(*ari, len(one.weight), len(together.weight), len(np.unique(truth)))


def _learn(rows: Floats, folder: str, compiled: bool) -> str:
    import pyarrow as pa

    from models.learners.clusters import Clusters, ClustersConfig
    from models.learning import LearningModel, save_learner
    from models.registry import Registry

    names = tuple(f"x{place}" for place in range(rows.shape[1]))
    save_learner(Clusters(ClustersConfig(names, compiled=compiled)), f"{folder}/seed")
    registry = Registry(f"{folder}/registry")
    seed = registry.publish("m", f"{folder}/seed").version
    learner = LearningModel(registry.path("m", seed))
    for at in range(0, len(rows), WINDOW_ROWS):
        columns = [pa.array(column) for column in rows[at : at + WINDOW_ROWS].T]
        learner.learn(pa.RecordBatch.from_arrays(columns, names=list(names)))
    version = registry.publish_variables("m", seed, learner.write_variables).version
    return registry.path("m", version)


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    costs = {f"{width} columns, 4 partitions": asdict(compare(width, 3)) for width in (2, 4, 16)}
    for name, cost in costs.items():
        print(f"{name}: ARI {cost['ari_merged']:.3f} merged, {cost['ari_one']:.3f} by one learner; {cost}")
    print(json.dumps({"bench": "cluster_merging", "costs": costs}))


if __name__ == "__main__":
    main()
