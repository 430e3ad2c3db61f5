"""Read `edlora.pth`, the checkpoint of the paper's own code: words and changes in one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mos_client.importing.lora import Adapter, read_adapter
from mos_client.importing.words import Words, paper_words
from mos_common.base_model import Base
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError

PARTS = ("new_concept_embedding", "text_encoder", "unet")


def paper_checkpoint(
    content: Mapping[str, Any], base: Base, alpha: float, rank: int | None
) -> tuple[Adapter | None, Words] | None:
    """Return the changes and the words of a checkpoint of the paper's code; None if it is none.

    Its changes are alpha · up · down, not divided by the rank; our alpha is therefore that times
    the rank.

    Raises:
        ConceptError: a part does not hold named tensors, or does not fit the base.

    """
    params = content.get("params", content)
    if not isinstance(params, Mapping) or not any(isinstance(params.get(part), Mapping) for part in PARTS):
        return None
    embeddings, *adapters = (params.get(part) or {} for part in PARTS)
    tensors: dict[str, Tensor] = {}
    for part, adapter in zip(PARTS[1:], adapters, strict=True):
        if not isinstance(adapter, Mapping) or not all(isinstance(tensor, Tensor) for tensor in adapter.values()):
            raise ConceptError(f"its {part!r} does not hold named tensors, as the paper's checkpoints do")
        tensors |= {f"{part}.{name}": tensor for name, tensor in adapter.items() if not str(name).endswith(".alpha")}
    if not isinstance(embeddings, Mapping):
        raise ConceptError(f"its {PARTS[0]!r} does not hold named tensors, as the paper's checkpoints do")
    words = paper_words(embeddings, base) if embeddings else ()
    if not tensors:
        return None, words
    read = read_adapter(tensors, {}, base, rank=rank)
    scaled = {name: LowRank(pair.A, pair.B, alpha * pair.rank) for name, pair in read.pairs.items()}
    return replace(read, pairs=scaled), words
