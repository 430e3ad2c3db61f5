"""Recognise the concept in a picture: the one whose own pictures are most like it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import find_pictures
from mos_common.base_model import Base
from mos_common.scores import ImageScorer


@dataclass(frozen=True)
class Recogniser:
    """Names the concept of a picture: the largest mean cosine with the pictures of each concept."""

    scorer: ImageScorer
    known: Mapping[str, Float[Tensor, "pictures features"]]

    @classmethod
    def of(cls, base: Base, folders: Mapping[str, Path]) -> Recogniser:
        """Know these folders of pictures by name, as the base's VAE renders them."""
        scorer, known = ImageScorer(), {}
        for name, folder in folders.items():
            pictures = load_pictures(find_pictures(folder), base.picture_size)
            known[name] = scorer.features(base.decode_latents(base.encode_pictures(pictures)))
        return cls(scorer, known)

    def likeness(self, pictures: Float[Tensor, "n 3 side side"]) -> Float[Tensor, "n known"]:
        """Return the mean cosine of each picture with those of each concept, in their order."""
        features = self.scorer.features(pictures)
        return torch.stack([(features @ own.T).mean(dim=1) for own in self.known.values()], dim=1)

    def names(self, pictures: Float[Tensor, "n 3 side side"]) -> list[str]:
        """Return the name for each picture."""
        names = list(self.known)
        return [names[k] for k in self.likeness(pictures).argmax(dim=1).tolist()]
