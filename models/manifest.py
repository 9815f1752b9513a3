"""What a version is and where it came from: the file `manifest.json` in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from models.digest import Digests
from models.signature import Signature

FORMAT = 1


class RegistryError(ValueError):
    """The registry cannot do what was asked; says why and what to do."""


@dataclass(frozen=True)
class Training:
    """What a version has learned from since its parent.

    Attributes:
        from_us: event time of the first row, in microseconds since the epoch.
        to_us: event time of the last row.
        rows: how many rows.
    """

    from_us: int
    to_us: int
    rows: int


@dataclass(frozen=True)
class Manifest:
    """What a version is and where it came from.

    Attributes:
        model: the model's name.
        version: counted from 1.
        digests: over graph, variables and both.
        signature: of serving.
        parent: the version it was made from, if any.
        training: what it learned from, if anything.
        metrics: figures by name, as the publisher measured them.
        publication: names the act of publishing, so that repeating it after a crash makes no second version.
        created: wall clock, ISO 8601 in UTC.
        files: sha256 of every file but variables, by name: what a worker reads first, and checks before it reads more.
        signed: an Ed25519 signature in hex, if whoever published it has a key (`models.signing`).
        format: of the manifest's file.
    """

    model: str
    version: int
    digests: Digests
    signature: Signature
    parent: int | None = None
    training: Training | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    publication: str | None = None
    created: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    signed: str | None = None
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """As what `json.dumps` takes."""
        training = self.training and asdict(self.training)
        parts = {"digests": self.digests._asdict(), "signature": self.signature.to_json(), "training": training}
        return vars(self) | parts | {"metrics": dict(self.metrics), "files": dict(self.files)}

    def to_json(self) -> str:
        """As a JSON object."""
        value = self.to_dict()
        # A line a field: `indent` would take json's slow path, and hundreds of lines for a wide signature.
        lines = (f' "{name}": {json.dumps(field, allow_nan=False)}' for name, field in value.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of `to_json`.

        Raises:
            RegistryError: it is no manifest, or one of a later format.
        """
        try:
            value = json.loads(text)
            if value["format"] != FORMAT:
                raise RegistryError(f"a manifest of format {value['format']}; this release reads {FORMAT}. Update Midstream.")
            value["digests"] = Digests(**value["digests"])
            value["signature"] = Signature.from_json(value["signature"])
            value["training"] = value["training"] and Training(**value["training"])
            return cls(**value)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise RegistryError(f"not a manifest: {error!r} in {text[:80]!r}") from error
