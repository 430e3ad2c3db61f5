"""A published model, and who verifies it: our commands as processes, and the field's own tool.

The tool is OpenSSF's `model_signing`. It knows nothing of this project: whatever it accepts,
anybody can verify without our code.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reference.published import Published, change_byte, new_candidate, new_published, pem

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def published(tiny, make_concept, tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("verify")
    return new_published(new_candidate(tiny, make_concept, folder), folder / "alice", "model.sig")


@pytest.fixture
def copy(published: Published, tmp_path: Path) -> Published:
    """Return a copy of the participant's folder, to tamper with."""
    shutil.copytree(published.state, tmp_path / "alice")
    return Published(tmp_path / "alice", published.key, published.signature)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300, check=False)


def tool(model: Path, key: Path) -> subprocess.CompletedProcess[str]:
    """Run `model_signing verify key` as docs/participating.md says."""
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    command = ["verify", "key", model, "--signature", model / "model.sig", "--public_key", key]
    return run(sys.executable, "-m", "model_signing", *command)


def add_a_file(model: Path) -> None:
    (model / "more.safetensors").write_bytes(b"more")


def swap(model: Path) -> None:
    adapter, embeddings = (model / f"{name}.safetensors" for name in ("adapter", "embeddings"))
    adapter.rename(model / "aside")
    embeddings.rename(adapter)
    (model / "aside").rename(embeddings)


def link(model: Path) -> None:
    (model / "adapter.safetensors").rename(model.parent / "elsewhere")
    (model / "adapter.safetensors").symlink_to(model.parent / "elsewhere")


TAMPERED: dict[str, Callable[[Path], object]] = {
    "a byte of the adapter": lambda model: change_byte(model / "adapter.safetensors"),
    "a byte of the manifest": lambda model: change_byte(model / "manifest.json"),
    "a byte of the signature": lambda model: change_byte(model / "model.sig"),
    "a file added": add_a_file,
    "a file removed": lambda model: (model / "embeddings.safetensors").unlink(),
    "files swapped": swap,
    "a link": link,
}


def test_the_field_s_own_tool_verifies_a_published_model_with_the_printed_key(published, tmp_path):
    printed = run(BIN / "mos-client", "verify", published.model, "--print-key")
    assert (printed.returncode, printed.stderr) == (0, "")
    (tmp_path / "operator.pem").write_text(printed.stdout)
    done = tool(published.model, tmp_path / "operator.pem")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verification succeeded" in done.stdout + done.stderr


@pytest.mark.parametrize("how", TAMPERED)
def test_the_field_s_own_tool_refuses_what_was_tampered_with(copy, tmp_path, how):
    (tmp_path / "operator.pem").write_text(pem(copy.key))
    TAMPERED[how](copy.model)
    done = tool(copy.model, tmp_path / "operator.pem")
    assert done.returncode != 0
    assert "Verification succeeded" not in done.stdout + done.stderr


def test_the_commands_read_a_model_that_holds(published, tmp_path):
    verified = run(BIN / "mos-client", "verify", published.model)
    assert (verified.returncode, "WRONG" in verified.stdout) == (0, False), verified.stderr
    drawn = run(
        BIN / "mos-client", "draw", published.model, "a <alice/cat>", "--steps", "1", "--out", tmp_path / "p.png"
    )
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "words",
    [
        ("mos-client", "verify"),
        ("mos-client", "draw", "a <alice/cat>", "--out", "made"),
        ("mos-server", "export", "--format", "lora", "--out", "made"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_command_reads_a_model_of_which_500_bytes_were_zeroed(copy, words, tmp_path):
    adapter = copy.model / "adapter.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-500] + bytes(500))
    outputs = [tmp_path / "made.safetensors" if word == "made" else word for word in words[2:]]
    if words[1] == "draw":
        outputs[-1] = tmp_path / "made.png"
    done = run(BIN / words[0], words[1], copy.model, *outputs)
    assert done.returncode == 8, done.stdout + done.stderr
    assert "adapter.safetensors" in done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alice"]


def test_a_model_whose_signature_was_taken_away_is_not_taken_for_one_fused_by_hand(copy):
    (copy.model / "model.sig").unlink()
    done = run(BIN / "mos-client", "verify", copy.model)
    assert (done.returncode, "is not a signed model" in done.stdout) == (8, True)
