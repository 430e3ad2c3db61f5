"""Content Credentials (C2PA): a signed statement in the file that a model made the picture.

The statement covers every byte of the file, so our recipe as well. It is signed with its owner's
certificate, by the extra `[provenance]`; nobody is asked over the network, no timestamp server
either.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

from mos_common.errors import RequestError
from mos_common.picture_metadata import MADE_BY_A_MODEL
from mos_common.release import RELEASE

MOST_BYTES = 1 << 20
VALID = ("Valid", "Trusted")


@dataclass(frozen=True)
class Signature:
    """A certificate chain (PEM, the owner's first) and its private key (PEM, not encrypted)."""

    certificates: bytes
    private_key: bytes

    def sign(self, data: bytes, kind: str) -> bytes:
        """Return a picture with signed Content Credentials; `kind` is Pillow's name of its format.

        Raises:
            RequestError: the certificate cannot sign pictures.

        """
        import c2pa

        form, signed = f"image/{kind.lower()}", io.BytesIO()
        made = {"action": "c2pa.created", "digitalSourceType": MADE_BY_A_MODEL}
        manifest = {
            "claim_generator_info": [{"name": "federated-mix-of-show", "version": RELEASE}],
            "format": form,
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [made]}}],
        }
        info = c2pa.C2paSignerInfo(_algorithm(self.private_key), self.certificates, self.private_key, None)
        try:
            with c2pa.Signer.from_info(info) as signer, c2pa.Builder(json.dumps(manifest)) as builder:
                builder.sign(signer, form, io.BytesIO(data), signed)
            with c2pa.Reader(form, io.BytesIO(signed.getvalue())) as reader:
                state = str(reader.get_validation_state())
        except c2pa.C2paError as error:
            raise RequestError(f"the certificate cannot sign Content Credentials: {_ASKED} ({error})") from error
        if state not in VALID:
            raise RequestError(f"what the certificate signed does not verify ({state}): {_ASKED}")
        return signed.getvalue()


_ASKED = (
    "C2PA asks for a chain of an owner's certificate, valid now, for signatures, with the extended key usage email "
    "protection or document signing, and the authority that issued it"
)


def read_signature(certificate: Path | None, private_key: Path | None) -> Signature | None:
    """Return what to sign pictures with, or None if neither file is given.

    Raises:
        RequestError: one of the two is missing, cannot be read or is not PEM, or the extra
            `[provenance]` is not installed.

    """
    if certificate is None and private_key is None:
        return None
    if certificate is None or private_key is None:
        raise RequestError("--certificate and --private-key go together: give the chain and its key")
    try:
        import c2pa  # noqa: F401 asked for before anything is drawn
    except ImportError as error:
        raise RequestError(
            'signing pictures needs c2pa-python: pip install "federated-mix-of-show[provenance]"'
        ) from error
    signature = Signature(_pem(certificate, "--certificate"), _pem(private_key, "--private-key"))
    _algorithm(signature.private_key)
    return signature


def _pem(file: Path, flag: str) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_BYTES)
    except OSError as error:
        raise RequestError(f"{flag} {file} cannot be read: {error.strerror}") from error
    if b"-----BEGIN " not in data:
        raise RequestError(f"{flag} {file} is not PEM: expected a file with -----BEGIN … in it")
    return data


def _algorithm(private_key: bytes) -> bytes:
    """Return C2PA's name of the algorithm of a private key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(private_key, None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise RequestError(f"the private key cannot be read: give it as PEM without a password ({error})") from error
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size in (256, 384, 521):
        return {256: b"es256", 384: b"es384", 521: b"es512"}[key.curve.key_size]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return b"ps256"
    raise RequestError("the private key is of a kind that C2PA does not know: use P-256, P-384, P-521, Ed25519 or RSA")
