"""Export a fused model to other tools' formats.

diffusers   a whole folder: the base with every change added into its weights
lora        the changes alone, as one file in kohya's spelling
single-file the base with every change added, as one checkpoint of Stable Diffusion 1.x

Next to the last two, each concept's words are written as a textual inversion.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from mos_common.edlora import LowRank, attached
from mos_common.errors import RequestError, StateError
from mos_common.files import canonical_json, replacing_file, replacing_folder, write_atomically
from mos_common.fused_model import EMBEDDINGS, FusedModel, check_base, read_fused
from mos_common.spellings import kohya_name
from mos_server.models.single_file import check_single_file, checkpoint_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mos_common.base_model import Base

FORMATS = ("diffusers", "lora", "single-file")
FILE_DTYPES = {"float16": torch.float16, "float32": torch.float32}
ONE_EMBEDDING = (
    "these formats hold one embedding per word, the mean over the layers, so concepts are drawn less well than by "
    "mos-client"
)


def export(folder: Path, base: Base, kind: str, out: Path, dtype: str | None = None) -> list[str]:
    """Write a fused model in another format; return one line for each output.

    Raises:
        RequestError: the format is unknown, or does not support this dtype.
        StateError: `out` already exists, or cannot be written.
        FusionError, BaseModelError: the folder is not a fused model, or is one of another base.

    """
    if kind not in FORMATS:
        raise RequestError(f"--format {kind} is not known: choose one of {', '.join(FORMATS)}")
    if kind == "diffusers":
        if dtype is not None:
            raise RequestError(
                f"--dtype {dtype}: it goes with --format lora or single-file; a folder is always float32"
            )
        export_diffusers(folder, base, out)
        return [str(out)]
    write = export_lora if kind == "lora" else export_single_file
    words = write(folder, base, out, dtype or "float16")
    return [str(out), f"{words}: the words, as textual inversions; {ONE_EMBEDDING}"]


def export_diffusers(folder: Path, base: Base, out: Path) -> None:
    """Write a diffusers folder: the base with every change added into its weights.

    `DiffusionPipeline.from_pretrained` loads it and predicts the same noise as base + adapter. The
    format has no place for layer-wise words; they are written beside it as
    `embeddings.safetensors`, where mos-client reads them.

    Raises:
        StateError: `out` already exists.
        BaseModelError: the model belongs to another base.

    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    fused = read_fused(folder)
    check_base(fused, base)
    _check_free(out)
    with attached(base, fused.changes), replacing_folder(out) as beside:
        parts = {"vae": base.vae, "text_encoder": base.text_encoder, "tokenizer": base.tokenizer, "unet": base.unet}
        parts |= {"scheduler": base.scheduler, "feature_extractor": None, "image_encoder": None}
        if base.text_encoder_2 is None:
            pipeline = StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False)
        else:
            second = {"text_encoder_2": base.text_encoder_2, "tokenizer_2": base.tokenizer_2}
            pipeline = StableDiffusionXLPipeline(**parts, **second)
        pipeline.save_pretrained(beside)
        shutil.copyfile(folder / EMBEDDINGS, beside / EMBEDDINGS)


def export_lora(folder: Path, base: Base, out: Path, dtype: str = "float16") -> Path:
    """Write the changes as one LoRA file in kohya's spelling.

    Returns the folder with the words, which is next to it.

    Raises:
        RequestError: `out` has another suffix, or the dtype is not supported.
        StateError: the file or the folder already exists.
        BaseModelError: the model belongs to another base.

    """
    fused = _read_for_file(folder, base, out, dtype)
    tensors = lora_tensors(fused, base, FILE_DTYPES[dtype])
    with _words_beside(out, fused, base, FILE_DTYPES[dtype]) as words:
        write_atomically(out, canonical_safetensors(tensors, lora_metadata(fused)))
    return words


def export_single_file(folder: Path, base: Base, out: Path, dtype: str = "float16") -> Path:
    """Write a Stable Diffusion 1.x checkpoint with every change added.

    Returns the folder with the words, which is next to it.

    Raises:
        RequestError: the base has another layout, `out` has another suffix, or the dtype is not
            supported.
        StateError: the file or the folder already exists.
        BaseModelError: the model belongs to another base.

    """
    check_single_file(base)
    fused = _read_for_file(folder, base, out, dtype)
    # One key only: the library writes several keys in random order.
    metadata = {"modelspec.description": single_file_description(fused, base)}
    with attached(base, fused.changes):
        tensors = checkpoint_tensors(base, FILE_DTYPES[dtype])
    with _words_beside(out, fused, base, FILE_DTYPES[dtype]) as words, replacing_file(out) as beside:
        save_file(tensors, beside, metadata)
    return words


