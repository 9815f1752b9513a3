"""The detector as a version: a SavedModel whose `serving_default` signature takes states and rows, and gives states and scores.

What a version learns of each series is not in its variables but in the states that go in and out, a row a series: one version
serves any number of keys, and a job that goes on years later goes on with the graph it began with.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.anomaly.detector import KEYS, ROWS, Detector, DetectorConfig

Leaves = list[npt.NDArray[Any]]
Step = Callable[[Leaves, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], int], tuple[Leaves, npt.NDArray[np.float32]]]
EMPTY_SIGNATURE = "empty"
_STATE = "state_{:02d}"  # the leaves of a state by their place


def save_detector(config: DetectorConfig, folder: str) -> None:
    """Saves a detector.

    Its signature takes blocks of `KEYS` series: `state_00` and so on, (KEYS, ...); `x` (KEYS, ROWS, columns) float64; `phase`
    and `kind` (KEYS, ROWS) int32; `rows` (KEYS,) int32, how many of the rows there are. It gives the states after them and
    `scores` (KEYS, ROWS, 3) float32, see `Detector.step`.
    """
    detector = Detector(config)
    shape = detector.empty()
    leaves = tf.nest.flatten(shape)
    step = tf.function(detector.step, jit_compile=True)
    specs = {
        _STATE.format(place): tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype, _STATE.format(place))
        for place, leaf in enumerate(leaves)
    }
    specs |= {
        "x": tf.TensorSpec([None, ROWS, config.columns], tf.float64, "x"),
        "phase": tf.TensorSpec([None, ROWS], tf.int32, "phase"),
        "kind": tf.TensorSpec([None, ROWS], tf.int32, "kind"),
        "rows": tf.TensorSpec([None], tf.int32, "rows"),
    }

    @tf.function
    def serve(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        keys = tf.shape(given["rows"])[0]
        given = {name: tf.ensure_shape(value, (KEYS, *value.shape[1:])) for name, value in given.items()}
        before = [given[_STATE.format(place)] for place in range(len(leaves))]
        turned = [tf.transpose(given[name], [1, 0, 2] if name == "x" else [1, 0]) for name in ("x", "phase", "kind")]
        state = tf.nest.pack_sequence_as(shape, before)
        after, scores = step(state, *turned, tf.reduce_max(given["rows"]))
        states = {_STATE.format(place): leaf for place, leaf in enumerate(tf.nest.flatten(after))}
        # A signature's first dimension is open, as in every model of a registry, although here it is always the same.
        return {name: leaf[:keys] for name, leaf in (states | {"scores": tf.transpose(scores, [1, 0, 2])}).items()}

    @tf.function
    def empty(rows: tf.Tensor) -> dict[str, tf.Tensor]:
        keys = tf.shape(rows)[0]
        one = tf.nest.flatten(detector.empty(1))
        return {_STATE.format(place): tf.repeat(leaf, keys, axis=0) for place, leaf in enumerate(one)}

    signatures = {
        "serving_default": serve.get_concrete_function(**specs),
        EMPTY_SIGNATURE: empty.get_concrete_function(tf.TensorSpec([None], tf.int32, "rows")),
    }
    tf.saved_model.save(detector, folder, signatures=signatures)


def exported(columns: int, seed: int) -> str:
    """The folder of a detector that this process saved, now or before."""
    return f"{_exported(columns, seed).name}/detector"


@lru_cache
def _exported(columns: int, seed: int) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="midstream-detector-")  # goes with the process
    save_detector(DetectorConfig(columns, seed), f"{folder.name}/detector")
    return folder


def load_detector(folder: str) -> tuple[Step, Leaves]:
    """Loads a version: its step over lists of arrays, rows first, and the state of one series that has seen nothing."""
    loaded = tf.saved_model.load(folder)
    serve, start = loaded.signatures["serving_default"], loaded.signatures[EMPTY_SIGNATURE]
    first = start(rows=tf.constant([0]))
    names = [_STATE.format(place) for place in range(len(first))]

    def step(
        leaves: Leaves, x: npt.NDArray[Any], phase: npt.NDArray[Any], kind: npt.NDArray[Any], rows: int
    ) -> tuple[Leaves, npt.NDArray[np.float32]]:
        given = dict(zip(names, map(tf.constant, leaves), strict=True))
        when = {"phase": tf.constant(phase.T), "kind": tf.constant(kind.T), "rows": tf.fill([x.shape[1]], rows)}
        found = serve(**given, x=tf.constant(x.transpose(1, 0, 2)), **when)
        return [found[name].numpy() for name in names], found["scores"].numpy().transpose(1, 0, 2)

    step.keep = loaded  # type: ignore[attr-defined]  # the functions hold it weakly
    return step, [first[name].numpy() for name in names]
