"""A version takes and gives what the model's contract says: the signature that jobs were built on."""

from __future__ import annotations

from collections.abc import Mapping

from models.gate.result import CheckResult, passed, refused
from models.signature import Field, Signature

NAME = "contract"


def check_contract(signature: Signature, contract: Signature | None) -> CheckResult:
    """Compares names, dtypes and shapes.

    A version may leave out inputs and add outputs; it may not want a column that jobs do not feed, nor lack or change an
    output.

    Args:
        signature: of the candidate.
        contract: of the version that is live; None for a model's first version.
    """
    if contract is None:
        return passed(NAME, "the model's first version: its signature is the contract from now on")
    faults = [
        f"input {name!r} is new (the contract has {', '.join(contract.inputs)})"
        for name in signature.inputs.keys() - contract.inputs.keys()
    ]
    faults += [f"output {name!r} is missing" for name in contract.outputs.keys() - signature.outputs.keys()]
    faults += _changed("input", signature.inputs, contract.inputs)
    faults += _changed("output", signature.outputs, contract.outputs)
    if not faults:
        return passed(NAME, "takes and gives what the live version does")
    return refused(
        NAME, f"{'; '.join(sorted(faults))}. Save it with the live version's signature, or publish it as another model."
    )


def _changed(side: str, came: Mapping[str, Field], expected: Mapping[str, Field]) -> list[str]:
    return [
        f"{side} {name!r} is {_text(came[name])}, the contract says {_text(expected[name])}"
        for name in came.keys() & expected.keys()
        if came[name] != expected[name]
    ]


def _text(field: Field) -> str:
    return f"{field.dtype}{list(field.shape) if field.shape else ''}"
