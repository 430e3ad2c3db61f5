"""Trust anchors, and the statements by which a federation's operator replaces them.

A participant pins an authority (whose certificates it accepts from the server) and a signing key
(whose models it accepts). They change by rotation statements alone, each signed by the key that was
in force before it:

    link 0         SHA-256 of the federation's number and its first anchors
    statement n    n, the time, link n-1, and the anchors and addresses from now on; signed by the
                   signing key of link n-1
    link n         SHA-256 of statement n, without its signature

So two histories with the same link n are the same up to n, one may go on from the other, and
anything else is a fork, a gap or a stranger's.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import AwareDatetime, ConfigDict, Field

from mos_common.errors import TrustError
from mos_common.files import canonical_json
from mos_common.json_models import JsonModelError, StrictModel, from_json
from mos_common.texts import PRINTABLE

PREFIX = b"mos-rotation-v1\0"
Address = Annotated[str, Field(pattern=r"^\S+:[0-9]{1,5}$", max_length=300), PRINTABLE]
ServerId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
# While an authority is replaced there are two certificates in one text.
Certificates = Annotated[str, Field(pattern=r"^-----BEGIN CERTIFICATE-----", max_length=20_000)]
PublicKey = Annotated[str, Field(pattern=r"^-----BEGIN PUBLIC KEY-----", max_length=2_000)]
SigningKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
STATEMENTS_AT_MOST = 200
# Two certificates, two keys and two addresses, with what JSON puts around them.
STATEMENT_BYTES_AT_MOST = 64 << 10


class Statement(StrictModel):
    """One rotation: the anchors and addresses that hold from it on."""

    model_config = ConfigDict(frozen=True)
    format: Literal[1] = 1
    server_id: ServerId
    sequence: Annotated[int, Field(ge=1, le=STATEMENTS_AT_MOST)]
    time: AwareDatetime
    previous: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    signed_by: PublicKey
    authority: Certificates
    signing_key: PublicKey
    fleet: Address
    mos: Address
    signature: Annotated[str, Field(max_length=200)]

    @property
    def signed_bytes(self) -> bytes:
        """What the signature covers: everything but itself, as canonical JSON."""
        return PREFIX + canonical_json(self.model_dump(mode="json", exclude={"signature"}))

    @property
    def link(self) -> str:
        """The statement's place in its history: equal links have equal histories."""
        return hashlib.sha256(self.signed_bytes).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the statement as canonical JSON, as it travels."""
        return canonical_json(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Anchors:
    """The anchors in force, and all statements that led from the first ones to them."""

    server_id: str
    authority: str
    signing_key: str
    statements: tuple[Statement, ...] = ()

    @property
    def signing_keys(self) -> tuple[str, ...]:
        """Every signing key there has been, newest first: older models stay verifiable."""
        keys = [self.signing_key, *(statement.signed_by for statement in reversed(self.statements))]
        return tuple(dict.fromkeys(keys))

    def link(self, sequence: int) -> str:
        """Return the link after so many statements."""
        if sequence > 0:
            return self.statements[sequence - 1].link
        if self.statements:
            return self.statements[0].previous
        first = [self.server_id, _one_line(self.authority), _one_line(self.signing_key)]
        return hashlib.sha256(PREFIX + canonical_json(first)).hexdigest()

    def checked(self) -> Anchors:
        """Return these anchors if their statements lead to them without a break.

        Raises:
            TrustError: they do not.

        """
        if self.statements:
            first = self.statements[0]
            before = _Before(self.server_id, 0, first.previous, first.signed_by)
            last = _follow(before, self.statements)
            if (last.authority, last.signing_key) != (self.authority, self.signing_key):
                raise TrustError(
                    f"its rotation statements end with other keys than it names (statement {last.sequence})"
                )
        return self

    def joined(self, other: Anchors) -> Anchors:
        """Return the longer of two histories of one federation; the other must be its beginning.

        Raises:
            TrustError: neither goes on from the other.

        """
        if other.server_id != self.server_id:
            raise TrustError("it is of another federation")
        other.checked()
        if not other.statements and not self.statements:
            for what, ours, theirs in (
                ("certificate", self.authority, other.authority),
                ("signing key", self.signing_key, other.signing_key),
            ):
                if _one_line(ours) != _one_line(theirs):
                    raise TrustError(f"it has another {what}, and no statement signed by the pinned key that says so")
            return self
        return other if self.followed_by(other.statements, other.link(0)) else self

    def followed_by(self, statements: Sequence[Statement], first: str | None = None) -> bool:
        """Return whether a history is longer than this one; both must agree as far as both go.

        Raises:
            TrustError: they do not agree, or a statement is not signed by the key before it.

        """
        if first is not None and first != self.link(0):
            raise TrustError("its history does not begin with the certificate and key that are pinned")
        for number, (ours, theirs) in enumerate(zip(self.statements, statements, strict=False), 1):
            if ours.link != theirs.link:
                raise TrustError(
                    f"its rotation statement {number} ({theirs.time:%Y-%m-%d %H:%M}) is not the one that was accepted "
                    f"here ({ours.time:%Y-%m-%d %H:%M}): two histories of one federation"
                )
        known = len(self.statements)
        if len(statements) <= known:
            return False
        _follow(_Before(self.server_id, known, self.link(known), self.signing_key), statements[known:])
        return True

    def extended(self, statements: Sequence[Statement]) -> Anchors:
        """Return the anchors after a history that goes on from this one; this one if it does not.

        Raises:
            TrustError: the history is another one, or is not signed by the keys in force.

        """
        if not self.followed_by(statements):
            return self
        return Anchors(self.server_id, statements[-1].authority, statements[-1].signing_key, tuple(statements))

    def rotated(
        self, key: SigningKey, *, authority: str, signing_key: str, fleet: str, mos: str, time: dt.datetime
    ) -> Anchors:
        """Return the anchors after one more statement, signed with the private `key` in force."""
        unsigned = Statement(
            server_id=self.server_id,
            sequence=len(self.statements) + 1,
            time=time.replace(microsecond=0),
            previous=self.link(len(self.statements)),
            signed_by=self.signing_key,
            authority=authority,
            signing_key=signing_key,
            fleet=fleet,
            mos=mos,
            signature="",
        )
        signature = base64.b64encode(sign(key, unsigned.signed_bytes)).decode()
        return self.extended([*self.statements, unsigned.model_copy(update={"signature": signature})])


@dataclass(frozen=True)
class _Before:
    """What a statement must follow."""

    server_id: str
    sequence: int
    link: str
    signing_key: str


def _follow(before: _Before, statements: Sequence[Statement]) -> Statement:
    """Return the last of the statements, each of which must follow the one before it."""
    for statement in statements:
        number = before.sequence + 1
        if statement.server_id != before.server_id:
            raise TrustError("it has a rotation statement of another federation")
        if statement.sequence != number:
            raise TrustError(
                f"it has rotation statement {statement.sequence} where {number} was expected: one was left out, or "
                "an old one came again"
            )
        if statement.previous != before.link or _one_line(statement.signed_by) != _one_line(before.signing_key):
            raise TrustError(f"its rotation statement {number} does not follow the keys that are pinned")
        try:
            check_signature(before.signing_key, statement.signed_bytes, base64.b64decode(statement.signature))
        except (TrustError, ValueError) as error:
            raise TrustError(f"its rotation statement {number} is not signed by the key that is pinned") from error
        before = _Before(before.server_id, number, statement.link, statement.signing_key)
    return statements[-1]


def read_statements(texts: Sequence[bytes]) -> tuple[Statement, ...]:
    """Read statements as they travel.

    Raises:
        TrustError: one is not a rotation statement or is too large, or there are too many.

    """
    if len(texts) > STATEMENTS_AT_MOST:
        raise TrustError(f"{len(texts)} rotation statements: at most {STATEMENTS_AT_MOST} are read")
    if (largest := max(map(len, texts), default=0)) > STATEMENT_BYTES_AT_MOST:
        raise TrustError(f"a rotation statement of {largest} bytes: at most {STATEMENT_BYTES_AT_MOST} are read")
    try:
        return tuple(from_json(Statement, text) for text in texts)
    except JsonModelError as error:
        raise TrustError(f"a rotation statement cannot be read ({error})") from error


def read_history(data: bytes) -> tuple[Statement, ...]:
    """Read the operator's own list of statements, earliest first.

    Raises:
        TrustError: it is damaged.

    """
    try:
        return read_statements([canonical_json(each) for each in json.loads(data)])
    except (ValueError, TypeError, RecursionError) as error:
        raise TrustError(f"the list of rotation statements cannot be read ({error})") from error


def sign(key: SigningKey, data: bytes) -> bytes:
    """Return the signature of `data`: Ed25519, or ECDSA with SHA-256 by a P-256 key."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def check_signature(pem: str, data: bytes, signature: bytes) -> None:
    """Check a signature of `data` by the public key `pem`.

    Raises:
        TrustError: the key is neither Ed25519 nor P-256, or it did not sign this.

    """
    key = check_public_key(pem)
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise TrustError("the signature is not by this key") from error


def check_public_key(pem: str) -> ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey:
    """Return a public key that can sign for an operator.

    Raises:
        TrustError: it is no public key, or neither Ed25519 nor P-256.

    """
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError("the signing key is not a public key: ask the operator for a new kit") from error
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise TrustError("the signing key is neither an Ed25519 nor a P-256 key: ask the operator for a new kit")


def public_pem(key: SigningKey) -> str:
    """Return the public half of a signing key as PEM."""
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return public.decode()


def _one_line(pem: str) -> str:
    return " ".join(pem.split())
