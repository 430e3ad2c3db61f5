"""Node keys: on disk, in proofs, and in the metadata of calls."""

from __future__ import annotations

import os
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from mos_common import mos_pb2, node_key
from mos_common.errors import TrustError
from mos_common.node_key import (
    CLOCK_TOLERANCE_S,
    KEY,
    NONCE,
    SIGNATURE,
    TIME,
    CallVerifier,
    check_proof,
    create_node_key,
    key_digest,
    load_node_key,
    prove,
    public_pem,
    sign_call,
)

REQUEST = mos_pb2.DescribeRequest(model="latest")


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


@pytest.fixture
def verifier(key) -> CallVerifier:
    """Admits that one key."""
    return CallVerifier(lambda digest: digest == key_digest(public_pem(key)))


def test_a_key_comes_back_and_only_its_owner_can_read_it(tmp_path):
    made = create_node_key(tmp_path / "node_key")
    assert public_pem(load_node_key(tmp_path / "node_key")) == public_pem(made)
    assert (tmp_path / "node_key").stat().st_mode & 0o777 == 0o600
    public = serialization.load_ssh_public_key((tmp_path / "node_key.pub").read_bytes())
    assert public == made.public_key()


def ed25519_file() -> bytes:
    return ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    "contents", [None, b"", b"not a key", ed25519_file()], ids=["missing", "empty", "text", "ed25519"]
)
def test_what_is_no_node_key_says_what_to_do(tmp_path, contents):
    if contents is not None:
        (tmp_path / "node_key").write_bytes(contents)
    with pytest.raises(TrustError, match=r"node_key .*restore it from a backup, or join anew with a new kit"):
        load_node_key(tmp_path / "node_key")


def test_the_digest_of_a_key_does_not_depend_on_how_its_pem_is_written(key):
    pem = public_pem(key)
    assert key_digest(pem.replace(b"\n", b"\r\n")) == key_digest(b"a comment\n" + pem) == key_digest(pem)


@pytest.mark.parametrize("pem", [b"", b"not a key", b"x" * 10_000])
def test_what_is_no_public_key_has_no_digest(pem):
    with pytest.raises(TrustError, match="not a public key"):
        key_digest(pem)


def test_a_proof_holds_for_its_token_and_its_key_alone(key):
    proof = prove(key, "a-token-of-the-kit")
    assert check_proof(public_pem(key), "a-token-of-the-kit", proof) == key_digest(public_pem(key))
    other = public_pem(ec.generate_private_key(ec.SECP384R1()))
    for pem, token, signature in (
        (other, "a-token-of-the-kit", proof),
        (public_pem(key), "another-token-of-a-kit", proof),
        (public_pem(key), "a-token-of-the-kit", b""),
    ):
        with pytest.raises(TrustError, match="proof does not belong"):
            check_proof(pem, token, signature)


def test_a_signed_call_is_its_caller_s(key, verifier):
    assert verifier.verify(sign_call(key, "Describe", REQUEST), "Describe", REQUEST) == key_digest(public_pem(key))


def test_a_call_cannot_be_made_twice(key, verifier):
    metadata = sign_call(key, "Describe", REQUEST)
    verifier.verify(metadata, "Describe", REQUEST)
    with pytest.raises(TrustError, match="a replay is refused"):
        verifier.verify(metadata, "Describe", REQUEST)


def test_a_signature_holds_for_one_method_and_one_request(key, verifier):
    metadata = sign_call(key, "Describe", REQUEST)
    for method, request in (("Fetch", REQUEST), ("Describe", mos_pb2.DescribeRequest(model="round-001"))):
        with pytest.raises(TrustError, match="does not belong to this call"):
            verifier.verify(metadata, method, request)


@pytest.mark.parametrize("field", [TIME, NONCE])
def test_time_and_nonce_are_signed_too(key, verifier, field):
    changed = {TIME: f"{time.time() + 1:.3f}", NONCE: os.urandom(16).hex()}
    metadata = dict(sign_call(key, "Describe", REQUEST)) | {field: changed[field]}
    with pytest.raises(TrustError, match="does not belong to this call"):
        verifier.verify(tuple(metadata.items()), "Describe", REQUEST)


