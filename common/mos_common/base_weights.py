"""Which weight files of a diffusers folder are loaded, or downloaded, when it has several.

Each part has its own choice, so folders whose parts differ work:

    1. full precision         diffusion_pytorch_model.safetensors, else .bin
    2. the variant fp16       diffusion_pytorch_model.fp16.safetensors, else .bin
    3. the one other variant  such as bf16 or non_ema; of several, none is guessed

Full precision and fp16 have the same fingerprint, so full precision is preferred for its bits only.
A set of shards counts if its index and all its shards are there. OpenVINO, ONNX and Flax have other
names, and are not among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mos_common.errors import BaseModelError
from mos_common.safe_reading import check_pickle

MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")
FULL, HALF = "", "fp16"
SAFETENSORS, PICKLE = "safetensors", "bin"
# diffusers writes X.fp16-00001-of-00002.safetensors, and earlier X-00001-of-00002.fp16.safetensors
FILE = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>[\w-]+?))?"
    r"(?:-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?"
    r"(?:\.(?P<late>[\w-]+))?"
    r"\.(?P<format>safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<of_index>[\w-]+))?\.json)?"
)
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class WeightFiles:
    """One set of files with all weights of a part: one file, or an index and its shards."""

    variant: str
    format: str
    names: tuple[str, ...]

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments with which `from_pretrained` reads this set."""
        variant = {"variant": self.variant} if self.variant else {}
        return {**variant, "use_safetensors": self.format == SAFETENSORS}


def choose_weights(part: str, names: Iterable[str], where: str) -> WeightFiles:
    """Return the files to load for one part, of all the names in its folder.

    Raises:
        BaseModelError: there are no weights that we can read, or only several unknown variants.

    """
    held = sorted(names)
    sets = {(files.variant, files.format): files for files in _complete_sets(part, held)}
    for variant in (FULL, HALF):
        for format_ in (SAFETENSORS, PICKLE):
            if (variant, format_) in sets:
                return sets[variant, format_]
    others = sorted({variant for variant, _ in sets})
    if len(others) == 1:
        return sets.get((others[0], SAFETENSORS)) or sets[others[0], PICKLE]
    if others:
        raise BaseModelError(
            f"{where} has the variants {', '.join(others)} and neither full precision nor fp16: keep the one to use, "
            "and move the others away"
        )
    weights = [name for name in held if not name.endswith((".json", ".txt", ".md"))]
    raise BaseModelError(
        f"{where} has no whole set of weights that diffusers reads (safetensors or .bin): it holds "
        f"{', '.join(weights[:6]) or 'none at all'}. Download the model again, as safetensors"
    )


def source_of(folder: Path) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` loads the part in this folder.

    Raises:
        BaseModelError: its weights cannot be chosen, or were not downloaded.

    """
    there = [file for file in folder.iterdir() if file.is_file()]
    broken = [file for file in folder.iterdir() if file.is_symlink() and not file.exists()]
    if broken and not any(FILE.fullmatch(file.name) for file in there):
        raise BaseModelError(
            f"{broken[0]} is a link to {broken[0].readlink()}, which is not there: copy the model again, with the "
            "files that links stand for (cp -rL)"
        )
    chosen = choose_weights(folder.name, (file.name for file in there), str(folder))
    for name in chosen.names:
        with (folder / name).open("rb") as opened:
            if opened.read(len(LFS)) == LFS:
                raise BaseModelError(
                    f"{folder / name} is a Git LFS pointer, not the weights: fetch them with git lfs pull, "
                    "or download the model again"
                )
        if name.endswith(f".{PICKLE}"):
            check_pickle(folder / name)
    return chosen.arguments


def by_folder(names: Iterable[str]) -> Mapping[str, list[str]]:
    """Sort the files of a repository by their folder; "" is the top."""
    found: dict[str, list[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        found.setdefault("" if path.parent == PurePosixPath() else str(path.parent), []).append(path.name)
    return found


def _complete_sets(part: str, names: list[str]) -> Iterable[WeightFiles]:
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name in names:
        match = FILE.fullmatch(name)
        if match is None or match["stem"] not in _stems(part, match["format"]):
            continue
        variant = match["variant"] or match["late"] or match["of_index"] or FULL
        kind = "index" if match["index"] else f"shards of {match['shards']}" if match["shard"] else "whole"
        found.setdefault((variant, match["format"]), {}).setdefault(kind, []).append(name)
    for (variant, format_), kinds in found.items():
        if "whole" in kinds:
            yield WeightFiles(variant, format_, tuple(kinds["whole"]))
        for kind, shards in kinds.items():
            if kind.startswith("shards") and len(shards) == int(kind.split()[-1]) and "index" in kinds:
                yield WeightFiles(variant, format_, (*kinds["index"], *shards))


def _stems(part: str, format_: str) -> tuple[str, ...]:
    """Return the names that a part's library gives to its weights."""
    if part in ("unet", "vae"):
        return ("diffusion_pytorch_model",)
    return ("model",) if format_ == SAFETENSORS else ("pytorch_model",)
