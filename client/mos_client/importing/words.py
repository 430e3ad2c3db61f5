"""Read the words of textual-inversion files, of LoRA files, and of the paper's own checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.errors import ConceptError

Words = tuple[Float[Tensor, "layers words width"], ...]
BUNDLED = "bundle_emb."
OF_TWO_ENCODERS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))


def textual_inversion(content: Mapping[str, Any], base: Base) -> Words | None:
    """Return the words of a textual inversion, the same in every layer; None if the file is none.

    Known formats: A1111's `string_to_param` and `emb_params`, XL's `clip_l` and `clip_g`, and
    diffusers' single tensor, named by its token.

    Raises:
        ConceptError: it was made for another text encoder, or holds several embeddings.

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


def without_bundle(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Return the tensors of the changes, and the embeddings that OneTrainer and Forge add to them.

    Those are called `bundle_emb.NAME.` and then as in a file of their own, so each can be read by
    `textual_inversion`.
    """
    changes, bundle = dict[str, Tensor](), dict[str, dict[str, Any]]()
    for name, tensor in tensors.items():
        if not name.startswith(BUNDLED):
            changes[name] = tensor
            continue
        word, _, rest = name.removeprefix(BUNDLED).partition(".")
        held = bundle.setdefault(word, {})
        if rest.startswith("string_to_param."):
            held.setdefault("string_to_param", {})[rest.removeprefix("string_to_param.")] = tensor
        else:
            held[rest] = tensor
    return changes, bundle


def bundled_words(bundle: Mapping[str, Mapping[str, Any]], base: Base, name: str = "") -> Words:
    """Return the words of the embedding called `name`, or of the only one.

    Raises:
        ConceptError: there are several and no name, or none of that name; or it cannot be read.

    """
    known = ", ".join(sorted(bundle))
    if name and name not in bundle:
        raise ConceptError(f"the file has no words called {name!r}; it has: {known}")
    if not name and len(bundle) > 1:
        raise ConceptError(f"the file has several words: {known}. A concept has one name: choose by --words NAME")
    chosen = name or next(iter(bundle))
    if outputs := [part for part in bundle[chosen] if part.endswith("_out")]:
        raise ConceptError(
            f"{BUNDLED}{chosen}.{outputs[0]} replaces what the text encoder puts out, which a concept cannot do: "
            "train the embedding without output embeddings"
        )
    words = textual_inversion(bundle[chosen], base)
    if words is None:
        raise ConceptError(
            f"{BUNDLED}{chosen} holds {', '.join(sorted(bundle[chosen]))}; expected an embedding for each of "
            f"{base.name}'s text encoders"
        )
    return words


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
        content = content["string_to_param"]
        _check_alone(content)
        content = {"emb_params": next(iter(content.values()), None)}
    both = next((names for names in OF_TWO_ENCODERS if content.keys() >= set(names)), None)
    if both:
        candidates = [content[name] for name in both]
    elif "emb_params" in content:
        candidates = [content["emb_params"]]
    elif content and all("." not in name and _is_vector(value) for name, value in content.items()):
        _check_alone(content)
        candidates = list(content.values())
    else:
        return None
    if not all(_is_vector(vector) for vector in candidates):
        return None
    return [vector.detach().reshape(-1, vector.shape[-1]) for vector in candidates]


def _is_vector(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim in (1, 2) and value.is_floating_point()


def _check_alone(embeddings: Mapping[str, object]) -> None:
    if len(embeddings) > 1:
        raise ConceptError(
            f"the file has several embeddings: {', '.join(sorted(map(str, embeddings))[:8])}; expected one, or those "
            "of one word for two text encoders (clip_l, clip_g)"
        )
