"""A version that learns: any SavedModel with a `learn` signature, brought forward row by row and saved as the next version.

The SavedModel is the whole learner: its variables are the state, its `learn` signature is the algorithm. Nothing here knows
which one it is, so a learner from elsewhere works as those in `models.learners` do.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import tensorflow as tf

from models.loaded_graph import ModelError, checkpointed_variables, variables_prefix
from models.serving import SERVING_SIGNATURE, to_arrow, to_numpy

LEARN_SIGNATURE = "learn"
EVENT_PREFIX = "event_"  # of the outputs of `learn` that are the columns of a table of events


class Step(NamedTuple):
    """What a call of `learn` gave.

    Attributes:
        figures: the scalar outputs of the signature, as `loss`.
        events: its outputs named `event_...`, vectors of one length, as the columns of a table without that prefix, a row for
            each event; None if there are none.
        values: all that is saved of the learner as it is behind the step; see `LearningModel.snapshot`.
    """

    figures: dict[str, float]
    events: pa.Table | None
    values: dict[str, tf.Tensor]


class LearningModel:
    """A SavedModel loaded in order to learn. One thread at a time.

    Attributes:
        path: the folder it was loaded from.
        root: what TensorFlow loaded.
    """

    def __init__(self, path: str) -> None:
        """Loads the SavedModel in this folder.

        Raises:
            ModelError: it does not load, has no `learn` signature, or keeps state that is not in variables.
        """
        self.path = path
        try:
            self.root = tf.saved_model.load(path)
        except Exception as error:  # TensorFlow raises nearly anything here; the caller wants one kind
            raise ModelError(f"{path} does not load as a SavedModel: {error}") from error
        if LEARN_SIGNATURE not in self.root.signatures:
            raise ModelError(
                f"{path} cannot learn: it has the signatures {', '.join(sorted(self.root.signatures))}, and "
                f"{LEARN_SIGNATURE!r} is wanted. Save the module with a `learn` signature, or serve it without a learner."
            )
        self._inputs = self.root.signatures[LEARN_SIGNATURE].structured_input_signature[1]
        variables, others = checkpointed_variables(self.root, path)
        if others:
            raise ModelError(
                f"{path} cannot learn on: its checkpoint holds {', '.join(sorted(others)[:4])}, which are no variables. Keep "
                "all that learning changes in `tf.Variable`s; a mutable lookup table cannot be carried from version to version."
            )
        reader = tf.train.load_checkpoint(variables_prefix(path))
        # All that the checkpoint holds is saved again: what is no variable of the module, as the object graph, stays as it is.
        self._entries: dict[str, Any] = {
            key: variables[key] if key in variables else tf.constant(reader.get_tensor(key))
            for key in sorted(reader.get_variable_to_shape_map())
        }
        self._keys, self._slices = tf.constant(list(self._entries)), tf.constant([""] * len(self._entries))
        self._step = tf.function(self._learn_and_read, autograph=False).get_concrete_function(**self._inputs)
        self._warming: threading.Thread | None = None

    def warm_up(self) -> None:
        """Learns a row beside other work, and forgets it: TensorFlow optimises and compiles at the first call.

        Whoever learns, asks or saves waits until it is done.
        """

        def learn() -> None:
            before = {key: variable.read_value() for key, variable in self.variables.items()}
            # What a learner thinks of this row does not matter, nor whether it takes it.
            with contextlib.suppress(ValueError, tf.errors.OpError):
                self._step(**{name: tf.zeros([1, *spec.shape[1:]], spec.dtype) for name, spec in self._inputs.items()})
            for key, variable in self.variables.items():
                variable.assign(before[key])

        self._warming = threading.Thread(target=learn, name="warm up", daemon=True)
        self._warming.start()

    def _warm(self) -> None:
        if self._warming is not None:
            self._warming.join()
            self._warming = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that `learn` wants, the label among them."""
        return tuple(self._inputs)

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The whole state, by checkpoint key."""
        return {key: entry for key, entry in self._entries.items() if isinstance(entry, tf.Variable)}

    def snapshot(self) -> dict[str, tf.Tensor]:
        """All that is saved, as it is now, by checkpoint key; what is learnt later does not change it."""
        self._warm()
        return {
            # A third of the time of `tf.convert_to_tensor`.
            key: tf.raw_ops.ReadVariableOp(resource=entry.handle, dtype=entry.dtype)
            if isinstance(entry, tf.Variable)
            else entry
            for key, entry in self._entries.items()
        }

    @cached_property
    def served(self) -> frozenset[str]:
        """The checkpoint keys of the variables that predicting reads; a memory of rows, say, is none of them."""
        read = {id(capture) for capture in self.root.signatures[SERVING_SIGNATURE].captured_inputs}
        return frozenset(key for key, variable in self.variables.items() if id(variable.handle) in read)

    def signature(self, name: str) -> Any:
        """Another signature of the SavedModel, as it stands after what was learnt."""
        return self.root.signatures[name]

    def predict(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """What the learner as it stands predicts of rows, by output.

        Raises:
            ModelError: a column is missing or of another type, or the graph refused the rows.
        """
        self._warm()
        serving = self.root.signatures[SERVING_SIGNATURE]
        try:
            tensors = {
                name: tf.constant(to_numpy(batch, name, spec.dtype.name, tuple(spec.shape[1:])))
                for name, spec in serving.structured_input_signature[1].items()
            }
            return {name: to_arrow(value.numpy()) for name, value in serving(**tensors).items()}
        except (ValueError, tf.errors.OpError) as error:
            raise ModelError(f"the learner refused {batch.num_rows} rows: {error}") from error

    def learn(self, batch: pa.RecordBatch) -> dict[str, float]:
        """Learns from the rows of a batch, in their order.

        Returns:
            The scalar outputs of the `learn` signature, as `loss`.

        Raises:
            ModelError: see `tensors` and `step`.
        """
        return self.step(self.tensors(batch)).figures

    def tensors(self, batch: pa.RecordBatch) -> dict[str, tf.Tensor]:
        """The rows of a batch as `step` wants them. Another thread may ask for the next ones while one learns.

        Raises:
            ModelError: there are no rows, or a column is missing or of another type.
        """
        if not batch.num_rows:
            raise ModelError("there is nothing to learn from: expected at least one row, came a batch without any")
        try:
            return {
                name: tf.constant(to_numpy(batch, name, spec.dtype.name, tuple(spec.shape[1:])))
                for name, spec in self._inputs.items()
            }
        except (ValueError, tf.errors.OpError) as error:
            raise ModelError(f"the learner refused {batch.num_rows} rows: {error}") from error

    def step(self, tensors: Mapping[str, tf.Tensor]) -> Step:
        """Learns from rows, in their order.

        Raises:
            ModelError: the graph refused the rows.
        """
        self._warm()
        try:
            given, values = self._step(**tensors)
        except (ValueError, tf.errors.OpError) as error:
            rows = next(iter(tensors.values())).shape[0]
            raise ModelError(f"the learner refused {rows} rows: {error}") from error
        figures = {name: float(value.numpy()) for name, value in given.items() if value.shape.rank == 0}
        vectors = {
            name.removeprefix(EVENT_PREFIX): value.numpy()
            for name, value in sorted(given.items())
            if name.startswith(EVENT_PREFIX) and value.shape.rank == 1
        }
        happened = any(len(values) for values in vectors.values())
        events = pa.table({name: to_arrow(values) for name, values in vectors.items()}) if happened else None
        return Step(figures, events, {key: values.get(key, entry) for key, entry in self._entries.items()})

    def _learn_and_read(self, **tensors: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """One call of TensorFlow instead of one for each variable."""
        given = self.root.signatures[LEARN_SIGNATURE](**tensors)
        return given, {key: variable.read_value() for key, variable in self.variables.items()}

    def write_variables(self, folder: str, values: Mapping[str, tf.Tensor] | None = None) -> None:
        """Writes the variables as TensorFlow does, so that with the graph's `saved_model.pb` they are a SavedModel.

        Args:
            folder: the version's `variables` folder, on any file system that TensorFlow can write to; made if it is missing.
            values: a snapshot; None writes the variables as they are now.
        """
        tf.io.gfile.makedirs(folder)
        tf.raw_ops.SaveV2(
            prefix=f"{folder}/variables",
            tensor_names=self._keys,
            shape_and_slices=self._slices,
            tensors=list((self.snapshot() if values is None else values).values()),
        )


def one_thread_an_operation() -> None:
    """A learner's operations are small: spread over threads they take as long, and keep cores busy that others could use.

    By the environment, where TensorFlow looks when it begins: its own setting would become part of every graph that is saved.
    """
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")


def save_learner(module: Any, path: str) -> None:
    """Saves a learner of `models.learners` as a SavedModel that predicts and learns.

    Args:
        module: a `tf.Module` with a method `signatures()`.
        path: the folder to write.
    """
    tf.saved_model.save(module, path, signatures=module.signatures())
