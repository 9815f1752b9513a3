"""Who made a version: an Ed25519 signature over its manifest, digests included.

    MIDSTREAM_SIGNING_KEY     a file with the private key, PEM: what is published gets signed
    MIDSTREAM_TRUSTED_KEYS    a file or a folder with public keys, PEM: a version without a signature by one of them is not
    loaded

Both belong to the machine and not to the registry: whoever can write there must not be able to say whom to trust. The version's
number is not signed, as it is not known before; everything else is, and the digests stand for graph and variables.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

SIGNING_KEY, TRUSTED_KEYS = "MIDSTREAM_SIGNING_KEY", "MIDSTREAM_TRUSTED_KEYS"
_UNSIGNED = ("version", "created", "signed", "format")


class SignatureRefused(ValueError):
    """A version whose signature is missing or wrong, where one is required; or a key that cannot be read."""


def payload(manifest: Mapping[str, Any]) -> bytes:
    """What is signed of a manifest's fields, as bytes that do not depend on their order."""
    signed = {name: value for name, value in manifest.items() if name not in _UNSIGNED}
    return json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()


def sign_if_asked(manifest: Mapping[str, Any]) -> str | None:
    """The signature in hex; None where this machine has no key to sign with.

    Raises:
        SignatureRefused: the key cannot be read.
    """
    file = os.environ.get(SIGNING_KEY)
    return None if not file else _private_key(file).sign(payload(manifest)).hex()


def check_if_required(what: str, manifest: Mapping[str, Any], signed: str | None) -> None:
    """Lets a version pass if this machine trusts whoever signed it, or requires no signatures.

    Args:
        what: the version, for people.
        manifest: the fields of its manifest.
        signed: the signature in hex.

    Raises:
        SignatureRefused: it may not pass; says what to do.
    """
    place = os.environ.get(TRUSTED_KEYS)
    if not place:
        return
    if not signed:
        raise SignatureRefused(
            f"{what} is not signed, and {TRUSTED_KEYS} requires it. Publish it again where {SIGNING_KEY} names a private key."
        )
    from cryptography.exceptions import InvalidSignature

    for key in _public_keys(place):
        try:
            key.verify(bytes.fromhex(signed), payload(manifest))
            return
        except (InvalidSignature, ValueError):
            continue
    raise SignatureRefused(
        f"the signature of {what} is by none of the keys in {place}, or the manifest was changed after signing. Publish "
        "the version "
        "again with a trusted key, or find out who changed it."
    )


@lru_cache(maxsize=8)
def _private_key(file: str) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(Path(file).read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SignatureRefused(f"{SIGNING_KEY}={file} holds no private key that can be read: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureRefused(f"{SIGNING_KEY}={file} is no Ed25519 key; make one with: openssl genpkey -algorithm ed25519")
    return key


def _public_keys(place: str) -> list[Any]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    files = sorted(Path(place).glob("*.pem")) if Path(place).is_dir() else [Path(place)]
    try:
        keys = [load_pem_public_key(file.read_bytes()) for file in files]
    except (OSError, ValueError, TypeError) as error:
        raise SignatureRefused(f"{TRUSTED_KEYS}={place} holds a key that cannot be read: {error}") from error
    return [key for key in keys if isinstance(key, Ed25519PublicKey)]
