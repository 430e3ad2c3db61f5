"""Read the words of textual-inversion files and of the paper's own checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.errors import ConceptError

Words = tuple[Float[Tensor, "layers words width"], ...]


def textual_inversion(content: Mapping[str, Any], base: Base) -> Words | None:
    """Return the words of a textual inversion, the same in every layer; None if the file is none.

    Known formats: A1111's `string_to_param` and `emb_params`, XL's `clip_l` and `clip_g`, and
    diffusers' single tensor, named by its token.

    Raises:
        ConceptError: it was made for another text encoder.

    """
    vectors = _vectors(content)
    if vectors is None:
        return None
    tables = base.token_tables
    if [vector.shape[-1] for vector in vectors] != [table.shape[1] for table in tables]:
        widths = (
            " and ".join(str(part.shape[-1]) for part in vectors),
            " and ".join(str(table.shape[1]) for table in tables),
        )
        raise ConceptError(
            f"the embedding has width {widths[0]}, {base.name} has {widths[1]}: it was made for another base (--base)"
        )
    layers = base.layout.word_layers
    return tuple(vector.float().expand(layers, *vector.shape).clone() for vector in vectors)


def paper_words(embeddings: Mapping[str, Tensor], base: Base) -> Words:
    """Return the words of the paper's checkpoint, in its order.

    Each token has one embedding per cross-attention layer (down, mid, up), or in the paper's plain
    LoRA a single one for all layers.

    Raises:
        ConceptError: the number of embeddings or their width is not the base's, or the base has two
            text encoders.

    """
    layers, width = base.layout.word_layers, base.token_tables[0].shape[1]
    if len(base.token_tables) > 1:
        raise ConceptError(
            f"the paper's code has one text encoder, {base.name} has two: "
            "import it with the base it was made for (--base)"
        )
    for token, tensor in embeddings.items():
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        if shape not in ((layers, width), (1, width)):
            raise ConceptError(f"{token} is {shape}; {base.name} has {layers} cross-attention layers of width {width}")
    return (torch.stack([tensor.float().expand(layers, width) for tensor in embeddings.values()], dim=1),)


def _vectors(content: Mapping[str, Any]) -> Sequence[Float[Tensor, "words width"]] | None:
    if isinstance(content.get("string_to_param"), Mapping):
        content = {"emb_params": next(iter(content["string_to_param"].values()), None)}
    if {"clip_l", "clip_g"} <= content.keys():
        candidates = [content["clip_l"], content["clip_g"]]
    elif "emb_params" in content:
        candidates = [content["emb_params"]]
    elif len(content) == 1 and "." not in next(iter(content)):
        candidates = list(content.values())
    else:
        return None
    if not all(isinstance(vector, Tensor) and vector.ndim in (1, 2) for vector in candidates):
        return None
    return [vector.detach().reshape(-1, vector.shape[-1]) for vector in candidates]
