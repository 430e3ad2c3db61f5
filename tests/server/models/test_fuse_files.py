"""`mos-server fuse` and `mos-server export`: files in, one folder out, and their errors."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from mos_client.inspection.fused import verify_folder
from mos_common.concept_file import write_concept
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError, StateError
from mos_common.fused_model import read_fused
from mos_common.shell import run
from mos_server.cli.main import app
from mos_server.fusion.methods import METHODS
from mos_server.fusion.ordinary_folder import CACHE
from mos_server.models import fuse_files as fuse_command
from mos_server.models.fuse_files import fuse_files

QUICK = ("--set", "contexts=V", "--set", 'ordinary=[""]', "--set", "steps=1", "--set", "guidance=1")
QUICK_BY_METHOD = {
    "gradient": QUICK,
    "lbfgs": ("--set", "text_iterations=1", "--set", "unet_iterations=1", "--set", "steps=1"),
    "loraclr": ("--set", "iterations=1", "--set", "steps=1"),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tiny, tmp_path):
    """The base that is loaded already, and nothing that another test recorded of it."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(fuse_command, "load_base", lambda *_, **__: tiny)
    monkeypatch.setattr("mos_common.base_model.load_base", lambda *_, **__: tiny)


@pytest.fixture
def files(tiny, make_concept, tmp_path) -> list[str]:
    for seed, name in enumerate(("cat", "dog")):
        write_concept(make_concept(tiny, f"<{name}>", seed=seed), tmp_path / f"{name}.safetensors")
    return [str(tmp_path / f"{name}.safetensors") for name in ("cat", "dog")]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line as a shell would: exit code, stdout, stderr."""

    def shell(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mos-server", *words])
        code = 0
        try:
            run(app)
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return shell


def test_files_become_one_folder(command, files, tmp_path):
    out = tmp_path / "fused"
    code, said, progress = command("fuse", *files, "--out", str(out), *QUICK)
    assert code == 0
    assert sorted(read_fused(out).vocabulary) == ["<cat>", "<dog>"]
    assert "<cat>  energy kept: text 0." in said
    assert f"mos-client draw {out}" in said
    assert "1/3" in progress and "about" in progress and "layers solved" in progress


def test_own_changes_are_written_beside_the_model_and_verified(command, files, tmp_path):
    """Each concept has a folder that the manifest names; a model without them verifies."""
    code, _, err = command("fuse", *files, "--out", str(tmp_path / "fused"), *QUICK, "--publish", "own")
    assert code == 0, err
    own = {token: tmp_path / "fused.own" / token[1:-1] for token in ("<cat>", "<dog>")}
    named = {each.token: each.own for each in read_fused(tmp_path / "fused").manifest.concepts}
    for token, folder in own.items():
        assert named[token] == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    verdict = verify_folder(tmp_path / "fused")
    assert verdict.wrong == 0
    assert sum("own changes of" in line for line in verdict.lines) == len(own)
    shutil.rmtree(own["<cat>"])
    assert verify_folder(tmp_path / "fused").wrong == 0
    (own["<dog>"] / "adapter.safetensors").write_bytes(b"")
    assert verify_folder(tmp_path / "fused").wrong == 1


def test_without_the_flag_a_manifest_is_as_earlier_releases_read_it(command, files, tmp_path):
    command("fuse", *files, "--out", str(tmp_path / "fused"), *QUICK)
    assert not (tmp_path / "fused.own").exists()
    assert all(
        "own" not in concept for concept in json.loads((tmp_path / "fused/manifest.json").read_text())["concepts"]
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_method(command, files, tmp_path, method):
    few = QUICK_BY_METHOD.get(method, ())
    code, _, _ = command("fuse", *files, "--out", str(tmp_path / "fused"), "--method", method, *few)
    assert code == 0
    assert read_fused(tmp_path / "fused").manifest.method == method


def test_flags_and_set_arrive_as_settings_and_weights(command, files, tmp_path):
    """And moments that were kept are found again."""
    flags = (*QUICK, "--ridge", "0.5", "--set", "cap=3", "--weight", "<cat>=2", "--moments", str(tmp_path / "kept"))
    assert command("fuse", *files, "--out", str(tmp_path / "fused"), *flags)[0] == 0
    manifest = json.loads((tmp_path / "fused" / "manifest.json").read_bytes())
    given = {name: manifest["settings"][name] for name in ("ridge", "cap", "contexts", "ordinary", "guidance")}
    assert given == {"ridge": 0.5, "cap": 3.0, "contexts": ["V"], "ordinary": [""], "guidance": 1.0}
    assert {concept["token"]: concept["weight"] for concept in manifest["concepts"]} == {"<cat>": 2.0, "<dog>": 1.0}
    code, _, progress = command("fuse", *files, "--out", str(tmp_path / "again"), *flags)
    assert code == 0
    assert progress.count("3 of 3 known") == 3
    for file in ("adapter.safetensors", "embeddings.safetensors", "manifest.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "fused" / file).read_bytes()


def test_help_lists_every_setting_of_every_method_with_default_and_meaning(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    code, said, _ = command("fuse", "--help")
    assert code == 0
    for line in (
        "preset=identity: ",
        "preserve=none: μ",
        "cap=4.0: energy",
        "density=0.2: share",
        "guidance=1.0: guidance",
    ):
        assert line in said
    assert all(f"--method {method}: " in said for method in METHODS)


def test_the_order_of_the_files_does_not_matter(command, files, tmp_path):
    command("fuse", *files, "--out", str(tmp_path / "one"), *QUICK)
    command("fuse", *reversed(files), "--out", str(tmp_path / "other"), *QUICK)
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (tmp_path / "other" / "manifest.json").read_bytes()


def fails(outcome: tuple[int, str, str], code: int, *words: str) -> None:
    """One line on stderr, the right exit code, nothing on stdout."""
    assert outcome[0] == code, outcome
    assert outcome[1] == ""
    lines = [line for line in outcome[2].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert [word for word in words if word not in lines[0]] == []


def test_an_out_that_exists_is_refused(command, files, tmp_path):
    (tmp_path / "fused").mkdir()
    fails(command("fuse", *files, "--out", str(tmp_path / "fused")), 9, "already exists", "choose another --out")


def test_an_unknown_method_lists_the_known(command, files, tmp_path):
    outcome = command("fuse", *files, "--out", str(tmp_path / "fused"), "--method", "magic")
    fails(outcome, 2, "unknown method 'magic'", "gradient, average, sum")
    assert not (tmp_path / "fused").exists()


def test_a_ridge_out_of_range_is_refused(command, files, tmp_path):
    fails(command("fuse", *files, "--out", str(tmp_path / "fused"), "--ridge", "0"), 2, "ridge 0.0")


def test_a_setting_that_the_method_does_not_have_names_the_method_and_the_nearest(command, files, tmp_path):
    outcome = command("fuse", *files, "--out", str(tmp_path / "fused"), "--method", "ties", "--set", "densty=1")
    fails(outcome, 2, "method ties", "unknown setting 'densty'", "did you mean density")


def test_a_setting_given_by_flag_and_by_set_is_refused(command, files, tmp_path):
    outcome = command("fuse", *files, "--out", str(tmp_path / "fused"), "--preserve", "1", "--set", "preserve=2")
    fails(outcome, 2, "preserve is given twice")


def test_a_missing_file_is_named(command, files, tmp_path):
    gone = str(tmp_path / "gone.safetensors")
    fails(command("fuse", files[0], gone, "--out", str(tmp_path / "fused")), 5, gone)


def test_a_file_that_is_no_concept_is_named(command, files, tmp_path):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not a concept")
    fails(command("fuse", files[0], str(bad), "--out", str(tmp_path / "fused")), 5, str(bad))


def test_a_file_that_is_not_admitted_is_named(command, files, tiny, make_concept, tmp_path):
    concept = make_concept(tiny, "<loud>")
    name, pair = next(iter(concept.pairs.items()))
    concept.pairs[name] = LowRank(pair.A, pair.B * 1e3, pair.alpha)
    loud = tmp_path / "loud.safetensors"
    write_concept(concept, loud, torch.float32)
    outcome = command("fuse", files[0], str(loud), "--out", str(tmp_path / "fused"))
    fails(outcome, 5, str(loud), "<loud>", "is changed by norm")


def test_the_same_file_twice_is_an_error(command, files, tmp_path):
    fails(command("fuse", files[0], files[0], "--out", str(tmp_path / "fused")), 6, "two concepts are called <cat>")


def test_a_concept_of_another_base_says_what_to_do(command, files, sixteen, make_concept, tmp_path):
    other = tmp_path / "other.safetensors"
    write_concept(make_concept(sixteen, "<other>"), other)
    fails(command("fuse", files[0], str(other), "--out", str(tmp_path / "fused")), 5, str(other), "--base")


def test_no_files_and_unknown_flags_are_2(command, files, tmp_path):
    assert command("fuse", "--out", str(tmp_path / "fused"))[0] == 2
    assert command("fuse", *files, "--out", str(tmp_path / "fused"), "--colour", "red")[0] == 2
    assert command("fuse", *files)[0] == 2


def test_ctrl_c_is_130(command, files, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fuse_command, "fuse", interrupted)
    assert command("fuse", *files, "--out", str(tmp_path / "fused"))[0] == 130
    assert not (tmp_path / "fused").exists()


def test_an_export_is_written_and_told(command, files, tmp_path):
    command("fuse", *files, "--out", str(tmp_path / "fused"), "--method", "average")
    code, said, _ = command("export", str(tmp_path / "fused"), "--format", "diffusers", "--out", str(tmp_path / "full"))
    assert (code, said) == (0, f"{tmp_path / 'full'}\n")
    assert (tmp_path / "full" / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("model", "flags", "code", "words"),
    [
        ("nowhere", (), 6, ("is not a fused model",)),
        ("fused", ("--format", "onnx"), 2, ("--format onnx", "diffusers")),
    ],
)
def test_an_export_that_cannot_be_is_one_line(command, files, tmp_path, model, flags, code, words):
    command("fuse", *files, "--out", str(tmp_path / "fused"), "--method", "average")
    fails(command("export", str(tmp_path / model), *flags, "--out", str(tmp_path / "full")), code, *words)


def test_the_function_says_the_same_as_the_command(files, tmp_path):
    with pytest.raises(ConceptError, match=r"gone\.safetensors"):
        fuse_files([tmp_path / "gone.safetensors"], tmp_path / "fused")
    with pytest.raises(StateError):
        fuse_files([Path(files[0])], tmp_path)