def lora_tensors(fused: FusedModel, base: Base, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the factors of every layer in kohya's spelling: ΔW = (alpha / rank) · up · down.

    All layers share one alpha, the highest rank, because diffusers 0.42 with peft 0.21 ignores
    alphas that differ between layers. Factors of a lower rank are scaled down to match. Factors of
    a 1x1 convolution have two more dimensions of size 1. Within a text encoder, lower ranks are
    padded with zeros, since diffusers gives its text projection the most common rank of the
    encoder's layers.
    """
    modules = {layer.name: layer.module for layer in base.layout.layers}
    ranks = _ranks_to_write({layer: pair.rank for layer, pair in fused.changes.items() if pair.rank})
    alpha = float(max(ranks.values(), default=1))
    tensors = {}
    for layer, rank in ranks.items():
        pair = fused.changes[layer]
        A = nn.functional.pad(pair.A, (0, 0, 0, rank - pair.rank))
        B = nn.functional.pad(pair.B, (0, rank - pair.rank))
        # ΔW = pair.scale · B · A, so up · down = (rank / alpha) · ΔW is B · A of this scale.
        scale = pair.scale * rank / alpha
        even = LowRank(A, B, alpha=scale * rank).balanced()
        down, up = even.A.to(dtype), even.B.to(dtype)
        if isinstance(modules[layer], nn.Conv2d):
            down, up = down[:, :, None, None], up[:, :, None, None]
        name = kohya_name(layer, base)
        tensors[f"{name}.lora_down.weight"] = down.contiguous()
        tensors[f"{name}.lora_up.weight"] = up.contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def lora_metadata(fused: FusedModel) -> dict[str, str]:
    """Return the metadata of a LoRA, under the keys of Stability's ModelSpec, which tools show."""
    manifest = fused.manifest
    concepts = {concept.token: concept for concept in sorted(manifest.concepts, key=lambda concept: concept.token)}
    tokens = ", ".join(concepts)
    return {
        "modelspec.title": f"Fused model of {tokens}",
        "modelspec.description": (
            f"Low-rank changes of a fused model (federated Mix-of-Show, method {manifest.method}) on the base model "
            f"{manifest.base_name} ({manifest.base}). Concepts are named by words that lie in files beside this one; "
            f"{ONE_EMBEDDING}."
        ),
        "modelspec.author": _by_concept({token: concept.author for token, concept in concepts.items()}),
        "modelspec.license": _by_concept({token: concept.licence for token, concept in concepts.items()}),
        "modelspec.trigger_phrase": tokens,
    }


def single_file_description(fused: FusedModel, base: Base) -> str:
    """Describe a single file. The format has no other place for the prediction type."""
    metadata = lora_metadata(fused)
    return (
        f"{metadata['modelspec.title']}, added into the weights of {fused.manifest.base_name} ({fused.manifest.base}), "
        f"which predicts {base.scheduler.config.prediction_type}. Licences: {metadata['modelspec.license']}. "
        f"Authors: {metadata['modelspec.author']}."
    )


def mean_words(token: str, fused: FusedModel, base: Base, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a concept's words as a textual inversion.

    There is one embedding per word, the mean over the layers. With one text encoder the key is the
    token (diffusers then needs no `token=`; other tools use the file's name). With two encoders the
    keys are `clip_l` and `clip_g`.
    """
    widths = [table.shape[1] for table in base.token_tables]
    mean = fused.vocabulary[token].float().mean(dim=0)
    vectors = [part.to(dtype).contiguous() for part in torch.split(mean, widths, dim=1)]
    keys = [token] if len(vectors) == 1 else ["clip_l", "clip_g"]
    return dict(zip(keys, vectors, strict=True))


def canonical_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file with a canonical header.

    The library itself writes metadata keys in random order.
    """
    data = save(dict(tensors), dict(metadata))
    begin = 8 + int.from_bytes(data[:8], "little")
    header = canonical_json(json.loads(data[8:begin]))
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of eight
    return len(header).to_bytes(8, "little") + header + data[begin:]


def _read_for_file(folder: Path, base: Base, out: Path, dtype: str) -> FusedModel:
    if out.suffix != ".safetensors":
        raise RequestError(f"--out {out}: this format is a single file, NAME.safetensors")
    if dtype not in FILE_DTYPES:
        raise RequestError(f"--dtype {dtype} is not known: this format is written in {' or '.join(FILE_DTYPES)}")
    fused = read_fused(folder)
    check_base(fused, base)
    _check_free(out)
    _check_free(out.with_suffix(".words"))
    return fused


@contextmanager
def _words_beside(out: Path, fused: FusedModel, base: Base, dtype: torch.dtype) -> Iterator[Path]:
    """Yield the folder of the words, which exists once the block that writes `out` succeeds."""
    words = out.with_suffix(".words")
    with replacing_folder(words) as beside:
        for token in fused.vocabulary:
            (beside / f"{_file_name(token)}.safetensors").write_bytes(save(mean_words(token, fused, base, dtype)))
        yield words


def _ranks_to_write(ranks: Mapping[str, int]) -> dict[str, int]:
    """Return the rank to write for every layer; in a text encoder, the highest of its layers."""
    highest: dict[str, int] = {}
    for layer, rank in ranks.items():
        part = layer.partition(".")[0]
        highest[part] = max(rank, highest.get(part, 0))
    return {
        layer: rank if layer.startswith("unet.") else highest[layer.partition(".")[0]] for layer, rank in ranks.items()
    }


def _by_concept(by_token: Mapping[str, str]) -> str:
    return "; ".join(f"{token}: {text or 'not given'}" for token, text in by_token.items())


def _file_name(token: str) -> str:
    """Return the file name of a token: `<alice/cat>` -> `alice.cat`.

    Names contain no dots, so file names are unique.
    """
    return token[1:-1].replace("/", ".")


def _check_free(out: Path) -> None:
    if out.exists():
        raise StateError(f"{out} already exists: choose another --out")
