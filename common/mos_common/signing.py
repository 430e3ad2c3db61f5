"""The operator's signature of a published model.

Ed25519 over `manifest.json`, which holds the digests of all other files.
"""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from mos_common.digests import digest_of_file
from mos_common.errors import TrustError
from mos_common.files import write_atomically

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
PREFIX = b"mos-model-v1\0"


def sign_manifest(folder: Path, key: ed25519.Ed25519PrivateKey) -> None:
    """Write `manifest.sig` beside the manifest.

    Raises:
        StateError: it cannot be written.

    """
    write_atomically(folder / SIGNATURE, key.sign(PREFIX + (folder / MANIFEST).read_bytes()))


def verify_model(folder: Path, public_key: str) -> None:
    """Verify the signature and every file of a model with the operator's public key (PEM).

    Raises:
        TrustError: a file was changed or is missing, or somebody else signed the manifest.

    """
    try:
        manifest, signature = (folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes()
        _public_key(public_key).verify(signature, PREFIX + manifest)
    except OSError as error:
        raise TrustError(f"{folder} is not a signed model: {Path(str(error.filename)).name} cannot be read") from error
    except InvalidSignature as error:
        raise TrustError(
            f"the manifest of {folder} was not signed by this federation's operator: do not use it, and tell "
            f"the operator"
        ) from error
    check_files(folder, manifest)


def check_files(folder: Path, manifest: bytes) -> None:
    """Check the size and digest of every file that a manifest names.

    Raises:
        TrustError: a file is missing or differs, or the manifest cannot be read.

    """
    try:
        files = json.loads(manifest)["files"]
        expected = {str(name): (int(file["size"]), str(file["sha256"])) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrustError(f"the manifest of {folder} does not list its files") from error
    for name, (size, digest) in expected.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise TrustError(f"{name} of {folder} is missing: download the model again")
        if path.stat().st_size != size or digest_of_file(path) != digest:
            raise TrustError(f"{name} of {folder} was changed after it was signed: download the model again")


def _public_key(pem: str) -> ed25519.Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except ValueError as error:
        raise TrustError("the kit's signing key is not a public key: ask the operator for a new kit") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise TrustError("the kit's signing key is not an Ed25519 key: ask the operator for a new kit")
    return key
