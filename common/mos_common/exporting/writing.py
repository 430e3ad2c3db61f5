"""Write the files of an export, one function for each format."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.edlora import attached
from mos_common.exporting.canonical import write_safetensors
from mos_common.exporting.lora import highest_rank, lora_tensors
from mos_common.exporting.metadata import lora_metadata, model_metadata
from mos_common.exporting.pipelines import pipeline_of
from mos_common.exporting.shared import Credit, Shared
from mos_common.exporting.single_file import checkpoint_tensors
from mos_common.exporting.tools import Tool, called, prompt_for
from mos_common.exporting.words import file_name, textual_inversion
from mos_common.files import replacing_folder
from mos_common.fused_model import EMBEDDINGS

TEXTUAL_INVERSION = "textual-inversion"


@dataclass(frozen=True)
class Export:
    """One export before it is written: what, from which base, to where, with which words.

    `words` have one embedding each; `how` says how they were made. `inversions` are their files.
    `more` goes into the metadata of the main file.
    """

    shared: Shared
    base: Base
    kind: str
    out: Path
    words: Mapping[str, Float[Tensor, "1 words width"]]
    how: str
    dtype: torch.dtype
    tool: Tool | None
    more: Mapping[str, str]

    @property
    def inversions(self) -> dict[str, Path]:
        """The files of the textual inversions, by token; none in a diffusers folder."""
        if self.kind == "diffusers":
            return {}
        if self.kind == "words" and self.out.suffix:
            return dict.fromkeys(self.words, self.out)
        return {token: self.words_folder / f"{file_name(token)}.safetensors" for token in self.words}

    @property
    def words_folder(self) -> Path:
        """The folder of the textual inversions."""
        return self.out if self.kind == "words" else self.out.with_suffix(".words")

    @property
    def prompt(self) -> str:
        """A prompt that draws the first concept in the tool."""
        return prompt_for(self.shared.credits, self.tool, self.inversions)

    def called(self, credit: Credit) -> str:
        """Return how prompts of the tool call a concept."""
        return called(credit, self.tool, self.inversions.get(credit.token))

    def metadata(self, kind: str) -> dict[str, str]:
        """Return the ModelSpec of the main file."""
        beside = "Concepts are named by words that lie in files beside this one; " if self.words else ""
        return {
            **model_metadata(
                self.shared,
                self.base,
                kind,
                trigger=", ".join(map(self.called, self.shared.credits)),
                words=f"{beside}{self.how}." if self.words else "",
                usage=f"Prompt: {self.prompt}",
            ),
            **self.more,
        }


def write_diffusers(export: Export) -> None:
    """Write a diffusers folder: the base with every change added into its weights.

    `DiffusionPipeline.from_pretrained` loads it and predicts the same noise as base + adapter. The
    format has no place for layer-wise words; they are written beside it as
    `embeddings.safetensors`, where mos-client reads them.
    """
    with attached(export.base, export.shared.changes), replacing_folder(export.out) as beside:
        pipeline_of(export.base).save_pretrained(beside)
        write_safetensors(export.shared.vocabulary, beside / EMBEDDINGS, {})


def write_lora(export: Export) -> None:
    """Write the changes as one LoRA file, and the words beside it."""
    tensors = lora_tensors(export.shared.changes, export.base, export.dtype)
    rank = highest_rank(export.shared.changes)
    metadata = export.metadata("lora") | lora_metadata(export.base, export.out.stem, rank, float(rank))
    with _words_beside(export):
        write_safetensors(tensors, export.out, metadata)


def write_single_file(export: Export) -> None:
    """Write a whole checkpoint with every change added, and the words beside it."""
    with attached(export.base, export.shared.changes):
        tensors = checkpoint_tensors(export.base, export.dtype)
    with _words_beside(export):
        write_safetensors(tensors, export.out, export.metadata(""))


def write_words(export: Export) -> None:
    """Write the words alone: one file, or a folder with a file for each concept."""
    if export.out.suffix:
        for token in export.words:
            _write_inversion(export, token, export.out)
        return
    with replacing_folder(export.out) as beside:
        _write_inversions(export, beside)


@contextmanager
def _words_beside(export: Export) -> Iterator[None]:
    """Write the folder of the words, which exists once the block succeeds."""
    if not export.words:
        yield
        return
    with replacing_folder(export.words_folder) as beside:
        _write_inversions(export, beside)
        yield


def _write_inversions(export: Export, folder: Path) -> None:
    for token, file in export.inversions.items():
        _write_inversion(export, token, folder / file.name)


def _write_inversion(export: Export, token: str, file: Path) -> None:
    tensors = {
        key: vectors.to(export.dtype)
        for key, vectors in textual_inversion(token, export.words[token], export.base).items()
    }
    credits = tuple(credit for credit in export.shared.credits if credit.token == token)
    one = dataclasses.replace(export.shared, title=f"The words of {token}", credits=credits)
    metadata = model_metadata(
        one,
        export.base,
        TEXTUAL_INVERSION,
        trigger=", ".join(map(export.called, credits)),
        words=f"{export.how[0].upper()}{export.how[1:]}.",
        usage=f"Prompt: {prompt_for(credits, export.tool, export.inversions)}",
    )
    write_safetensors(tensors, file, metadata)
