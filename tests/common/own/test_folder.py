"""The folder of one concept's own changes: what it holds, and whatever may differ."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.torch import load_file, save_file

from mos_common.edlora import LowRank
from mos_common.errors import ConceptError, TrustError
from mos_common.fused_model import FusedConcept, Manifest, NamedConcept
from mos_common.layers import Group
from mos_common.model_folder import Trust
from mos_common.own.folder import examine_own, read_own, read_own_manifest
from mos_common.own.names import beside, own_digests, own_folder
from mos_server.models.own import own_files, write_own
from mos_server.state.artefacts import remove_own

TOKENS = ("<alice/cat>", "<bob/dog>")


def named(base, make_concept, token: str, seed: int = 0) -> NamedConcept:
    participant, _, name = token[1:-1].partition("/")
    return NamedConcept(participant, make_concept(base, f"<{name}>", seed=seed))


def manifest_of(base, own: dict) -> Manifest:
    concepts = [
        FusedConcept(
            token=token,
            participant=token[1:].partition("/")[0],
            name=f"<{token.partition('/')[2]}",
            class_word="thing",
            digest=json.loads(files.manifest)["digest"],
            licence="",
            author="",
            survival={},
            own=files.digest,
        )
        for token, files in own.items()
    ]
    return Manifest(base=base.fingerprint, base_name="tiny", method="sum", settings={}, versions={}, concepts=concepts)


@pytest.fixture
def own(sixteen, make_concept) -> dict:
    return {token: own_files(named(sixteen, make_concept, token, seed), sixteen) for seed, token in enumerate(TOKENS)}


@pytest.fixture
def model(tmp_path: Path, own) -> Path:
    """A path beside which own changes lie: they are read without the model's own files."""
    write_own(tmp_path / "fused", own)
    return tmp_path / "fused"


@pytest.fixture
def manifest(sixteen, own) -> Manifest:
    return manifest_of(sixteen, own)


def test_what_is_read_is_the_concept_s_spatial_change_and_nothing_else(sixteen, make_concept, model, manifest):
    read = read_own(model, manifest, sixteen, TOKENS)
    spatial = {layer.name for layer in sixteen.layout.by_group[Group.SPATIAL]}
    for seed, token in enumerate(TOKENS):
        pairs = named(sixteen, make_concept, token, seed).concept.pairs
        assert read[token].keys() == pairs.keys() & spatial
        for name, pair in read[token].items():
            torch.testing.assert_close(pair.change(), pairs[name].change())
    assert sorted(path.name for path in own_folder(model, TOKENS[0]).iterdir()) == [
        "adapter.safetensors",
        "manifest.json",
    ]


def test_the_scale_of_a_change_is_in_its_factors(sixteen, make_concept, tmp_path):
    concept = named(sixteen, make_concept, TOKENS[0])
    name = sixteen.layout.by_group[Group.SPATIAL][0].name
    pair = concept.concept.pairs[name]
    concept.concept.pairs[name] = LowRank(pair.A.half(), pair.B.half(), 1.0)
    own = {TOKENS[0]: own_files(concept, sixteen)}
    write_own(tmp_path / "fused", own)
    read = read_own(tmp_path / "fused", manifest_of(sixteen, own), sixteen, TOKENS)[TOKENS[0]][name]
    torch.testing.assert_close(read.change(), concept.concept.pairs[name].change())


def test_the_same_concept_makes_the_same_files(sixteen, make_concept, own):
    assert own_files(named(sixteen, make_concept, TOKENS[0]), sixteen) == own[TOKENS[0]]


def test_only_those_that_are_there_and_asked_for_are_read(sixteen, model, manifest):
    assert read_own(model, manifest, sixteen, [TOKENS[1]]).keys() == {TOKENS[1]}
    assert remove_own(model, [TOKENS[0], "<carol/cup>"]) == [TOKENS[0]]
    assert read_own(model, manifest, sixteen, TOKENS).keys() == {TOKENS[1]}
    remove_own(model, [TOKENS[1]])
    assert not beside(model).exists()


def test_what_the_model_does_not_name_is_not_read(sixteen, model, manifest):
    nobody = manifest.model_copy(
        update={"concepts": [concept.model_copy(update={"own": None}) for concept in manifest.concepts]}
    )
    assert read_own(model, nobody, sixteen, TOKENS) == {}
    assert '"own"' not in nobody.model_dump_json()
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_only_names_and_digests_are_read_from_a_manifest(manifest):
    read = manifest.model_dump(mode="json")
    assert own_digests(read) == {concept.token: concept.own for concept in manifest.concepts}
    assert own_digests({"concepts": [{"token": "<../cat>", "own": "ab" * 32}, {"token": "<cat>", "own": 1}, 7]}) == {}
    assert own_digests({"concepts": 1}) == {}


