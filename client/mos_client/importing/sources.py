"""Find and read the files of one adapter: a file, or a folder as PEFT and diffusers write it.

A folder is read if there is one answer to what is meant: one file of weights, or the sub-folders
`unet`, `text_encoder` and `text_encoder_2` with an adapter each. Several candidates are a question.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mos_client.importing.peft_config import PARTS, PEFT_CONFIG
from mos_client.importing.safe_reading import read_tensors
from mos_common.errors import ConceptError
from mos_common.text_files import NotTextError, read_text_file

log = logging.getLogger(__name__)
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# What training leaves beside the weights, and no adapter is in.
OF_TRAINING = ("optimizer", "scheduler", "random_states", "scaler", "training_args")
PEFT_PREFIX = "base_model.model."
# Names under which tools keep the tensors of an otherwise empty file.
WRAPPERS = ("state_dict", "lora", "module", "model", "weights")


@dataclass(frozen=True)
class Source:
    """One file's content as it was read, with the configuration beside it in the metadata."""

    file: Path
    content: Mapping[str, Any]
    metadata: Mapping[str, str]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The file's named tensors.

        Raises:
            ConceptError: it has none, or others in containers that nobody would read.

        """
        named = {name: tensor for name, tensor in self.content.items() if isinstance(tensor, Tensor)}
        containers = [name for name, held in self.content.items() if isinstance(held, Mapping | list) and held]
        if named and containers:
            raise ConceptError(f"{self.file} has tensors, and more of them in {containers[0]!r}: expected one or other")
        if not named:
            raise ConceptError(f"{self.file} has no known tensors: expected a LoRA or a textual inversion")
        return named


def read_sources(path: Path) -> list[Source]:
    """Read a file, or the files of a folder, each as one source.

    Raises:
        ConceptError: a file cannot be read, or it is not clear which of a folder's files is meant.

    """
    if not path.is_dir():
        return [_read(path)]
    if parts := [path / part for part in PARTS if (path / part / PEFT_CONFIG).is_file()]:
        if loose := _weights_in(path):
            raise ConceptError(_which_one(path, [*loose, *parts]))
        return [_of_part(_read(_only_weights(part)), part.name) for part in parts]
    return [_read(_only_weights(path))]


def _read(file: Path) -> Source:
    content, metadata = read_tensors(file)
    held = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
    if len(held) == 1 and not any(isinstance(value, Tensor) for value in content.values()):
        content = {str(name): value for name, value in content[held[0]].items()}
    config = file.with_name(PEFT_CONFIG)
    if file.stem == "adapter_model" or any(name.startswith(PEFT_PREFIX) for name in content):
        if config.is_file():
            metadata = {**metadata, PEFT_CONFIG: _text_of(config)}
        else:
            log.warning("%s is missing: alpha is assumed to equal the rank", config)
    return Source(file, content, metadata)


def _text_of(config: Path) -> str:
    try:
        return read_text_file(config)
    except NotTextError as error:
        raise ConceptError(f"{config} cannot be read: it {error}") from error


def _of_part(source: Source, part: str) -> Source:
    """Name the part of the model in every tensor of a file that PEFT wrote for that part alone."""
    named = {f"{part}.{name.removeprefix(PEFT_PREFIX)}": tensor for name, tensor in source.content.items()}
    return Source(source.file, named, source.metadata)


def _only_weights(folder: Path) -> Path:
    if (folder / "model_index.json").is_file():
        raise ConceptError(f"{folder} is a whole base model, not a LoRA: give it with --base")
    if (folder / "manifest.json").is_file():
        raise ConceptError(f"{folder} is a fused model, not a LoRA: give it to `mos-client draw` as it is")
    found = _weights_in(folder)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConceptError(_which_one(folder, found))
    below = sorted(path.parent for path in folder.glob("*/*") if path.suffix.lower() in WEIGHTS)
    more = f"; {', '.join(dict.fromkeys(map(str, below[:4])))} have: give one of them" if below else ""
    raise ConceptError(f"{folder} has no file of weights ({', '.join(WEIGHTS)}){more}")


def _weights_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in WEIGHTS and path.is_file() and not path.name.startswith((".", *OF_TRAINING))
    )


def _which_one(folder: Path, found: list[Path]) -> str:
    names = ", ".join(path.name for path in found[:8])
    return f"{folder} has several candidates: {names}; give the file that is meant, or the files of one concept"
