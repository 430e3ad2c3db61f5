"""`export --test`: draw with the exported files by diffusers alone, and compare."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from mos_common.drawing import Drawing, draw, initial_noise, scheduler_for
from mos_common.edlora import attached
from mos_common.exporting.pipelines import copy_of, load_words, pipeline_of, save_configuration, without_progress_bars
from mos_common.exporting.tools import prompt_for
from mos_common.exporting.words import mean_words, textual_inversion
from mos_common.exporting.writing import Export
from mos_common.pictures import save_picture
from mos_common.prompts import SCORED, about
from mos_common.scores import ImageScorer, image_alignment

HOW = Drawing()
SEED = 0


def try_out(export: Export) -> list[str]:
    """Draw the first concept here and by diffusers, write the pictures; return lines about them.

    The picture beside the export has three parts: drawn by mos-client with layer-wise words, by
    mos-client with the exported words, and by diffusers with the exported files.
    """
    shared, base = export.shared, export.base
    prompt = prompt_for(shared.credits, None, dict.fromkeys(shared.vocabulary, export.out))
    with attached(base, shared.changes):
        layerwise = draw(base, [prompt], [SEED], vocabulary=shared.vocabulary, how=HOW)[0]
        same = draw(base, [prompt], [SEED], vocabulary=export.words, how=HOW)[0]
    theirs = _by_diffusers(export, prompt)
    picture = trial_picture(export.out)
    save_picture(torch.cat([layerwise, same, theirs], dim=2), picture)
    return [
        f"{picture}: {prompt!r}, seed {SEED}, by mos-client, by mos-client with the exported words, by diffusers with "
        "the exported files",
        f"diffusers' picture differs from mos-client's by {_difference(layerwise, theirs):.2f} of 255 in the mean, "
        f"from mos-client's with the exported words by {_difference(same, theirs):.2f}",
        *(_identity(export, token) for token in shared.vocabulary),
    ]


def trial_picture(out: Path) -> Path:
    """Return the file of the pictures beside an export."""
    return out.with_name(f"{out.stem}.test.png")


def _by_diffusers(export: Export, prompt: str) -> Float[Tensor, "3 h w"]:
    base = export.base
    height, width = HOW.sized_for(base)
    with tempfile.TemporaryDirectory() as folder, without_progress_bars():
        pipeline = _loaded(export, Path(folder))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler_for(base, HOW)
    for token, words in export.words.items():
        file = export.inversions.get(token)
        load_words(pipeline, token, load_file(file) if file else textual_inversion(token, words, base))
    with torch.no_grad():
        found = pipeline(
            prompt,
            negative_prompt=HOW.negative or None,
            latents=initial_noise(base, [SEED], height, width),
            num_inference_steps=HOW.steps,
            guidance_scale=base.preset.guidance,
            height=height,
            width=width,
            output_type="pt",
        ).images
    picture: Tensor = found[0].float().cpu() * 2 - 1
    return picture


def _loaded(export: Export, folder: Path) -> Any:
    """Return diffusers' pipeline with the exported changes; the base itself stays as it is."""
    base, out = export.base, export.out
    kind = type(pipeline_of(base))
    if export.kind == "diffusers":
        return kind.from_pretrained(out, dtype=base.dtype, local_files_only=True).to(base.device)
    if export.kind == "single-file":
        save_configuration(pipeline_of(base), folder)
        loaded = kind.from_single_file(str(out), config=str(folder), dtype=base.dtype, local_files_only=True)
        return loaded.to(base.device)
    if export.kind == "lora":
        pipeline = pipeline_of(copy_of(base))
        pipeline.load_lora_weights(out.parent, weight_name=out.name)
        return pipeline
    with attached(base, export.shared.changes):  # the words belong to changes that another file has
        return pipeline_of(copy_of(base))


def _identity(export: Export, token: str) -> str:
    """Say how well a concept is drawn with layer-wise words, their mean and the exported words.

    The real pictures are not here: identity is measured with drawings by the layer-wise words at
    other seeds.
    """
    base, scorer = export.base, ImageScorer(str(export.base.device))
    prompts = [about(context, token) for context in SCORED]

    def features(words: Tensor, first: int) -> Tensor:
        seeds = range(first, first + len(prompts))
        with attached(base, export.shared.changes):
            return scorer.features(draw(base, prompts, seeds, vocabulary={token: words}, how=HOW))

    layerwise = export.shared.vocabulary[token]
    references = features(layerwise, SEED + len(prompts))
    kinds = {"layer-wise words": layerwise, "their mean": mean_words(layerwise), "exported": export.words[token]}
    scores = {kind: image_alignment(features(words, SEED), references) for kind, words in kinds.items()}
    return f"{token}: identity with drawings of layer-wise words: " + ", ".join(
        f"{kind} {score:.3f}" for kind, score in scores.items()
    )


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().mean() * 127.5)
