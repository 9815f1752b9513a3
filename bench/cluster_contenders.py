"""Who clusters a stream: Midstream's learner, River's algorithms, Spark's StreamingKMeans. All predict a record, then learn it.

Rivals are given what they cannot find out: columns in standard units (by the first 500 records), the number of clusters, or a
radius that fits the clusters of these streams. Their time is that of their calls alone; their records are made ready before.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bench.cluster_streams import Floats, Labels

WINDOW_ROWS = 1000  # as the template has it; the first ones are shorter
STANDARD_ROWS = 500
OURS, PIPELINE, SPARK = "Midstream", "Midstream, CSV to Parquet", "pyspark StreamingKMeans"


class Found(NamedTuple):
    """The cluster of each row, and how long it took: on the clock, and on the processor (None if others did the work)."""

    labels: Labels
    seconds: float
    cpu_seconds: float | None = None


class Clock:
    """Both times since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def found(self, labels: Labels) -> Found:
        return Found(labels, time.perf_counter() - self._wall, time.process_time() - self._cpu)


def midstream(rows: Floats, most: int) -> Found:
    """The learner as a SavedModel, in a bare loop over Arrow batches of a window: to tensors, predict, learn from them."""
    import pyarrow as pa
    import tensorflow as tf

    from models.learners.clusters import Clusters, ClustersConfig
    from models.learning import LEARN_SIGNATURE, LearningModel, save_learner
    from models.serving import SERVING_SIGNATURE, to_numpy
    from transforms.learning_windows import rows_of_window

    tf.config.threading.set_inter_op_parallelism_threads(1)  # one core, as River has
    tf.config.threading.set_intra_op_parallelism_threads(1)
    names = [f"x{place}" for place in range(rows.shape[1])]
    with tempfile.TemporaryDirectory() as folder:
        save_learner(Clusters(ClustersConfig(tuple(names))), folder)
        learner = LearningModel(folder)
        predict, learn = learner.signature(SERVING_SIGNATURE), learner.signature(LEARN_SIGNATURE)
        starts, size = [0], 0
        while starts[-1] + (size := rows_of_window(starts[-1], WINDOW_ROWS)) < len(rows):
            starts.append(starts[-1] + size)
        batches = [
            pa.RecordBatch.from_arrays([pa.array(column) for column in piece.T], names=names)
            for piece in np.split(rows, starts[1:])
        ]
        # Going through it once compiles, which is no record's: like the rivals' imports it happens once a process.
        at_first = {key: tf.identity(variable) for key, variable in learner.variables.items()}
        for timed in (False, True):
            found, clock = [], Clock()
            for batch in batches:
                columns = {name: tf.constant(to_numpy(batch, name, "float64", ())) for name in names}
                found.append(predict(**columns)["cluster"].numpy())
                told = learn(**columns)
                told["event_kind"].numpy(), told["event_cluster"].numpy(), told["event_other"].numpy()
            if not timed:
                for key, value in at_first.items():
                    learner.variables[key].assign(value)
        return clock.found(np.concatenate(found))


def pipeline(rows: Floats, most: int) -> Found:
    """`midstream run cluster`, from a CSV file to Parquet, the report and all; imports are not counted."""
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    from pipelines import template as templates
    from pipelines.execute import Execution

    with tempfile.TemporaryDirectory() as folder:
        table = pa.table({f"x{place}": rows[:, place] for place in range(rows.shape[1])})
        pyarrow.csv.write_csv(table, f"{folder}/in.csv")
        template, here = templates.load("cluster")
        job = template.fill({"input": f"{folder}/in.csv", "output": f"{folder}/out"}, here)
        started = time.perf_counter()
        Execution(job).run()
        seconds = time.perf_counter() - started
        parts = [pq.read_table(part, columns=["row", "cluster"]) for part in Path(folder, "out/predictions").glob("part-*")]
        clusters = pa.concat_tables(parts).sort_by("row").column("cluster")
        return Found(clusters.fill_null(-1).to_numpy(), seconds)


def river(make: Callable[[int, int], Any]) -> Callable[[Floats, int], Found]:
    """A clusterer of River: `make(width, most)`."""

    def run(rows: Floats, most: int) -> Found:
        model = make(rows.shape[1], most)
        records = [dict(enumerate(row)) for row in standardised(rows).tolist()]
        labels = np.full(len(records), -1)
        clock = Clock()
        for place, record in enumerate(records):
            if place:
                try:
                    labels[place] = model.predict_one(record)
                except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError):  # before the first clusters are there
                    labels[place] = -1
            model.learn_one(record)
        return clock.found(labels)

    return run


def spark(rows: Floats, most: int) -> Found:
    """Spark's StreamingKMeansModel, updated window by window; assignments by NumPy, which is faster than asking Spark."""
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    from pyspark import SparkConf, SparkContext
    from pyspark.mllib.clustering import StreamingKMeansModel

    conf = SparkConf().setMaster("local[2]").set("spark.ui.enabled", "false").set("spark.log.level", "ERROR")
    context = SparkContext(conf=conf)
    try:
        data = standardised(rows)
        model = StreamingKMeansModel(data[:: max(STANDARD_ROWS // most, 1)][:most], np.ones(most))
        labels, started = [], time.perf_counter()
        for at in range(0, len(data), STANDARD_ROWS):
            window = data[at : at + STANDARD_ROWS]
            centers = np.array(model.centers)
            labels.append(((window[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1))
            model.update(context.parallelize(window.tolist(), 2), 0.5, "batches")
        return Found(np.concatenate(labels), time.perf_counter() - started)
    finally:
        context.stop()


def standardised(rows: Floats) -> Floats:
    """In standard units of the first records."""
    first = rows[:STANDARD_ROWS]
    return np.asarray((rows - first.mean(axis=0)) / first.std(axis=0))


def radius(width: int) -> float:
    """About how far a record is from the centre of its cluster, in these streams, in standard units."""
    return 0.25 * float(np.sqrt(width))


def _kmeans(width: int, most: int) -> Any:
    from river import cluster

    return cluster.KMeans(n_clusters=most, halflife=0.1, seed=1)


def _stream_kmeans(width: int, most: int) -> Any:
    from river import cluster

    return cluster.STREAMKMeans(chunk_size=100, n_clusters=most, halflife=0.5, sigma=1.5, seed=1)


def _clustream(width: int, most: int) -> Any:
    from river import cluster

    return cluster.CluStream(n_macro_clusters=most, max_micro_clusters=50, time_window=1000, time_gap=100, seed=1)


def _dbstream(width: int, most: int) -> Any:
    from river import cluster

    return cluster.DBSTREAM(
        clustering_threshold=2 * radius(width), fading_factor=0.005, cleanup_interval=100, intersection_factor=0.3
    )


def _denstream(width: int, most: int) -> Any:
    from river import cluster

    return cluster.DenStream(
        decaying_factor=0.01, beta=0.5, mu=2.5, epsilon=radius(width), n_samples_init=STANDARD_ROWS, stream_speed=10
    )


CONTENDERS: dict[str, Callable[[Floats, int], Found]] = {
    OURS: midstream,
    "River KMeans": river(_kmeans),
    "River STREAMKMeans": river(_stream_kmeans),
    "River CluStream": river(_clustream),
    "River DBSTREAM": river(_dbstream),
    "River DenStream": river(_denstream),
    SPARK: spark,
    PIPELINE: pipeline,
}
