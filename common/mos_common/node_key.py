"""A participant's node key, which identifies it to Flower and to `mos.v1`.

One ECDSA P-384 key in OpenSSH's private format, which is what `flower-supernode` reads. Flower
signs only a timestamp with it; our own calls sign the method, the time, a nonce and the whole
request, under a prefix of their own, so that neither signature can stand in for the other.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mos_common.errors import TrustError
from mos_common.files import write_atomically

PREFIX, ENROL_PREFIX = b"mos-v1", b"mos-v1-enrol"
KEY, TIME, NONCE, SIGNATURE = "mos-key-bin", "mos-time", "mos-nonce", "mos-signature-bin"
CLOCK_TOLERANCE_S = 60.0
PEM_BYTES_AT_MOST = 4096
_SIGNED = frozenset({KEY, TIME, NONCE, SIGNATURE})
_NONCE = re.compile(r"[0-9a-f]{32}")

Metadata = Sequence[tuple[str, str | bytes]]


class ClockError(TrustError):
    """A call was made at another time than the server's clock says."""


class Request(Protocol):
    """A protobuf message."""

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:  # noqa: N802 - protobuf's name
        """Return the message as bytes."""
        ...


def create_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Create a key at `path` (mode 0600), and its public half beside it as `path`.pub.

    Raises:
        StateError: it cannot be written.

    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_atomically(path, private, mode=0o600)
    write_atomically(path.with_name(path.name + ".pub"), public + b"\n")
    return key


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Load the key at `path`.

    Raises:
        TrustError: the file is missing, or it is not an ECDSA key in OpenSSH's format.

    """
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(
            f"node key {path} cannot be read ({error}): restore it from a backup, or join anew with a new kit"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TrustError(f"node key {path} is not an ECDSA key: restore it from a backup, or join anew with a new kit")
    return key


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public half as PEM (SubjectPublicKeyInfo), as the operator's journal stores it."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_digest(pem: bytes) -> str:
    """Return the sha256 of a public key's DER form, in hex: line breaks in the PEM do not matter.

    Raises:
        TrustError: `pem` is not an elliptic curve public key.

    """
    der = _public_key(pem).public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def prove(key: ec.EllipticCurvePrivateKey, token: str) -> bytes:
    """Sign `token` to prove that the enrolling participant owns `key`."""
    return key.sign(ENROL_PREFIX + b"\0" + token.encode(), ec.ECDSA(hashes.SHA256()))


def check_proof(pem: bytes, token: str, proof: bytes) -> str:
    """Return the digest of the key that signed `token`.

    Raises:
        TrustError: the proof does not belong to the key.

    """
    try:
        _public_key(pem).verify(proof, ENROL_PREFIX + b"\0" + token.encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise TrustError("the proof does not belong to the key that asks to be enrolled") from error
    return key_digest(pem)


def sign_call(key: ec.EllipticCurvePrivateKey, method: str, request: Request) -> Metadata:
    """Return the gRPC metadata that authenticates one call."""
    now, nonce = f"{time.time():.3f}", secrets.token_hex(16)
    signature = key.sign(_signed_text(method, now, nonce, request), ec.ECDSA(hashes.SHA256()))
    return ((KEY, public_pem(key)), (TIME, now), (NONCE, nonce), (SIGNATURE, signature))


class CallVerifier:
    """Verify the metadata of calls: admitted key, right clock, valid signature, no replay."""

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self._allowed = allowed
        self._nonces: dict[str, float] = {}  # in the order in which they came
        self._lock = threading.Lock()

    def verify(self, metadata: Metadata, method: str, request: Request) -> str:
        """Verify one call and return the digest of the caller's key.

        Raises:
            ClockError: the call was made too long ago, or in the future.
            TrustError: the call is not signed by an admitted key, or it is a replay.

        """
        pem, signature, now, nonce = _signed_values(metadata)
        digest = key_digest(pem)
        if not self._allowed(digest):
            raise TrustError("this key is not admitted: enrol with a kit first, or ask the operator why it was revoked")
        self._check_clock(now)
        try:
            _public_key(pem).verify(signature, _signed_text(method, now, nonce, request), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise TrustError("the signature does not belong to this call") from error
        self._remember(nonce)
        return digest

    def _check_clock(self, claimed: str) -> None:
        try:
            ahead = float(claimed) - time.time()
        except ValueError as error:
            raise TrustError("the call does not say when it was made") from error
        if not abs(ahead) <= CLOCK_TOLERANCE_S:
            which = "ahead of" if ahead > 0 else "behind"
            raise ClockError(
                f"the participant's clock is {abs(ahead):.0f} s {which} the server's, at most "
                f"{CLOCK_TOLERANCE_S:.0f} s are allowed: set both by NTP"
            )

    def _remember(self, nonce: str) -> None:
        now = time.monotonic()
        with self._lock:
            while self._nonces and self._nonces[oldest := next(iter(self._nonces))] < now - 2 * CLOCK_TOLERANCE_S:
                del self._nonces[oldest]
            if nonce in self._nonces:
                raise TrustError("this call was made before: a replay is refused")
            self._nonces[nonce] = now


def _signed_values(metadata: Metadata) -> tuple[bytes, bytes, str, str]:
    """Return key, signature, time and nonce of a call's metadata, each of which it has once."""
    count = Counter(name for name, _ in metadata if name in _SIGNED)
    if any(number > 1 for number in count.values()):
        raise TrustError(f"the call is signed twice: it needs one each of {', '.join(sorted(_SIGNED))}")
    values = dict(metadata)
    pem, signature, now, nonce = (values.get(name) for name in (KEY, SIGNATURE, TIME, NONCE))
    if not (
        isinstance(pem, bytes) and isinstance(signature, bytes) and isinstance(now, str) and isinstance(nonce, str)
    ):
        raise TrustError("the call is not signed: it needs a participant's node key")
    if not _NONCE.fullmatch(nonce):
        raise TrustError("the call is not signed as it should be: its nonce is not 32 hexadecimal digits")
    return pem, signature, now, nonce


def _signed_text(method: str, now: str, nonce: str, request: Request) -> bytes:
    body = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    return b"\0".join([PREFIX, method.encode(), now.encode(), nonce.encode(), body])


def _public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(pem if len(pem) <= PEM_BYTES_AT_MOST else b"")
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError("not a public key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TrustError("not an elliptic curve public key")
    return key
