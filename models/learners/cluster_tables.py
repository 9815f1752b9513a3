"""How a state of `models.learners.clusters` is kept: four variables, whatever the number of its fields.

A call of TensorFlow pays for each variable that it reads or writes, more than a block of rows costs; and so does a version that
is written. In double precision ids and counts are exact, too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.learners.cluster_shapes import is_full, number_of_terms
from models.learners.cluster_state import FREE, State

OF_SLOTS = State._fields[: State._fields.index("close") + 1]
FIGURES = ("column_weight", "far_count", "far_fresh", "next_id", "ahead")
OF_COLUMNS = ("shift", "scale", "column_mean", "column_variance")
INTEGERS = ("id", "far_count", "far_fresh", "next_id")


class Tables(NamedTuple):
    """All that is known, as it is kept."""

    clusters: tf.Tensor  # (slots, ...), the fields `OF_SLOTS` of `State` side by side
    shared: tf.Tensor  # (...,), the fields `FIGURES` and then `OF_COLUMNS`, one behind the other
    whitening: tf.Tensor  # (slots, width, width); of more columns than have covariances (slots, 1, 1)
    far: tf.Tensor  # (far_rows, width)


def _sizes(slots: int, width: int) -> list[int]:
    """How many columns of `clusters` the fields `OF_SLOTS` take."""
    terms = number_of_terms(width)
    sizes = {"spread": terms, "shape": terms, "sides": 6, "close": slots}
    scalars = OF_SLOTS.index("mean")
    return [1] * scalars + [sizes.get(name, width) for name in OF_SLOTS[scalars:]]


def unpack(tables: Tables, used: int | tf.Tensor | None = None) -> State:
    """The tables by name; only the first `used` slots if that is given."""
    slots, width = tables.clusters.shape[0], tables.far.shape[1]
    used = slots if used is None else used
    parts = dict(zip(OF_SLOTS, tf.split(tables.clusters[:used], _sizes(slots, width), axis=1), strict=True))
    for name in OF_SLOTS[: OF_SLOTS.index("mean")]:
        parts[name] = parts[name][:, 0]
    parts["sides"] = tf.reshape(parts["sides"], [used, 2, 3])
    parts["close"] = parts["close"][:, :used]
    shared = tf.split(tables.shared, [len(FIGURES)] + [width] * len(OF_COLUMNS))
    parts |= dict(zip(FIGURES, tf.unstack(shared[0]), strict=True)) | dict(zip(OF_COLUMNS, shared[1:], strict=True))
    integers = {name: tf.cast(parts[name], tf.int64) for name in INTEGERS}
    return State(**parts | integers, whitening=tables.whitening[:used], far=tables.far)


def pack(state: State, before: Tables) -> Tables:
    """The tables of a state, which may be of the first slots alone; the others stay as they were `before`."""
    slots, used = before.clusters.shape[0], state.slots
    parts = state._asdict() | {name: tf.cast(getattr(state, name), tf.float64) for name in INTEGERS}
    parts["sides"] = tf.reshape(state.sides, [used, 6])
    columns = [parts[name] if parts[name].shape.rank == 2 else parts[name][:, None] for name in OF_SLOTS]
    clusters = tf.concat([*columns, before.clusters[:used, before.clusters.shape[1] - slots + used :]], axis=1)
    shared = tf.concat([tf.stack([parts[name] for name in FIGURES]), *(parts[name] for name in OF_COLUMNS)], axis=0)
    whitening = tf.concat([state.whitening, before.whitening[used:]], axis=0)
    return Tables(tf.concat([clusters, before.clusters[used:]], axis=0), shared, whitening, state.far)


def at_first(slots: int, width: int, far_rows: int) -> Tables:
    """The tables before the first row: no cluster."""
    with tf.init_scope():
        empty = Tables(
            tf.zeros([slots, sum(_sizes(slots, width))], tf.float64),
            tf.zeros([len(FIGURES) + len(OF_COLUMNS) * width], tf.float64),
            tf.eye(width if is_full(width) else 1, batch_shape=[slots], dtype=tf.float64),
            tf.zeros([far_rows, width], tf.float64),
        )
        state = unpack(empty)
        ones = {name: tf.ones_like(getattr(state, name)) for name in ("scale", "column_variance", "ahead")}
        terms = number_of_terms(width)
        round_one = tf.constant([[1.0] * width + [0.0] * (terms - width)] * slots, tf.float64)
        free = tf.fill([slots], tf.constant(FREE, tf.int64))
        return pack(state._replace(id=free, spread=round_one, shape=round_one, **ones), empty)


class ClusterState(tf.Module):
    """The variables."""

    def __init__(self, slots: int, width: int, far_rows: int) -> None:
        super().__init__(name="clusters")
        for name, value in at_first(slots, width, far_rows)._asdict().items():
            setattr(self, name, tf.Variable(value, trainable=False, name=name))

    def read(self) -> Tables:
        """Their values."""
        return Tables(*(getattr(self, name).read_value() for name in Tables._fields))

    def assign(self, tables: Tables) -> None:
        """Writes them."""
        for name, value in tables._asdict().items():
            getattr(self, name).assign(value)


def read_saved(variables: str) -> dict[str, npt.NDArray[np.float64]]:
    """The fields of `State` out of a saved version, by name, ids and counts as int64.

    Args:
        variables: prefix of its checkpoint, as `models.loaded_graph.variables_prefix` gives it.

    Raises:
        ValueError: it is no version of `clusters`.
    """
    reader = tf.train.load_checkpoint(variables)
    keys = {name: f"state/{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in Tables._fields}
    if not all(reader.has_tensor(key) for key in keys.values()):
        raise ValueError(f"{variables} is no version of the clusters learner: it lacks the tables {', '.join(keys)}")
    tables = Tables(*(tf.constant(reader.get_tensor(key)) for key in keys.values()))
    return {name: value.numpy() for name, value in unpack(tables)._asdict().items()}
