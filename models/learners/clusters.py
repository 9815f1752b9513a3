"""Clusters that come and go: an incremental mixture of normal distributions whose number follows the stream.

Each block of rows is shared out among the clusters where they are expected to be (a step of EM), and moves their decayed
moments on. Rows that no cluster explains are kept until they make new ones; clusters die, merge and split by tests on what has
come since. A cluster keeps its id for life. Nothing here draws a random number: the same rows give the same clusters.

What predicts is a version from before: a row's cluster is the likeliest one on the way that it should go meanwhile, or -1
(`NONE`) beyond the gate of all. Its distance is in standard deviations of that cluster, a root mean square over the columns.

References:
    Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", 1977.
    Song and Wang, "Highly efficient incremental estimation of Gaussian mixture models for online data stream clustering", SPIE
    5803, 2005: components of new data are matched with, merged into or added to those before. Deviations: clusters have
    velocities (the alpha-beta filter of radar tracking), and forget by half-life. Covariances: `cluster_shapes`.
    Births: `cluster_births`; deaths, merges and splits: `cluster_changes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import tensorflow as tf

from models.learners.cluster_births import births, may_be_born
from models.learners.cluster_blocks import Blocks, Swept, drawn_in
from models.learners.cluster_changes import deaths, dying, merges, split_ready, splits
from models.learners.cluster_shapes import is_full, whitening, widened
from models.learners.cluster_state import FREE, KINDS, Told, correlated, gate, nothing_told, scores
from models.learners.cluster_tables import FIGURES, OF_SLOTS, ClusterState, Tables, pack, unpack
from models.naming import input_names

NONE = FREE
FAR_ROWS = 384  # unexplained rows that are kept
SWEPT_BLOCKS = 4  # that are one call of the compiled program
FEW_SLOTS = 16  # that are looked at while clusters are in no others; more are another program, which takes 2 s to compile

Sweep: TypeAlias = Callable[[Tables, tf.Tensor, tf.Tensor, tf.Tensor], tuple[Tables, Swept, tf.Tensor]]  # see `Clusters._sweep`


@dataclass(frozen=True)
class ClustersConfig:
    """Options of `Clusters`.

    Attributes:
        features: names of the numeric columns; their scales do not matter.
        half_life_rows: after this many rows of the stream a row counts half.
        max_clusters: at the same time.
        block_rows: rows that are learnt at once; a longer window is learnt in pieces of about this size.
        gate_deviations: how unlikely a row must be, in deviations of a normal distribution, to belong to no cluster.
        compiled: whether a block's operations become one by XLA: a third of the time a row, some seconds more at the start.
        seed: without effect, as nothing is drawn; every learner has it.
    """

    features: tuple[str, ...]
    half_life_rows: int = 2000
    max_clusters: int = 32
    block_rows: int = 256
    gate_deviations: float = 4.0
    compiled: bool = True
    seed: int = 7

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("Clusters want at least one feature column")
        input_names(self.features)  # refuses names that TensorFlow cannot tell apart
        for name in ("half_life_rows", "max_clusters", "block_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if not self.gate_deviations > 0:
            raise ValueError(f"gate_deviations: expected more than 0, got {self.gate_deviations}")


class Clusters(tf.Module):
    """See the module's docstring. `signatures()` gives what `tf.saved_model.save` wants."""

    def __init__(self, config: ClustersConfig) -> None:
        super().__init__(name="clusters")
        self._config = config
        self._limit = gate(len(config.features), config.gate_deviations)
        self._blocks = Blocks(config.block_rows, SWEPT_BLOCKS, config.half_life_rows, self._limit)
        self.state = ClusterState(config.max_clusters, len(config.features), FAR_ROWS)

    def signatures(self) -> dict[str, object]:
        """`serving_default` predicts, `learn` learns; both take the columns by name, each of shape (rows,)."""
        names = input_names(self._config.features)
        columns = {name: tf.TensorSpec([None], tf.float64, name=name) for name in names}

        @tf.function(autograph=False)
        def predict(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.predict(tf.stack([given[name] for name in names], axis=1))

        sweeps = self._sweeps()

        @tf.function(autograph=False)
        def learn(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.learn(tf.stack([given[name] for name in names], axis=1), sweeps)

        return {
            "serving_default": predict.get_concrete_function(**columns),
            "learn": learn.get_concrete_function(**columns),
        }

    def predict(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """Finds the cluster of each row.

        Args:
            x: (rows, features) float64.

        Returns:
            `cluster` (rows,) int64, an id or -1; `distance` (rows,) float32, from the centre of that cluster, or of the nearest
            one if it is none's, in standard deviations (root mean square over the columns); -1 while there is no cluster.
        """
        tables = self.state.read()
        used = tf.maximum(_used(tables), 1)
        state = unpack(tables, used)
        way = state.ahead * state.velocity
        spread = widened(state.spread, state.width, way * way / 3.0)  # evenly anywhere on the way, to twice as far
        squared, half_log = state._replace(mean=state.mean + way, spread=spread).distances(drawn_in(x, state))
        squared = tf.where(state.alive, squared, tf.constant(float("inf"), tf.float64))
        score, reach = scores(state.weight, state.alive, squared, half_log, self._limit)
        near = tf.reduce_any(reach, axis=1)
        slot = tf.where(near, tf.argmax(score, axis=1), tf.argmin(squared, axis=1))
        distance = tf.sqrt(tf.gather(squared, slot, axis=1, batch_dims=1) / len(self._config.features))
        some = tf.reduce_any(state.alive)
        return {
            "cluster": tf.where(near, tf.gather(state.id, slot), tf.constant(NONE, tf.int64)),
            "distance": tf.cast(tf.where(some, distance, -tf.ones_like(distance)), tf.float32),
        }

    def learn(self, x: tf.Tensor, sweeps: Sequence[Sweep] | None = None) -> dict[str, tf.Tensor]:
        """Learns from rows, in order.

        Args:
            x: (rows, features) float64, at least one row.
            sweeps: what `_sweeps` gives, if it was traced before.

        Returns:
            `clusters` () int64, how many there are now; `unexplained` () float64, the share of the rows that were none's; and
            the events, all (events,): `event_kind` (born, died, split, merged), `event_cluster`, and `event_other`: of a split
            the new id, of a merge the one that is no more, else the same id.
        """
        rows = tf.shape(x)[0]
        blocks = self._blocks.number(rows)
        before = self.state.read()
        before = tf.cond(before.shared[FIGURES.index("column_weight")] > 0.0, lambda: before, lambda: self._begin(x, before))
        padded = tf.pad(x, [[0, self._swept_rows], [0, 0]])
        sweeps = sweeps or self._sweeps()
        # Not inlined: TensorFlow would look at each of its thousand operations to leave them out.
        change = tf.function(self._change, autograph=False, experimental_attributes={"_noinline": True})

        def some_blocks(tables: Tables, block: tf.Tensor, far: tf.Tensor, told: Told) -> tuple[Any, ...]:
            start = self._blocks.starts(rows, block)[0]
            piece = tf.ensure_shape(padded[start : start + self._swept_rows], [self._swept_rows, x.shape[1]])
            tables, swept = tf.switch_case(
                tf.searchsorted(self._slots, _used(tables)[None])[0],
                [lambda sweep=sweep: _whitened(*sweep(tables, piece, rows, block)) for sweep in sweeps],
            )
            tables, told = tf.cond(swept.changes, lambda: change(tables, told), lambda: (tables, told))
            return tables, block + swept.blocks, far + swept.far, told

        tables, _, far, told = tf.while_loop(
            lambda _, block, *__: block < blocks, some_blocks, (before, 0, tf.constant(0, tf.int64), nothing_told())
        )
        self.state.assign(tables)
        events = told.rows[: told.count]
        return {
            "clusters": tf.reduce_sum(tf.cast(_alive(tables), tf.int64)),
            "unexplained": tf.cast(far, tf.float64) / tf.cast(rows, tf.float64),
            "event_kind": tf.gather(tf.constant(KINDS), events[:, 0]),
            "event_cluster": events[:, 1],
            "event_other": events[:, 2],
        }

    @property
    def _slots(self) -> list[int]:
        """So many slots the blocks look at: as few as will do."""
        return sorted({min(FEW_SLOTS, self._config.max_clusters), self._config.max_clusters})

    @property
    def _swept_rows(self) -> int:
        return SWEPT_BLOCKS * self._config.block_rows

    def _sweeps(self) -> list[Sweep]:
        """One for each of `_slots`."""
        compiled = True if self._config.compiled else None
        return [tf.function(self._sweep(slots), autograph=False, jit_compile=compiled) for slots in self._slots]

    def _sweep(self, slots: int) -> Sweep:
        """Moves the clusters on, which are in the first `slots`."""

        def sweep(tables: Tables, x: tf.Tensor, rows: tf.Tensor, block: tf.Tensor) -> tuple[Tables, Swept, tf.Tensor]:
            ahead = 0.5 * tf.cast(self._blocks.number(rows) + 1, tf.float64)
            moved, swept = self._blocks.sweep(unpack(tables, slots)._replace(ahead=ahead), x, rows, block)
            alike = moved.correlations if is_full(moved.width) else moved.whitening
            return pack(moved, tables), swept, alike

        return sweep

    def _change(self, tables: Tables, told: Told) -> tuple[Tables, Told]:
        """Deaths, births, merges and splits."""
        state = unpack(tables)
        state, told = tf.cond(tf.reduce_any(dying(state)), lambda: deaths(state, told), lambda: (state, told))
        state, told = tf.cond(may_be_born(state), lambda: births(state, told, self._limit), lambda: (state, told))
        state, told = merges(state, told)
        state, told = tf.cond(tf.reduce_any(split_ready(state)), lambda: splits(state, told), lambda: (state, told))
        return pack(correlated(state), tables), told

    def _begin(self, x: tf.Tensor, tables: Tables) -> Tables:
        """Fixes the frame by the first rows: their medians, and how far nine in ten are from them."""
        known = tf.where(tf.math.is_finite(x), x, tf.zeros_like(x))
        ordered = tf.sort(known, axis=0)
        last = tf.shape(x)[0] - 1
        middle = ordered[last // 2]
        away = tf.sort(tf.abs(known - middle), axis=0)[last * 9 // 10]
        scale = tf.where(away > 0.0, away, tf.maximum(tf.abs(middle), 1.0))
        return pack(unpack(tables)._replace(shift=middle, scale=scale), tables)


def _alive(tables: Tables) -> tf.Tensor:
    return tables.clusters[:, OF_SLOTS.index("id")] >= 0.0


def _whitened(tables: Tables, swept: Swept, alike: tf.Tensor) -> tuple[Tables, Swept]:
    """With what whitens the correlations `alike` (the first slots, width, width)."""
    if not is_full(tables.far.shape[1]):
        return tables, swept
    return tables._replace(whitening=tf.concat([whitening(alike), tables.whitening[alike.shape[0] :]], axis=0)), swept


def _used(tables: Tables) -> tf.Tensor:
    """() int32, so many slots clusters are in: the first ones, some of which may be free."""
    return tf.reduce_max(tf.where(_alive(tables), tf.range(tables.clusters.shape[0]) + 1, 0))


LEARNER = (Clusters, ClustersConfig)
