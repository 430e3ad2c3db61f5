"""Find the files of a base model in every layout that people have.

`tiny`                  the embedded model
a folder                as diffusers' save_pretrained writes it, with any variant
a folder models--x--y   of the hub's cache: the snapshot that refs/main names
a file                  a single-file checkpoint, .safetensors or .ckpt
owner/model             a model of the hub, fetched or from its cache
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mos_common.base_hub import INDEX, fetch_base, snapshot_of
from mos_common.base_names import CACHED, CHECKPOINTS, SNAPSHOTS, TINY
from mos_common.base_weights import source_of
from mos_common.errors import BaseModelError
from mos_common.single_file_base import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from torch import nn
    from transformers import CLIPTokenizer

ADAPTERS = ("adapter_config.json", "pytorch_lora_weights.safetensors", "adapter.safetensors")
ARCHIVES = (".zip", ".tar", ".gz", ".xz", ".7z", ".rar")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
WHAT = "`tiny`, a diffusers folder, a checkpoint file (.safetensors, .ckpt), or a hub id such as owner/model"


@dataclass(frozen=True)
class BaseFiles:
    """The files of a base model: `folder` has model_index.json and every part's configuration.

    `checkpoint` is the open single file, if the weights are in one. `scheduler_arguments` go to the
    scheduler's `from_pretrained`.
    """

    name: str
    folder: Path
    checkpoint: Checkpoint | None = None
    scheduler_arguments: Mapping[str, Any] = field(default_factory=dict)

    def load_model(self, part: str, kind: Any) -> tuple[nn.Module, dict[str, Any]]:
        """Return a part as a model of class `kind`, float32, and what did not fit.

        The second value is what `from_pretrained(output_loading_info=True)` returns: the missing,
        the unexpected and the mismatched tensors. The caller judges it.

        Raises:
            BaseModelError: the weights cannot be chosen or read.

        """
        import torch

        if self.checkpoint is not None:
            return self.checkpoint.load_model(part, kind)
        own: dict[str, Any] = (
            {"low_cpu_mem_usage": False}
            if hasattr(kind, "load_config")  # of diffusers
            else {"return_dict": True, "output_hidden_states": False, "output_attentions": False}
        )
        loaded: tuple[nn.Module, dict[str, Any]] = kind.from_pretrained(
            self.folder / part,
            dtype=torch.float32,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **source_of(self.folder / part),
            **own,
        )
        return loaded

    def load_tokenizer(self, part: str) -> CLIPTokenizer:
        """Return the tokenizer of a part."""
        from transformers import CLIPTokenizer

        if self.checkpoint is not None:
            return self.checkpoint.load_tokenizer(part)
        return CLIPTokenizer.from_pretrained(self.folder / part, local_files_only=True)


def find_base(name: str) -> BaseFiles:
    """Find the files of a base model.

    Raises:
        BaseModelError: there is none, or it is not a base model; the message says what it is.

    """
    if name == TINY:
        from mos_tiny import base_folder

        return BaseFiles(name, base_folder())
    path = Path(name).expanduser()
    try:
        if path.is_file():
            return _file(name, path)
        if path.is_dir():
            return BaseFiles(name, _diffusers_folder(name, path))
        if path.is_symlink():
            raise BaseModelError(f"{name} is a link to {path.readlink()}, which is not there")
    except OSError as error:
        raise BaseModelError(f"{name} cannot be read: {error.strerror or error}") from error
    if not HUB_ID.fullmatch(name) or path.suffix in CHECKPOINTS:
        raise BaseModelError(f"no base model at {name}: there is no such file or folder. Give {WHAT}")
    return BaseFiles(name, _diffusers_folder(name, fetch_base(name)))


def _file(name: str, path: Path) -> BaseFiles:
    if path.suffix.lower() in ARCHIVES:
        raise BaseModelError(f"{name} is an archive, not a base model: unpack it, and give the folder with {INDEX}")
    if path.suffix.lower() == ".json":
        raise BaseModelError(f"{name} is a configuration, not a base model: give the folder with {INDEX}")
    checkpoint = open_checkpoint(path)
    return BaseFiles(name, checkpoint.folder, checkpoint, checkpoint.scheduler_arguments)


def _diffusers_folder(name: str, folder: Path) -> Path:
    """Return the folder with model_index.json: this one, or the snapshot that it stands for."""
    if (folder / INDEX).is_file():
        return folder
    cached = folder.parent if folder.name == SNAPSHOTS else folder
    if (cached / SNAPSHOTS).is_dir():
        return _diffusers_folder(name, snapshot_of(name, cached))
    if (folder / INDEX).is_symlink():
        raise BaseModelError(
            f"{name} is not a whole model: its {INDEX} is a link to a file that is not there. Copy the model "
            "again, with the files that links stand for (cp -rL)"
        )
    raise BaseModelError(f"{name} is not a diffusion model: it has no {INDEX}. {_advice(folder)}")


def _advice(folder: Path) -> str:
    """Say what a folder without model_index.json seems to be, and what to give instead."""
    held = sorted(path.name for path in folder.iterdir())
    inside = [name for name in held if (folder / name / INDEX).is_file()]
    models = [name for name in held if name.startswith(CACHED)]
    files = [name for name in held if name.lower().endswith(CHECKPOINTS)]
    if any(name in held for name in ADAPTERS):
        return "It is an adapter (a LoRA, or a fused model), which is made for a base model: give that one"
    if (folder.parent / INDEX).is_file():
        return f"It is one part of a model: give {folder.parent}"
    if inside:
        return "Give the model inside: " + " or ".join(str(folder / name) for name in inside[:4])
    if models:
        ids = [name.removeprefix(CACHED).replace("--", "/", 1) for name in models]
        return f"It is a cache of the hub: give a model of it, {' or '.join(ids[:4])}"
    if files:
        return "Give the checkpoint itself: " + " or ".join(str(folder / name) for name in files[:4])
    return f"Give {WHAT}"
