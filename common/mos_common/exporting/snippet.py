"""The lines of Python that draw with an export in diffusers."""

from __future__ import annotations

from mos_common.base_model import base_path
from mos_common.base_names import TINY
from mos_common.exporting.metadata import Family, family_of
from mos_common.exporting.writing import Export

DTYPE = "dtype=torch.float32"  # else text encoders come in the format of their file, the rest in float32


def diffusers_snippet(export: Export) -> list[str]:
    """Return Python lines that load the files of an export and draw the first concept."""
    kind = "StableDiffusionXLPipeline" if family_of(export.base) is Family.XL else "StableDiffusionPipeline"
    name = export.base.name
    base = str(base_path(name)) if name == TINY else name
    path = str(export.out.resolve())
    load = {
        "diffusers": f"{kind}.from_pretrained({path!r}, {DTYPE})",
        "single-file": f"{kind}.from_single_file({path!r}, config={base!r}, {DTYPE})",
    }.get(export.kind, f"{kind}.from_pretrained({base!r}, {DTYPE})")
    lines = [f"from diffusers import {kind}", "import torch", f"pipeline = {load}"]
    if export.kind == "lora":
        folder = str(export.out.resolve().parent)
        lines.append(f"pipeline.load_lora_weights({folder!r}, weight_name={export.out.name!r})")
    return [*lines, *_words(export), f"picture = pipeline({export.prompt!r}).images[0]"]


def _words(export: Export) -> list[str]:
    files = {token: str(file.resolve()) for token, file in export.inversions.items()}
    if family_of(export.base) is not Family.XL:
        return [f"pipeline.load_textual_inversion({file!r}, token={token!r})" for token, file in files.items()]
    lines = ["from safetensors.torch import load_file"] if files else []
    for token, file in files.items():
        lines.append(f"words = load_file({file!r})")
        for key, number in (("clip_l", ""), ("clip_g", "_2")):
            lines.append(
                f"pipeline.load_textual_inversion(words[{key!r}], token={token!r}, "
                f"text_encoder=pipeline.text_encoder{number}, tokenizer=pipeline.tokenizer{number})"
            )
    return lines