def test_another_concept_s_folder_is_refused(sixteen, model, manifest):
    own_folder(model, TOKENS[0]).rename(model.parent / "aside")
    own_folder(model, TOKENS[1]).rename(own_folder(model, TOKENS[0]))
    with pytest.raises(TrustError, match=r"alice\.cat is not what the model names for <alice/cat>: download it again"):
        read_own(model, manifest, sixteen, TOKENS)


def test_a_changed_file_is_refused(sixteen, model, manifest):
    path = own_folder(model, TOKENS[0]) / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(TrustError, match=r"adapter\.safetensors of .* was changed after it was written"):
        read_own(model, manifest, sixteen, TOKENS)


def tampered(sixteen, make_concept, tmp_path, change) -> tuple[Path, Manifest]:
    """Write own changes that the model names truly, whose tensors are not what they should be."""
    concept = named(sixteen, make_concept, TOKENS[0])
    write_own(tmp_path / "before", {TOKENS[0]: own_files(concept, sixteen)})
    tensors = load_file(own_folder(tmp_path / "before", TOKENS[0]) / "adapter.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "adapter")
    files = own_files(concept, sixteen)
    described = json.loads(files.manifest)
    data = (tmp_path / "adapter").read_bytes()
    described["files"] = {"adapter.safetensors": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    files = type(files)(data, json.dumps(described).encode())
    write_own(tmp_path / "fused", {TOKENS[0]: files})
    return tmp_path / "fused", manifest_of(sixteen, {TOKENS[0]: files})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("loud", r"is changed by norm .*, at most .* is admitted"),
        ("keys", r"attn2\.to_k is not a spatial layer"),
        ("half", r"its tensors are not pairs lora_A and lora_B"),
        ("shape", r"the base needs"),
        ("infinite", r"holds NaN or infinity"),
        ("other", r"its tensors are not pairs lora_A and lora_B"),
    ],
)
def test_changes_beyond_what_a_round_admits_are_not_used(sixteen, make_concept, tmp_path, what, message):
    name = sixteen.layout.by_group[Group.SPATIAL][0].name
    A, B = f"{name}.lora_A.weight", f"{name}.lora_B.weight"

    def change(tensors: dict) -> None:
        if what == "loud":
            tensors[B] *= 1e4
        elif what == "keys":
            cross = sixteen.layout.by_group[Group.CROSS][0].name
            tensors[f"{cross}.lora_A.weight"], tensors[f"{cross}.lora_B.weight"] = tensors.pop(A), tensors.pop(B)
        elif what == "half":
            del tensors[A]
        elif what == "shape":
            tensors[A] = tensors[A][:, :-1].contiguous()
        elif what == "infinite":
            tensors[A][0, 0] = float("inf")
        else:
            tensors["embeddings.0"] = torch.zeros(1)

    model, manifest = tampered(sixteen, make_concept, tmp_path, change)
    with pytest.raises(ConceptError, match=message):
        read_own(model, manifest, sixteen, TOKENS)


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def test_each_folder_is_signed_by_itself(own, manifest, tmp_path):
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    write_own(tmp_path / "fused", own, key)
    folder = own_folder(tmp_path / "fused", TOKENS[0])
    assert read_own_manifest(folder, manifest.concepts[0], Trust((pem(key),), "a kit")).token == TOKENS[0]
    with pytest.raises(TrustError, match="was not signed by this federation's operator"):
        read_own_manifest(folder, manifest.concepts[0], Trust((pem(other),), "a kit"))
    (folder / "model.sig").unlink()
    with pytest.raises(TrustError, match="is not a signed model"):
        read_own_manifest(folder, manifest.concepts[0], Trust((pem(key),), "a kit"))


def test_verifying_says_what_is_here_what_is_not_and_what_is_wrong(model, manifest):
    def said() -> list[str]:
        return [str(finding.error or finding.text) for finding in examine_own(model, manifest, None)]

    digests = [concept.own for concept in manifest.concepts]
    assert said() == [
        f"own changes of {token}: the folder that the model names, manifest sha256 {digest}"
        for token, digest in zip(TOKENS, digests, strict=True)
    ]
    remove_own(model, [TOKENS[1]])
    assert said()[1] == "own changes of <bob/dog>: not here, and the model is whole without them"
    (own_folder(model, TOKENS[0]) / "notes.txt").touch()
    own_folder(model, "<carol/cup>").mkdir()
    wrong = [str(finding.error) for finding in examine_own(model, manifest, None) if finding.error]
    assert len(wrong) == 2
    assert "'notes.txt' is in" in wrong[0]
    assert "carol.cup is not named by the model: remove it" in wrong[1]
