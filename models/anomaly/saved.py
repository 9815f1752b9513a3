"""The detector as a version: a SavedModel whose `serving_default` signature takes states and rows, and gives states and scores.

What a version learns of each series is not in its variables but in the states that go in and out, a row a series: one version
serves any number of keys, and a job that goes on years later goes on with the graph it began with.
"""

from __future__ import annotations

import tempfile
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.anomaly.detector import FEW_ROWS, KEYS, MANY_KEYS, ROWS, Detector, DetectorConfig

Leaves = list[npt.NDArray[Any]]
EMPTY_SIGNATURE = "empty"
# Signatures by the shape of their blocks: keys, and rows at most. The second is compiled only where it is needed.
SIGNATURES = {"serving_default": (KEYS, ROWS), "many_keys": (MANY_KEYS, FEW_ROWS)}
_STATE = "state_{:02d}"  # the leaves of a state by their place


class Shape(NamedTuple):
    """Of a block."""

    keys: int
    rows: int  # at most


class Step:
    """A version, loaded.

    Attributes:
        empty: the state of one series that has seen nothing.
        shapes: the blocks that it takes; that of long series comes first. Versions of old have only that.
    """

    def __init__(self, folder: str) -> None:
        self._loaded = tf.saved_model.load(folder)  # held here, as signatures hold it weakly
        signatures = self._loaded.signatures
        self._serve = {Shape(*shape): signatures[name] for name, shape in SIGNATURES.items() if name in signatures}
        first = signatures[EMPTY_SIGNATURE](rows=tf.constant([0]))
        self._names = [_STATE.format(place) for place in range(len(first))]
        self.empty: Leaves = [first[name].numpy() for name in self._names]
        self.shapes = list(self._serve)

    def __call__(
        self, leaves: Leaves, x: npt.NDArray[Any], phase: npt.NDArray[Any], kind: npt.NDArray[Any], rows: int
    ) -> tuple[Leaves, npt.NDArray[np.float32]]:
        """Scores and learns a block.

        Args:
            leaves: states, (keys, ...).
            x: (rows, keys, columns) of one of the shapes.
            phase, kind: (rows, keys).
            rows: that there are.

        Returns:
            The states after them, and (rows, keys, 3), see `Detector.step`.
        """
        given = dict(zip(self._names, map(tf.constant, leaves), strict=True))
        when = {"phase": tf.constant(phase.T), "kind": tf.constant(kind.T), "rows": tf.fill([x.shape[1]], rows)}
        found = self._serve[Shape(x.shape[1], x.shape[0])](**given, x=tf.constant(x.transpose(1, 0, 2)), **when)
        return [found[name].numpy() for name in self._names], found["scores"].numpy().transpose(1, 0, 2)


def save_detector(config: DetectorConfig, folder: str) -> None:
    """Saves a detector.

    Its signatures take blocks of series: `state_00` and so on, (keys, ...); `x` (keys, rows, columns) float64; `phase` and
    `kind` (keys, rows) int32; `rows` (keys,) int32, how many of the rows there are. They give the states after them and
    `scores` (keys, rows, 3) float32, see `Detector.step`.
    """
    detector = Detector(config)

    @tf.function
    def empty(rows: tf.Tensor) -> dict[str, tf.Tensor]:
        keys = tf.shape(rows)[0]
        one = tf.nest.flatten(detector.empty(1))
        return {_STATE.format(place): tf.repeat(leaf, keys, axis=0) for place, leaf in enumerate(one)}

    signatures = {name: _serve(detector, Shape(*shape)) for name, shape in SIGNATURES.items()}
    signatures[EMPTY_SIGNATURE] = empty.get_concrete_function(tf.TensorSpec([None], tf.int32, "rows"))
    tf.saved_model.save(detector, folder, signatures=signatures)


def _serve(detector: Detector, shape: Shape) -> Any:
    """The signature for blocks of one shape."""
    state = detector.empty()
    leaves = tf.nest.flatten(state)
    step = tf.function(detector.step, jit_compile=True)
    specs = {
        _STATE.format(place): tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype, _STATE.format(place))
        for place, leaf in enumerate(leaves)
    }
    specs |= {
        "x": tf.TensorSpec([None, shape.rows, detector.config.columns], tf.float64, "x"),
        "phase": tf.TensorSpec([None, shape.rows], tf.int32, "phase"),
        "kind": tf.TensorSpec([None, shape.rows], tf.int32, "kind"),
        "rows": tf.TensorSpec([None], tf.int32, "rows"),
    }

    @tf.function
    def serve(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        keys = tf.shape(given["rows"])[0]
        given = {name: tf.ensure_shape(value, (shape.keys, *value.shape[1:])) for name, value in given.items()}
        before = [given[_STATE.format(place)] for place in range(len(leaves))]
        turned = [tf.transpose(given[name], [1, 0, 2] if name == "x" else [1, 0]) for name in ("x", "phase", "kind")]
        after, scores = step(tf.nest.pack_sequence_as(state, before), *turned, tf.reduce_max(given["rows"]))
        states = {_STATE.format(place): leaf for place, leaf in enumerate(tf.nest.flatten(after))}
        # A signature's first dimension is open, as in every model of a registry, although here it is always the same.
        return {name: leaf[:keys] for name, leaf in (states | {"scores": tf.transpose(scores, [1, 0, 2])}).items()}

    return serve.get_concrete_function(**specs)


def exported(columns: int, seed: int) -> str:
    """The folder of a detector that this process saved, now or before."""
    return f"{_exported(columns, seed).name}/detector"


@lru_cache
def _exported(columns: int, seed: int) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="midstream-detector-")  # goes with the process
    save_detector(DetectorConfig(columns, seed), f"{folder.name}/detector")
    return folder
