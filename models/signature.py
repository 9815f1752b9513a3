"""What a model takes and gives: named columns, their dtypes and the shape of one row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.digest import read_saved_model

SERVING_SIGNATURE = "serving_default"
# What a column can hold; anything else is to be cast inside the model.
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = frozenset(["bool", *_INTEGERS, "float16", "float32", "float64", "string"])


class SignatureError(ValueError):
    """A SavedModel that rows cannot be fed to; says what is wrong with it."""


@dataclass(frozen=True)
class Field:
    """One named input or output.

    Attributes:
        dtype: TensorFlow's name of the dtype, one of `DTYPES`.
        shape: of one row, without the batch dimension; `()` for a number a row, None where a length is left open.
    """

    dtype: str
    shape: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs by name, in alphabetical order."""

    inputs: Mapping[str, Field]
    outputs: Mapping[str, Field]

    def to_json(self) -> dict[str, Any]:
        """As what `json.dumps` takes."""
        return {
            side: {name: {"dtype": field.dtype, "shape": list(field.shape)} for name, field in sorted(fields.items())}
            for side, fields in (("inputs", self.inputs), ("outputs", self.outputs))
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Signature:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError: it is not what `to_json` gives.
        """
        sides = (
            {name: Field(f["dtype"], tuple(f["shape"])) for name, f in value[side].items()} for side in ("inputs", "outputs")
        )
        return cls(*sides)

    @classmethod
    def from_saved_model(cls, path: str, name: str = SERVING_SIGNATURE) -> Signature:
        """Reads a signature from `saved_model.pb` in a local folder; the model is not loaded.

        Args:
            path: the SavedModel's folder.
            name: which of its signatures.

        Raises:
            DigestError: there is no readable `saved_model.pb`.
            SignatureError: there is no such signature, or rows cannot be fed to it.
        """
        graphs = [graph for graph in read_saved_model(path).meta_graphs if "serve" in graph.meta_info_def.tags]
        # The name of the no-op that initialises the module is stored among the signatures.
        found = {
            key: definition for graph in graphs for key, definition in graph.signature_def.items() if not key.startswith("__")
        }
        if name not in found:
            there = f"it has {', '.join(sorted(found))}" if found else "it has none"
            raise SignatureError(
                f"{path} has no signature {name!r}; {there}. Save it with tf.saved_model.save(..., signatures={{{name!r}: f}})."
            )
        definition = found[name]
        if not definition.inputs:
            raise SignatureError(f"signature {name!r} of {path} has no inputs; expected at least one column to predict from")
        return cls(
            {key: _field(f"input {key!r} of {path}", definition.inputs[key]) for key in sorted(definition.inputs)},
            {key: _field(f"output {key!r} of {path}", definition.outputs[key]) for key in sorted(definition.outputs)},
        )


def _field(what: str, info: Any) -> Field:
    from tensorflow.core.framework import types_pb2

    if info.WhichOneof("encoding") != "name":
        raise SignatureError(
            f"{what} is a {info.WhichOneof('encoding')}; expected a dense tensor. Convert it inside the model."
        )
    dtype = types_pb2.DataType.Name(info.dtype).removeprefix("DT_").lower()
    dtype = {"float": "float32", "double": "float64", "half": "float16"}.get(dtype, dtype)
    if dtype not in DTYPES:
        raise SignatureError(
            f"{what} has dtype {dtype}; expected one of {', '.join(sorted(DTYPES))}. Cast it inside the model."
        )
    shape = [None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim]
    if info.tensor_shape.unknown_rank or not shape or shape[0] is not None:
        came = "of unknown rank" if info.tensor_shape.unknown_rank else f"of shape {tuple(shape)}"
        raise SignatureError(
            f"{what} is {came}; expected a batch dimension of open length first, as in tf.TensorSpec([None, ...], tf.{dtype}): "
            "any number of rows is fed at once and each gives one row."
        )
    return Field(dtype, tuple(shape[1:]))
