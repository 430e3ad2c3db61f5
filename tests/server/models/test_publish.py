"""Published models: a folder that describes itself correctly, is signed, and never changes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from safetensors.torch import load_file

from mos_common.errors import StateError, TrustError
from mos_common.fused_model import NamedConcept, read_fused
from mos_common.identity_scores import Identity
from mos_common.signing import verify_model
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.average import AverageSettings
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.models.publish import publish_candidate, write_fused

SCORES = Identity(class_word=0.3, single=0.8, fused=0.75, ceiling=0.9)


@pytest.fixture
def fused(tiny, make_concept):
    concepts = [
        NamedConcept("alice", make_concept(tiny, "<cat>", seed=1, author="Alice", licence="CC0")),
        NamedConcept("bob", make_concept(tiny, "<dog>", seed=2, rank=3)),
    ]
    return fuse(tiny, concepts, GradientSettings(contexts=("V",), ordinary=("",), steps=1, guidance=1.0))


@pytest.fixture
def key():
    return ed25519.Ed25519PrivateKey.generate()


def public(key) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_holds_the_model_and_what_it_says_of_its_files_is_true(fused, tmp_path):
    write_fused(fused, tmp_path / "fused", round="round-001")
    assert names(tmp_path / "fused") == ["adapter.safetensors", "embeddings.safetensors", "manifest.json"]
    assert names(tmp_path) == ["fused"]
    manifest = json.loads((tmp_path / "fused" / "manifest.json").read_bytes())
    assert manifest["round"] == "round-001"
    assert sorted(manifest["files"]) == ["adapter.safetensors", "embeddings.safetensors"]
    for name, told in manifest["files"].items():
        data = (tmp_path / "fused" / name).read_bytes()
        assert told == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_manifest_says_what_went_in(fused, tiny, tmp_path):
    write_fused(fused, tmp_path / "fused")
    manifest = json.loads((tmp_path / "fused" / "manifest.json").read_bytes())
    assert manifest["base"] == tiny.fingerprint
    assert (manifest["method"], manifest["settings"]["contexts"]) == ("gradient", ["V"])
    assert manifest["settings"].keys() == asdict(GradientSettings()).keys()
    assert {"torch", "diffusers", "transformers", "federated-mix-of-show"} == manifest["versions"].keys()
    alice = next(concept for concept in manifest["concepts"] if concept["token"] == "<alice/cat>")
    assert (alice["author"], alice["licence"], alice["class_word"]) == ("Alice", "CC0", "cat")
    assert sorted(alice["survival"]) == ["cross", "spatial", "text"]


def test_what_is_written_is_what_is_read(fused, tmp_path):
    write_fused(fused, tmp_path / "fused")
    back = read_fused(tmp_path / "fused")
    assert back.manifest == fused.manifest.model_copy(update={"files": back.manifest.files})
    assert back.vocabulary.keys() == fused.vocabulary.keys()
    for name, pair in fused.changes.items():
        assert torch.equal(back.changes[name].change(), pair.change())
        assert load_file(tmp_path / "fused" / "adapter.safetensors")[f"{name}.lora_A.weight"].dtype == torch.float32


def test_equal_models_are_equal_files(fused, tmp_path):
    for name in ("one", "other"):
        write_fused(fused, tmp_path / name, round="r")
    for file in names(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_a_concept_without_words_is_published_under_its_name_as_its_class_word(tiny, make_concept, tmp_path):
    """`<cat>` in a prompt then means `cat`: the base's own embedding, the same in all layers."""
    plain = NamedConcept("", make_concept(tiny, words=0))
    write_fused(fuse(tiny, [plain], AverageSettings()), tmp_path / "fused")
    (words,) = read_fused(tmp_path / "fused").vocabulary.values()
    ids = tiny.tokenizer("cat", add_special_tokens=False).input_ids
    assert torch.equal(words, tiny.token_table[ids][None])


def test_a_model_is_never_overwritten(fused, tmp_path):
    (tmp_path / "fused").mkdir()
    (tmp_path / "fused" / "precious").write_text("mine")
    with pytest.raises(StateError, match="already exists"):
        write_fused(fused, tmp_path / "fused")
    assert names(tmp_path / "fused") == ["precious"]


def test_a_scored_candidate_is_published_signed(fused, tmp_path, key):
    """The same files, the clients' scores, and a signature that the kit's key verifies."""
    write_fused(fused, tmp_path / "candidate", round="round-001")
    publish_candidate(tmp_path / "candidate", tmp_path / "round-001", {"<alice/cat>": SCORES}, (), key)
    assert names(tmp_path / "round-001") == [*names(tmp_path / "candidate"), "manifest.sig"]
    verify_model(tmp_path / "round-001", public(key))
    identities = {c.token: c.identity for c in read_fused(tmp_path / "round-001").manifest.concepts}
    assert identities == {"<alice/cat>": SCORES, "<bob/dog>": None}


@pytest.mark.parametrize("file", ["adapter.safetensors", "embeddings.safetensors", "manifest.json", "manifest.sig"])
def test_any_changed_byte_shows(fused, tmp_path, key, file):
    write_fused(fused, tmp_path / "candidate")
    publish_candidate(tmp_path / "candidate", tmp_path / "published", {}, (), key)
    data = bytearray((tmp_path / "published" / file).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "published" / file).write_bytes(data)
    with pytest.raises(TrustError):
        verify_model(tmp_path / "published", public(key))


def test_what_is_published_is_never_changed(fused, tmp_path, key):
    write_fused(fused, tmp_path / "candidate")
    publish_candidate(tmp_path / "candidate", tmp_path / "published", {}, (), key)
    before = (tmp_path / "published" / "manifest.json").read_bytes()
    with pytest.raises(StateError, match="published already"):
        publish_candidate(tmp_path / "candidate", tmp_path / "published", {"<alice/cat>": SCORES}, (), key)
    assert (tmp_path / "published" / "manifest.json").read_bytes() == before


def test_a_candidate_whose_files_are_not_what_its_manifest_says_is_not_published(fused, tmp_path, key):
    """Whoever downloads would only find out; the operator's disk is the place to notice."""
    write_fused(fused, tmp_path / "candidate")
    path = tmp_path / "candidate" / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(StateError, match="no longer what was scored"):
        publish_candidate(tmp_path / "candidate", tmp_path / "published", {}, (), key)
    assert names(tmp_path) == ["candidate"]
