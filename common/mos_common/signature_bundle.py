"""The signature of a model's folder in the form of OpenSSF's `model_signing`, with a key on P-256.

It is a Sigstore bundle: a DSSE envelope around an in-toto statement that lists the digest of every
file. The tool (`pip install model-signing`) verifies what is written here; only `cryptography` is
needed to write and to read it, while the tool brings thirty packages for signing with identities,
which no federation uses.

https://github.com/sigstore/model-transparency, https://github.com/secure-systems-lab/dsse
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mos_common.files import canonical_json

BUNDLE = "model.sig"
MOST_BYTES = 4 << 20
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_ECDSA = ec.ECDSA(hashes.SHA256())


def sign_digests(name: str, digests: Mapping[str, str], key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the bundle that signs the files of the model `name`, given the SHA-256 of each."""
    listed = sorted(digests.items())
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": _digest_of_all(digest for _, digest in listed)}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [BUNDLE],
            },
            "resources": [{"name": file, "algorithm": "sha256", "digest": digest} for file, digest in listed],
        },
    }
    payload = canonical_json(statement)
    return canonical_json(_bundle(payload, key.sign(_encoded(payload), _ECDSA), key.public_key()))


def signed_digests(bundle: bytes, key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """Return the digests by file that a bundle signs with `key`.

    Raises:
        InvalidSignature: the bundle cannot be read, or `key` did not sign it.

    """
    try:
        parsed = json.loads(bundle)
        payload = base64.b64decode(parsed["dsseEnvelope"]["payload"], validate=True)
        signature = base64.b64decode(parsed["dsseEnvelope"]["signatures"][0]["sig"], validate=True)
        if parsed != _bundle(payload, signature, key):
            raise InvalidSignature
        key.verify(signature, _encoded(payload), _ECDSA)
        return _digests_of(json.loads(payload))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidSignature from error


def _bundle(payload: bytes, signature: bytes, key: ec.EllipticCurvePublicKey) -> dict[str, Any]:
    return {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _hint(key)}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }


def _digests_of(statement: Any) -> dict[str, str]:
    predicate = statement["predicate"]
    serialization_ = predicate["serialization"]
    kind = statement["_type"], statement["predicateType"], serialization_["method"], serialization_["hash_type"]
    digests = {str(each["name"]): str(each["digest"]) for each in predicate["resources"]}
    (subject,) = statement["subject"]
    of_all = _digest_of_all(digests[name] for name in digests)
    if kind != (_STATEMENT, _PREDICATE, "files", "sha256") or subject["digest"] != {"sha256": of_all}:
        raise InvalidSignature
    return digests


def _digest_of_all(digests: Any) -> str:
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _encoded(payload: bytes) -> bytes:
    """Return what DSSE signs: its "pre-authentication encoding" of type and payload."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _hint(key: ec.EllipticCurvePublicKey) -> str:
    """Return by which the tool recognises a key: the digest of its PEM."""
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()
