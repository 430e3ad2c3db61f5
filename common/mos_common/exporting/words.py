"""A concept's words as a textual inversion, which has one embedding per word for all layers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base


def mean_words(words: Float[Tensor, "layers words width"]) -> Float[Tensor, "1 words width"]:
    """Return the mean of layer-wise words over the layers."""
    return words.float().mean(dim=0, keepdim=True)


def textual_inversion(token: str, words: Float[Tensor, "1 words width"], base: Base) -> dict[str, Tensor]:
    """Return words with one embedding each as the tensors of a textual inversion, float32.

    With one text encoder the key is the token (diffusers then needs no `token=`; other tools use
    the file's name). With two encoders the keys are `clip_l` and `clip_g`.
    """
    widths = [table.shape[1] for table in base.token_tables]
    vectors = [part.float().contiguous() for part in torch.split(words[0], widths, dim=1)]
    keys = [token] if len(vectors) == 1 else ["clip_l", "clip_g"]
    return dict(zip(keys, vectors, strict=True))


def file_name(token: str) -> str:
    """Return the name of a token's file without suffix: `<alice/cat>` -> `alice.cat`.

    Names contain no dots, so file names are unique.
    """
    return token[1:-1].replace("/", ".")
