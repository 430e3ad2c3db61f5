"""A concept's words in a prompt, and prompts as the text encoder reads them: once for each cross-attention layer.

Concept V is two words, V_rand and V_class, each with one embedding per cross-attention layer (extended textual inversion, P+).
So a prompt that names a concept has as many encodings as there are cross-attention layers; layer k reads encoding k. A prompt
that names none has one encoding, which every layer shares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import BaseModel
from mos_common.errors import RequestError
from mos_common.layers import cross_attentions

TOKEN = re.compile(r"<(?:[a-z0-9][a-z0-9_-]*/)?[a-z0-9][a-z0-9_-]*>")

Vocabulary = Mapping[str, Float[Tensor, "layers words width"]]
TextFeatures = Float[Tensor, "prompts layers tokens width"]


@dataclass(frozen=True)
class TokenIds:
    """A prompt as token ids of full length.

    `words` says where concept words stand: (position, token, which word); `end` is the position of the first end token.
    """

    ids: tuple[int, ...]
    words: tuple[tuple[int, str, int], ...]
    end: int


def tokenise(base: BaseModel, prompt: str, vocabulary: Vocabulary) -> TokenIds:
    """A prompt as the text encoder will see it; a concept's word stands on a place of its own, filled in by `encode_prompts`.

    Text beyond the encoder's length is cut, as everywhere in Stable Diffusion; a concept that would be cut is an error.

    Raises:
        RequestError: the prompt names a concept that is not there, or names one beyond the encoder's length.

    """
    tokenizer = base.tokenizer
    ids: list[int] = [tokenizer.bos_token_id]
    words: list[tuple[int, str, int]] = []
    position = 0
    for match in TOKEN.finditer(prompt):
        token = resolve(match[0], vocabulary)
        ids += _plain_ids(base, prompt[position : match.start()])
        for word in range(vocabulary[token].shape[1]):
            words.append((len(ids), token, word))
            ids.append(tokenizer.bos_token_id)  # any id: its embedding is replaced
        position = match.end()
    ids += _plain_ids(base, prompt[position:])
    longest = base.text_length - 1
    if words and words[-1][0] >= longest:
        raise RequestError(
            f"the prompt is too long: {words[-1][1]} comes after the {longest} tokens this base model reads. Name it earlier"
        )
    ids = ids[:longest]
    end = len(ids)
    ids += [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (base.text_length - end - 1)
    return TokenIds(tuple(ids), tuple(words), end)


def resolve(token: str, vocabulary: Vocabulary) -> str:
    """The vocabulary's own token for what a prompt says: `<alice/cat>` always, `<cat>` while only one participant has it.

    Raises:
        RequestError: no concept of that name, or several; the message lists the candidates.

    """
    if token in vocabulary:
        return token
    candidates = [known for known in vocabulary if known.endswith(f"/{token[1:]}")]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise RequestError(f"{token} could be any of {', '.join(sorted(candidates))}: write which one")
    raise RequestError(f"no concept {token} here; there is {', '.join(sorted(vocabulary)) or 'none at all'}")


@dataclass(frozen=True)
class TextRows:
    """What the text encoder is really given: each distinct (prompt, cross-attention layer) once.

    `texts[r]` and `layers[r]` say what row r is; `index[p][k]` is the row that layer k reads of prompt p.
    """

    texts: tuple[TokenIds, ...]
    layers: tuple[int, ...]
    index: tuple[tuple[int, ...], ...]


def text_rows(base: BaseModel, texts: Sequence[TokenIds]) -> TextRows:
    """The distinct rows of some prompts: one per layer for a prompt that names a concept, else one for all layers."""
    count = len(cross_attentions(base))
    rows: dict[tuple[TokenIds, int], int] = {}
    index = [tuple(rows.setdefault((text, k if text.words else 0), len(rows)) for k in range(count)) for text in texts]
    return TextRows(tuple(text for text, _ in rows), tuple(layer for _, layer in rows), tuple(index))


def encode_prompts(base: BaseModel, prompts: Sequence[str], vocabulary: Vocabulary) -> TextFeatures:
    """Text features of every prompt for every cross-attention layer."""
    return encode_token_ids(base, [tokenise(base, prompt, vocabulary) for prompt in prompts], vocabulary)


def encode_token_ids(base: BaseModel, texts: Sequence[TokenIds], vocabulary: Vocabulary) -> TextFeatures:
    """As `encode_prompts`, from prompts already tokenised."""
    rows = text_rows(base, texts)
    return encode_rows(base, rows, vocabulary)[torch.tensor(rows.index, device=base.token_table.device)]


def encode_rows(base: BaseModel, rows: TextRows, vocabulary: Vocabulary) -> Float[Tensor, "rows tokens width"]:
    """The text encoder's output for each distinct row: one pass, whatever the number of prompts and layers."""
    places, vectors = [], []
    for row, (text, layer) in enumerate(zip(rows.texts, rows.layers, strict=True)):
        for position, token, word in text.words:
            places.append((row, position))
            vectors.append(vocabulary[token][layer, word])
    ids = torch.tensor([text.ids for text in rows.texts], device=base.token_table.device)
    with _replaced_embeddings(base, places, vectors):
        features: Tensor = base.text_encoder(ids).last_hidden_state
    return features


def _plain_ids(base: BaseModel, text: str) -> list[int]:
    return list(base.tokenizer(text, add_special_tokens=False).input_ids) if text.strip() else []


@contextmanager
def _replaced_embeddings(
    base: BaseModel, places: Sequence[tuple[int, int]], vectors: Sequence[Tensor]
) -> Iterator[None]:
    if not places:
        yield
        return
    table = base.text_encoder.get_input_embeddings()  # type: ignore[operator]
    row, position = torch.tensor(places, device=table.weight.device).T
    stacked = torch.stack(list(vectors)).to(table.weight.device)

    def replace(_module: object, _inputs: object, embedded: Tensor) -> Tensor:
        return embedded.index_put((row, position), stacked.to(embedded.dtype))

    handle = table.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
