"""The operator's signature: what it covers, and every way in which a model can differ."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from mos_common.errors import TrustError
from mos_common.model_files import MANIFEST
from mos_common.signing import SIGNATURE, sign_model, verify_model

FILES = {"adapter.safetensors": b"weights" * 100, "embeddings.safetensors": b"words"}


def pem(key) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture
def key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


@pytest.fixture
def model(tmp_path: Path, key) -> Path:
    folder = tmp_path / "round-001"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    files = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in FILES.items()}
    (folder / MANIFEST).write_text(json.dumps({"files": files}))
    sign_model(folder, key)
    return folder


def test_what_was_signed_is_accepted(model, key):
    verify_model(model, pem(key))
    assert len((model / SIGNATURE).read_bytes()) == 64


@pytest.mark.parametrize("change", [lambda data: data[:-1] + b"?", lambda data: data + b"\0", lambda data: b""])
@pytest.mark.parametrize("name", list(FILES))
def test_a_changed_file_is_named(model, key, name, change):
    (model / name).write_bytes(change((model / name).read_bytes()))
    with pytest.raises(TrustError, match=rf"{name} of .* was changed after it was signed: download the model again"):
        verify_model(model, pem(key))


@pytest.mark.parametrize("name", [*FILES, MANIFEST, SIGNATURE])
def test_a_missing_file_is_named(model, key, name):
    (model / name).unlink()
    with pytest.raises(TrustError, match=name):
        verify_model(model, pem(key))


def test_a_changed_manifest_was_not_signed(model, key):
    """Changing a file and its digest with it is no way in."""
    (model / "embeddings.safetensors").write_bytes(b"other")
    manifest = json.loads((model / MANIFEST).read_bytes())
    manifest["files"]["embeddings.safetensors"] = {"size": 5, "sha256": hashlib.sha256(b"other").hexdigest()}
    (model / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(TrustError, match="was not signed by this federation's operator: do not use it"):
        verify_model(model, pem(key))


def test_another_operator_s_model_is_refused(model):
    with pytest.raises(TrustError, match="was not signed by this federation's operator"):
        verify_model(model, pem(ed25519.Ed25519PrivateKey.generate()))


@pytest.mark.parametrize("signature", [b"", b"x" * 64, b"x" * 1000])
def test_a_signature_that_is_none_is_refused(model, key, signature):
    (model / SIGNATURE).write_bytes(signature)
    with pytest.raises(TrustError, match="was not signed"):
        verify_model(model, pem(key))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/file", ".."])
def test_a_manifest_cannot_speak_of_files_elsewhere(model, key, name):
    """Even a signed one: the digest of somebody's other file is nobody's business."""
    (model.parent / "secret").write_bytes(b"secret")
    (model / MANIFEST).write_text(json.dumps({"files": {name: {"size": 6, "sha256": "0" * 64}}}))
    sign_model(model, key)
    with pytest.raises(TrustError, match="not the name of a file of a model"):
        verify_model(model, pem(key))


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"files": []}', '{"files": {"a": {}}}', "not json"])
def test_a_signed_manifest_that_lists_nothing_is_no_model(model, key, manifest):
    (model / MANIFEST).write_text(manifest)
    sign_model(model, key)
    with pytest.raises(TrustError, match="does not list its files"):
        verify_model(model, pem(key))


def test_a_kit_whose_signing_key_is_none_is_at_fault(model):
    for wrong in ("-----BEGIN PUBLIC KEY-----\nhello", pem(ec.generate_private_key(ec.SECP384R1()))):
        with pytest.raises(TrustError, match="ask the operator for a new kit"):
            verify_model(model, wrong)
