"""The product does its work on every set of libraries that it claims to work with.

`make oldest` and `make newest` run this in their environments; `make test` in the tested one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from packaging.version import Version
from PIL import Image

from libraries.environment import declared, oldest, pinned_torch

BIN = Path(sys.executable).parent
FEW = ("--set", "steps=2")


def run(command: str, *arguments: object) -> str:
    done = subprocess.run([BIN / command, *map(str, arguments)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} {arguments[0]}: {done.stderr}"
    return done.stdout


def test_a_concept_is_tuned_fused_exported_imported_and_drawn(
    make_pictures: Callable[..., Path], tmp_path: Path
) -> None:
    """One picture comes out of each way through the commands, on `tiny` itself."""
    cat, dog, fused, lora = (
        tmp_path / name for name in ("cat.safetensors", "dog.safetensors", "fused", "lora.safetensors")
    )
    of_cat = ("--concept", "<cat>", "--class", "cat")
    run("mos-client", "check", make_pictures(), "--out", tmp_path / "check.png")
    run("mos-client", "tune", tmp_path / "pictures", *of_cat, "--steps", 3, "--out", cat)
    run("mos-server", "fuse", cat, "--out", tmp_path / "alone", *FEW)
    run("mos-server", "export", tmp_path / "alone", "--out", lora, "--format", "lora")
    run(
        "mos-client",
        "import",
        lora,
        tmp_path / "lora.words" / "cat.safetensors",
        "--concept",
        "<dog>",
        "--class",
        "dog",
        "--out",
        dog,
    )
    run("mos-server", "fuse", cat, dog, "--out", fused, *FEW)
    run("mos-server", "export", fused, "--out", tmp_path / "folder")
    for number, model in enumerate((cat, fused)):
        picture = tmp_path / f"{number}.png"
        run("mos-client", "draw", model, "<cat> on the beach", "--steps", 2, "--out", picture)
        with Image.open(picture) as drawn:
            assert drawn.size == (64, 64)
    from diffusers import DiffusionPipeline

    assert DiffusionPipeline.from_pretrained(tmp_path / "folder").unet is not None


def test_every_requirement_declares_the_oldest_version_that_works() -> None:
    """`make oldest` installs just these bounds, and no newer version satisfies them by chance."""
    bounds = {line.partition("==")[0]: line.partition("==")[2] for line in oldest()}
    assert bounds.keys() == {requirement.name for requirement in declared()} - {"torch"}
    assert Version(bounds["transformers"]) >= Version("5.6")  # before it, the text encoder of `tiny` loads as noise


def test_the_pinned_torch_satisfies_what_is_declared() -> None:
    """constraints.txt never pins a torch that pyproject.toml excludes."""
    (torch,) = (requirement for requirement in declared() if requirement.name == "torch")
    assert torch.specifier.contains(pinned_torch().partition("==")[2])
