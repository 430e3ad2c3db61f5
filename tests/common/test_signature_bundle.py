"""OpenSSF's form of a signature: what is signed, and every way in which a bundle is none."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from mos_common.signature_bundle import sign_digests, signed_digests

DIGESTS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("manifest.json", "adapter.safetensors")}
TYPE = "application/vnd.in-toto+json"


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def resigned(key, change) -> bytes:
    """Return a bundle whose statement was changed before it was signed, by DSSE's definition."""
    bundle = json.loads(sign_digests("round-001", DIGESTS, key))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    encoded = f"DSSEv1 {len(TYPE)} {TYPE} {len(payload)} ".encode() + payload
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(
        key.sign(encoded, ec.ECDSA(hashes.SHA256()))
    ).decode()
    return json.dumps(bundle).encode()


def test_the_digests_come_back(key):
    assert signed_digests(sign_digests("round-001", DIGESTS, key), key.public_key()) == DIGESTS
    assert signed_digests(resigned(key, lambda statement: None), key.public_key()) == DIGESTS


def test_the_statement_names_every_file_and_one_digest_of_all(key):
    bundle = json.loads(sign_digests("round-001", DIGESTS, key))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    names = sorted(DIGESTS)
    assert [each["name"] for each in statement["predicate"]["resources"]] == names
    of_all = hashlib.sha256(b"".join(bytes.fromhex(DIGESTS[name]) for name in names)).hexdigest()
    assert statement["subject"] == [{"name": "round-001", "digest": {"sha256": of_all}}]


def test_another_key_signed_nothing(key):
    with pytest.raises(InvalidSignature):
        signed_digests(sign_digests("round-001", DIGESTS, key), ec.generate_private_key(ec.SECP256R1()).public_key())


@pytest.mark.parametrize(
    "change",
    [
        lambda statement: statement.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda statement: statement.update(predicateType="https://slsa.dev/provenance/v1"),
        lambda statement: statement["predicate"]["serialization"].update(method="shards"),
        lambda statement: statement["predicate"]["serialization"].update(hash_type="blake2"),
        lambda statement: statement["predicate"]["resources"].pop(),
        lambda statement: statement["subject"].append({"name": "x", "digest": {}}),
        lambda statement: statement["predicate"]["resources"].append({"name": "x"}),
        lambda statement: statement.pop("subject"),
    ],
)
def test_a_statement_of_another_kind_is_refused_although_the_key_signed_it(key, change):
    with pytest.raises(InvalidSignature):
        signed_digests(resigned(key, change), key.public_key())


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"dsseEnvelope": {}}'])
def test_what_is_no_bundle_is_refused(key, data):
    with pytest.raises(InvalidSignature):
        signed_digests(data, key.public_key())


def test_two_signatures_are_not_one(key):
    bundle = json.loads(sign_digests("round-001", DIGESTS, key))
    bundle["dsseEnvelope"]["signatures"] *= 2
    with pytest.raises(InvalidSignature):
        signed_digests(json.dumps(bundle).encode(), key.public_key())


def test_every_changed_byte_of_the_envelope_is_refused(key):
    """Of the payload and the signature, that is; the hint only says which key to try."""
    bundle = sign_digests("round-001", DIGESTS, key)
    envelope = json.loads(bundle)["dsseEnvelope"]
    for part in (envelope["payload"], envelope["signatures"][0]["sig"]):
        start = bundle.index(part.encode())
        for position in range(start, start + len(part.rstrip("=")) - 1, 7):
            changed = bytearray(bundle)
            changed[position] = ord("A") if changed[position] != ord("A") else ord("B")
            with pytest.raises(InvalidSignature):
                signed_digests(bytes(changed), key.public_key())