@pytest.mark.parametrize("missing", [KEY, TIME, NONCE, SIGNATURE])
def test_a_call_that_lacks_anything_is_not_signed(key, verifier, missing):
    metadata = [(name, value) for name, value in sign_call(key, "Describe", REQUEST) if name != missing]
    with pytest.raises(TrustError, match="not signed"):
        verifier.verify(metadata, "Describe", REQUEST)


def test_a_key_that_is_not_admitted_is_told_to_enrol(verifier):
    stranger = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(TrustError, match="not admitted: enrol with a kit first"):
        verifier.verify(sign_call(stranger, "Describe", REQUEST), "Describe", REQUEST)


@pytest.mark.parametrize(("off", "which"), [(-1, "behind"), (1, "ahead of")])
def test_a_wrong_clock_is_named_and_a_little_off_is_right(key, verifier, monkeypatch, off, which):
    now = time.time()
    for seconds, right in ((CLOCK_TOLERANCE_S - 5, True), (CLOCK_TOLERANCE_S + 5, False)):
        with monkeypatch.context() as clock:
            clock.setattr(node_key.time, "time", lambda seconds=seconds: now + off * seconds)
            metadata = sign_call(key, "Describe", REQUEST)
        if right:
            assert verifier.verify(metadata, "Describe", REQUEST)
        else:
            with pytest.raises(TrustError, match=rf"clock is 6\d s {which} the server's.*NTP"):
                verifier.verify(metadata, "Describe", REQUEST)


@pytest.mark.parametrize("claimed", ["now", "nan", "inf", ""])
def test_a_time_that_is_none_is_refused(key, verifier, claimed):
    metadata = dict(sign_call(key, "Describe", REQUEST)) | {TIME: claimed}
    with pytest.raises(TrustError, match=r"clock|when it was made"):
        verifier.verify(tuple(metadata.items()), "Describe", REQUEST)


def test_a_proof_is_no_call_and_a_call_is_no_proof(key, verifier):
    """Each signature has a prefix of its own: none can stand in for the other."""
    metadata = dict(sign_call(key, "Describe", REQUEST))
    with pytest.raises(TrustError):
        check_proof(public_pem(key), metadata[NONCE], metadata[SIGNATURE])
    metadata[SIGNATURE] = prove(key, metadata[NONCE])
    with pytest.raises(TrustError):
        verifier.verify(tuple(metadata.items()), "Describe", REQUEST)


def test_old_nonces_are_forgotten_once_the_clock_refuses_them(key, verifier, monkeypatch):
    """So memory is bounded: what is too old to pass by its time need not be remembered."""
    for _ in range(20):
        verifier.verify(sign_call(key, "Describe", REQUEST), "Describe", REQUEST)
    assert len(verifier._nonces) == 20
    later = time.monotonic() + 3 * CLOCK_TOLERANCE_S
    monkeypatch.setattr(node_key.time, "monotonic", lambda: later)
    verifier.verify(sign_call(key, "Describe", REQUEST), "Describe", REQUEST)
    assert len(verifier._nonces) == 1


@pytest.mark.parametrize("twice", [KEY, TIME, NONCE, SIGNATURE])
def test_a_call_that_is_signed_twice_is_refused(key, verifier, twice):
    """Whoever reads the first and whoever reads the last would disagree."""
    metadata = sign_call(key, "Describe", REQUEST)
    with pytest.raises(TrustError, match="signed twice"):
        verifier.verify((*metadata, (twice, dict(metadata)[twice])), "Describe", REQUEST)


@pytest.mark.parametrize("nonce", ["", "ab", "AB" * 16, "g" * 32, "a" * 5000])
def test_a_nonce_that_costs_memory_is_refused(key, verifier, nonce):
    metadata = dict(sign_call(key, "Describe", REQUEST)) | {NONCE: nonce}
    with pytest.raises(TrustError, match="nonce is not 32 hexadecimal digits"):
        verifier.verify(tuple(metadata.items()), "Describe", REQUEST)
