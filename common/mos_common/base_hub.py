"""Fetch a base model from the Hugging Face hub: only the files that are loaded.

Popular repositories hold each model several times (checkpoints, half precision, averaged weights,
Flax, ONNX, OpenVINO) and a safety checker besides: of 30 GB, Stable Diffusion 1.5 needs 4.3.
Without a network, what an earlier download left in the cache is used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from mos_common.base_names import CACHED, CHECKPOINTS, SNAPSHOTS
from mos_common.base_weights import MODELS, by_folder, choose_weights
from mos_common.errors import BaseModelError

log = logging.getLogger(__name__)

INDEX = "model_index.json"
PATIENCE_S = 30
TOKENIZERS = ("tokenizer", "tokenizer_2")
TOKENIZER_FILES = {
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}


def needed_files(name: str, files: Iterable[str]) -> list[str]:
    """Return those files of a repository that loading it as a base model reads.

    Raises:
        BaseModelError: it is not a diffusers repository, or a part has no weights that we read.

    """
    folders = by_folder(files)
    if INDEX not in folders.get("", []):
        single = [file for file in folders.get("", []) if file.endswith(CHECKPOINTS)]
        advice = (
            f"download one of its checkpoints ({', '.join(sorted(single)[:4])}) and give the file"
            if single
            else "give the id of a model in diffusers' layout"
        )
        raise BaseModelError(f"{name} is not a diffusers repository (it has no {INDEX}): {advice}")
    needed = [INDEX]
    for part, held in folders.items():
        if part in MODELS:
            needed += [f"{part}/config.json", *(f"{part}/{file}" for file in _weights(name, part, held))]
        elif part in TOKENIZERS:
            needed += [f"{part}/{file}" for file in held if file in TOKENIZER_FILES]
        elif part == "scheduler":
            needed.append("scheduler/scheduler_config.json")
    return sorted(needed)


def fetch_base(name: str) -> Path:
    """Return the folder of a model of the hub, downloaded into its cache or already there.

    Raises:
        BaseModelError: it is not there, is not open to us, or has no usable files.

    """
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        info = HfApi().model_info(name, timeout=PATIENCE_S, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted = needed_files(name, sizes)
        log.info("%s: %d files, %.1f GB, are needed", name, len(wanted), sum(sizes.get(f, 0) for f in wanted) / 1e9)
        return Path(snapshot_download(name, allow_patterns=wanted))
    except BaseModelError:
        raise
    # Errors of the HTTP library come through, and each version of the hub's has another library.
    except Exception as error:
        cached = Path(constants.HF_HUB_CACHE) / f"{CACHED}{name.replace('/', '--')}"
        if not (cached / SNAPSHOTS).is_dir():
            raise BaseModelError(f"no base model at {name}: there is no such folder, and {_why(error)}") from error
        log.info("%s: %s; the copy in the hub's cache is used", name, _why(error))
        return snapshot_of(name, cached)


def snapshot_of(name: str, cached: Path) -> Path:
    """Return the snapshot of a model in the hub's cache that refs/main names, or its only one.

    Raises:
        BaseModelError: there is none, or there are several.

    """
    there = sorted(path for path in (cached / SNAPSHOTS).iterdir() if path.is_dir())
    main = cached / "refs" / "main"
    if main.is_file():
        named = cached / SNAPSHOTS / main.read_text(encoding="utf-8").strip()
        if named in there:
            return named
    if len(there) == 1:
        return there[0]
    if not there:
        raise BaseModelError(f"{name} is a model of the hub's cache without a snapshot: download it again")
    raise BaseModelError(
        f"{name} holds {len(there)} snapshots, and its refs/main names none of them: give one, "
        + " or ".join(str(path) for path in there[:4])
    )


def _weights(name: str, part: str, held: Iterable[str]) -> tuple[str, ...]:
    return choose_weights(part, held, f"{name}/{part}").names


def _why(error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return "the hub gives it only to who accepted its licence: accept it on its page, then run hf auth login"
    if isinstance(error, HFValidationError):
        return "the hub has no ids like that: expected owner/model"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such model (or it is private: run hf auth login)"
    if isinstance(error, OfflineModeIsEnabled):
        return (
            "HF_HUB_OFFLINE forbids to ask the hub: unset it, or download the model on another machine and give "
            "its folder"
        )
    return (
        f"the hub cannot be reached ({type(error).__name__}): connect to the network, or download the model on "
        "another machine and give its folder"
    )
