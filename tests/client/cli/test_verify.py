"""`verify` and every command that reads a model: each way of tampering is named and ends in 8."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mos_common.fused_model import read_fused
from mos_common.kit import write_kit
from mos_common.signing import key_digest, sign_model
from reference.published import KEYS, Published, change_byte, kit_of, new_candidate, new_published, pem

FILES = ("adapter.safetensors", "embeddings.safetensors", "manifest.json")


@pytest.fixture(scope="session")
def candidate(tiny, make_concept, tmp_path_factory) -> Path:
    return new_candidate(tiny, make_concept, tmp_path_factory.mktemp("published"))


@pytest.fixture(params=list(KEYS))
def published(request, candidate, tmp_path) -> Published:
    return new_published(candidate, tmp_path / "alice", request.param)


def edit_manifest(model: Path, change: Callable[[dict], None]) -> None:
    """Change the manifest, and every digest with it: only the signature can tell."""
    manifest = json.loads((model / "manifest.json").read_bytes())
    change(manifest)
    for name, file in manifest["files"].items():
        data = (model / name).read_bytes()
        file.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    (model / "manifest.json").write_text(json.dumps(manifest))


def swap(model: Path) -> None:
    one, other = model / FILES[0], model / FILES[1]
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def link(path: Path) -> None:
    elsewhere = path.parent.parent.parent / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


TAMPERED = {
    **{f"a byte of {name}": lambda of, name=name: change_byte(of.model / name) for name in FILES[:2]},
    "a byte of the signature": lambda of: change_byte(of.model / of.signature),
    "500 zeros": lambda of: zeroed(of.model / FILES[0]),
    **{f"{name} cut": lambda of, name=name: cut(of.model / name) for name in FILES[:2]},
    "the signature cut": lambda of: cut(of.model / of.signature),
    "the signature removed": lambda of: (of.model / of.signature).unlink(),
    "files swapped": lambda of: swap(of.model),
    "the author changed": lambda of: edit_manifest(of.model, lambda told: told["concepts"][0].update(author="Mallory")),
    "a file and its digest changed": lambda of: (cut(of.model / FILES[0]), edit_manifest(of.model, lambda told: None)),
    "a file no longer listed": lambda of: edit_manifest(of.model, lambda told: told["files"].pop(FILES[0])),
    **{f"{name} a link": lambda of, name=name: link(of.model / name) for name in FILES},
    "the signature a link": lambda of: link(of.model / of.signature),
    "signed by another": lambda of: sign_model(of.model, KEYS[of.signature]()),
    "a second signature": lambda of: sign_model(of.model, KEYS[other(of.signature)]()),
}


def zeroed(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-500] + bytes(500))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def other(signature: str) -> str:
    return next(name for name in KEYS if name != signature)


def test_a_model_as_it_was_published_holds(published, command):
    code, out, err = command("verify", published.model)
    assert (code, err) == (0, "")
    assert "WRONG" not in out
    assert f"signed with the operator's key {key_digest(pem(published.key))[:16]}" in out
    assert "the model of round-001" in out
    assert "<alice/cat>, a cat: author Alice, licence CC0, digest " in out
    for name in FILES[:2]:
        data = (published.model / name).read_bytes()
        assert f"{name}: {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}" in out


@pytest.mark.parametrize("how", TAMPERED)
def test_what_was_tampered_with_is_named_by_verify_and_not_read(published, command, how):
    TAMPERED[how](published)
    code, out, err = command("verify", published.model)
    assert code == 8, (out, err)
    assert "WRONG" in out
    code, out, err = command("inspect", published.model)
    assert code == 8, (out, err)
    assert str(published.model) in err


@pytest.mark.parametrize("how", ["500 zeros", "the author changed", "the signature removed"])
@pytest.mark.parametrize("words", [("draw", "a <alice/cat>", "--steps", "1"), ("export",)], ids=["draw", "export"])
def test_what_was_tampered_with_is_neither_drawn_nor_exported(candidate, command, tmp_path, how, words):
    published = new_published(candidate, tmp_path / "alice", "model.sig")
    TAMPERED[how](published)
    code, out, err = command(words[0], published.model, *words[1:], "--out", "made.png")
    assert code == 8, (out, err)
    assert not Path("made.png").exists()


@pytest.mark.parametrize("name", [*FILES, "model.sig"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(candidate, command, tmp_path, name):
    published = new_published(candidate, tmp_path / "alice", "model.sig")
    (published.model / name).unlink()
    os.mkfifo(published.model / name)
    for words in ("verify", "inspect"):
        assert command(words, published.model)[0] == 8, words


def test_a_changed_byte_of_the_manifest_is_never_read(published, command):
    """It may be one that makes it another manifest, or none at all."""
    change_byte(published.model / "manifest.json")
    assert command("verify", published.model)[0] == 8
    assert command("inspect", published.model)[0] in (6, 8)  # 6: no longer a manifest


def test_a_copy_under_another_round_s_name_is_refused(published, command):
    shutil.copytree(published.model, published.model.with_name("round-008"))
    shutil.copytree(published.model, published.model.with_name("favourite"))
    code, out, _ = command("verify", published.model.with_name("round-008"))
    assert (code, "has the model of round-001, not of round-008" in out) == (8, True)
    assert command("inspect", published.model.with_name("round-008"))[0] == 8
    assert command("verify", published.model.with_name("favourite"))[0] == 0


def test_a_file_that_nobody_listed_is_told_and_decides_nothing(published, command):
    (published.model / "model.safetensors").write_bytes((published.model / FILES[0]).read_bytes())
    code, out, _ = command("verify", published.model)
    assert code == 8
    assert "'model.safetensors' is in the folder and not in the manifest" in out
    assert read_fused(published.model).vocabulary.keys() == {"<alice/cat>", "<bob/dog>"}


def test_a_copy_elsewhere_is_verified_with_a_kit_and_else_said_to_be_unverified(published, command, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(published.model, copy)
    code, out, _ = command("verify", copy)
    assert (code, "by whom was not checked: give the kit" in out) == (0, True)
    assert command("verify", copy, "--kit", published.kit)[0] == 0
    code, out, _ = command("inspect", copy, "--kit", published.kit)
    assert (code, f"as in the kit {published.kit}" in out) == (0, True)
    write_kit(kit_of(pem(KEYS[published.signature]()), tmp_path / "pki2"), tmp_path / "other.kit")
    for words in (
        ("verify", copy),
        ("inspect", copy),
        ("draw", copy, "a cat", "--out", "p.png"),
        ("export", copy, "--out", "x"),
    ):
        code, out, err = command(*words, "--kit", tmp_path / "other.kit")
        assert (code, "was not signed by this federation's operator" in out + err) == (8, True), words


def test_what_was_fused_by_hand_is_drawn_and_said_to_be_unsigned(candidate, command, tmp_path, caplog):
    shutil.copytree(candidate, tmp_path / "fused")
    code, out, _ = command("verify", tmp_path / "fused")
    assert (code, "is not signed: nobody vouches for it" in out) == (0, True)
    with caplog.at_level("INFO", "mos_common"):
        assert command("draw", tmp_path / "fused", "a <bob/dog>", "--out", "p.png", "--steps", "1")[0] == 0
    assert "is not signed" in caplog.text
    change_byte(tmp_path / "fused" / FILES[1])
    code, _, err = command("draw", tmp_path / "fused", "a <bob/dog>", "--out", "p.png", "--steps", "1")
    assert (code, "was changed after it was written: fuse or download the model again" in err) == (8, True)


def test_inspect_tells_who_is_in_a_model_how_it_was_fused_and_how_large_it_is(published, command):
    code, out, _ = command("inspect", published.model)
    assert code == 0
    size = sum((published.model / name).stat().st_size for name in FILES[:2])
    for told in (f"{size:,} bytes", "signed with the operator's key", "round-001", "method      average", "<bob/dog>"):
        assert told in out


def test_the_printed_key_is_the_operator_s(published, command):
    code, out, _ = command("verify", published.model, "--print-key")
    assert (code, out) == (0, pem(published.key))
    change_byte(published.model / FILES[0])
    code, out, err = command("verify", published.model, "--print-key")
    assert (code, out) == (8, "")
    assert "WRONG" in err


def test_a_kit_with_a_concept_file_is_a_mistake(command, published):
    Path("cat.safetensors").write_bytes(b"")
    for words in (("inspect",), ("draw", "a cat"), ("export",)):
        out = () if words[0] == "inspect" else ("--out", "x.png")
        code, _, err = command(words[0], "cat.safetensors", *words[1:], *out, "--kit", published.kit)
        assert (code, "a concept file is not signed" in err) == (2, True), words


def test_old_texts_are_shown_by_their_code_points(published, command):
    """Release 0.1.0 admitted them; their models stay verifiable, and turn no line of a terminal."""
    edit_manifest(
        published.model, lambda told: told["concepts"][0].update(author="A\u202eecila")
    )  # in other fields, too:
    edit_manifest(published.model, lambda told: told["settings"].update({"\u202ex": "\u200by"}))
    sign_model(published.model, published.key)
    for words in ("verify", "inspect"):
        code, out, _ = command(words, published.model)
        assert (code, "A\\u202eecila" in out, "\u202e" in out) == (0, True, False)


def test_a_folder_that_is_no_model_is_said_to_be_none(command, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        code, _, err = command("verify", folder)
        assert (code, "manifest.json is missing" in err) == (6, True)


@pytest.mark.parametrize("text", ['{"files": {}}', "[]", "{}", '{"files": {"a": 1, "a": 2}}', "[" * 50_000, "nul"])
def test_a_manifest_of_another_form_is_told_by_verify(published, command, text):
    (published.model / "manifest.json").write_text(text)
    assert command("verify", published.model)[0] == 8


def test_the_operator_s_own_folder_is_verified_by_its_key(candidate, published, command, tmp_path):
    """As `mos-server export` reads it; a candidate that was held back bears no signature."""
    state = tmp_path / "federation"
    (state / "pki").mkdir(parents=True)
    (state / "pki" / "signing.pub").write_text(pem(published.key))
    (state / "config.json").write_text("{}")
    shutil.copytree(published.model, state / "models" / "round-001")
    shutil.copytree(candidate, state / "models" / "round-001-candidate")
    assert command("verify", state / "models" / "round-001")[0] == 0
    code, out, _ = command("verify", state / "models" / "round-001-candidate")
    assert (code, "is not signed" in out) == (0, True)
    (state / "pki" / "signing.pub").write_text(pem(KEYS[published.signature]()))
    assert command("verify", state / "models" / "round-001")[0] == 8
