"""The operator's signature of a published model.

A key on P-256 signs the digest of every file, in the form of OpenSSF's `model_signing`
(`model.sig`). Ed25519, the kind of key of federations made by release 0.1.0, signs `manifest.json`,
which holds the digests of all other files (`manifest.sig`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from mos_common.digests import digest_of_bytes, digest_of_file
from mos_common.errors import TrustError
from mos_common.files import write_atomically
from mos_common.model_files import MANIFEST, check_file, listed_files, manifest_name, read_manifest, read_own_file
from mos_common.rotation import SigningKey, check_public_key
from mos_common.signature_bundle import BUNDLE, MOST_BYTES, sign_digests, signed_digests

SIGNATURE = "manifest.sig"
SIGNATURES = (SIGNATURE, BUNDLE)
PREFIX = b"mos-model-v1\0"
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey


def sign_model(folder: Path, key: SigningKey) -> None:
    """Sign a model with the operator's key: write `model.sig` or `manifest.sig` into its folder.

    Raises:
        StateError: it cannot be written.
        TrustError: the folder has no manifest that lists its files.

    """
    manifest = read_manifest(folder)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        write_atomically(folder / SIGNATURE, key.sign(PREFIX + manifest))
        return
    names = (MANIFEST, *listed_files(folder, manifest))
    digests = {name: digest_of_file(folder / name) for name in names}
    write_atomically(folder / BUNDLE, sign_digests(manifest_name(manifest) or folder.name, digests, key))


def verify_model(folder: Path, keys: str | Sequence[str]) -> str:
    """Verify the signature and every file of a model; return the key that signed it (PEM).

    `keys` are the public keys of the operator that are trusted, as PEM.

    Raises:
        TrustError: a file was changed or is missing, or somebody else signed it.

    """
    manifest = read_manifest(folder)
    signer = signer_of(folder, manifest, keys)
    check_files(folder, manifest)
    return signer


def signer_of(folder: Path, manifest: bytes, keys: str | Sequence[str]) -> str:
    """Return which of `keys` (PEM) signed the manifest of a model.

    Raises:
        TrustError: there is no signature, or one that none of the keys made.

    """
    trusted = [(pem, check_public_key(pem)) for pem in ([keys] if isinstance(keys, str) else keys)]
    present = [name for name in SIGNATURES if os.path.lexists(folder / name)]
    if not present:
        raise TrustError(
            f"{folder} is not a signed model: neither {SIGNATURE} nor {BUNDLE} can be read: do not use it, download "
            "the model again"
        )
    signers = {name: _signer(folder / name, manifest, trusted) for name in present}
    if None in signers.values():
        raise TrustError(
            f"the manifest of {folder} was not signed by this federation's operator: do not use it, and tell "
            f"the operator"
        )
    return next(signer for signer in signers.values() if signer)


def check_files(folder: Path, manifest: bytes) -> None:
    """Check the size and digest of every file that a manifest names.

    Raises:
        TrustError: a file is missing or differs, or the manifest cannot be read.

    """
    for name, file in listed_files(folder, manifest).items():
        check_file(folder, name, file, signed=is_signed(folder))


def is_signed(folder: Path) -> bool:
    """Return whether a model's folder has a signature, of whomever."""
    return any(os.path.lexists(folder / name) for name in SIGNATURES)


def key_digest(pem: str) -> str:
    """Return by which people compare public keys: SHA-256 of the key in DER, 64 hex digits.

    Raises:
        TrustError: it is not a public key.

    """
    der = check_public_key(pem).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def _signer(signature: Path, manifest: bytes, keys: Sequence[tuple[str, PublicKey]]) -> str | None:
    """Return the one of `keys` that made a signature, or None."""
    try:
        data = read_own_file(signature, MOST_BYTES)
    except OSError:
        return None
    return next((pem for pem, key in keys if _signed(signature.name, data, manifest, key)), None)


def _signed(name: str, data: bytes, manifest: bytes, key: PublicKey) -> bool:
    try:
        if name == SIGNATURE and isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(data, PREFIX + manifest)
            return True
        if name == BUNDLE and isinstance(key, ec.EllipticCurvePublicKey):
            digests = signed_digests(data, key)
            listed = {name: file.sha256 for name, file in listed_files(Path(name), manifest).items()}
            return digests == listed | {MANIFEST: digest_of_bytes(manifest)}
    except (InvalidSignature, TrustError):
        return False
    return False
