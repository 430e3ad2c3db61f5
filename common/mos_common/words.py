"""A concept's words in a prompt, and prompts encoded once for each cross-attention layer.

Concept V is two words, V_rand and V_class, each with one embedding per cross-attention layer
(extended textual inversion, P+). So a prompt that names a concept has one encoding per
cross-attention layer; layer k reads encoding k. Layers with equal embeddings share one encoding:
all of them if a prompt names no concept, or one whose words are the same in all layers. With two
text encoders, the embedding of a word is both encoders' side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.errors import RequestError
from mos_common.prompt_names import own_words, split_at_concepts

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

Vocabulary = Mapping[str, Float[Tensor, "layers words width"]]
TextFeatures = Float[Tensor, "prompts layers tokens width"]


@dataclass(frozen=True)
class TokenIds:
    """A prompt as token ids, padded to the length of the text encoder.

    `words` lists the concept words as (position, token, number of the word); `end` is the position
    of the first end-of-text token, after which everything is padding. `second` is the same prompt
    by XL's second tokenizer, which pads with "!" and therefore reads "cat!" as other tokens.
    """

    ids: tuple[int, ...]
    words: tuple[tuple[int, str, int], ...]
    end: int
    second: TokenIds | None = None


def tokenise(base: Base, prompt: str, vocabulary: Vocabulary) -> TokenIds:
    """Tokenise a prompt; each word of a concept has a place that `encode_prompts` fills in.

    Text beyond the encoder's length is cut, as usual in Stable Diffusion (`cut_text` returns it);
    cutting a concept is an error.

    Raises:
        RequestError: something in <> is no concept, or a concept is beyond the encoder's length.

    """
    return tokenise_parts(base, *split_at_concepts(base, prompt, vocabulary), vocabulary)


def tokenise_parts(base: Base, texts: Sequence[str], tokens: Sequence[str], vocabulary: Vocabulary) -> TokenIds:
    """Tokenise plain texts with a concept between each two, as `tokenise` does.

    A text may hold anything, such as "<b>", that a prompt would have to know as a concept.

    Raises:
        RequestError: a concept comes beyond the encoder's length.

    """
    first, *others = (
        padded_ids(base, tokenizer, *_all_ids(tokenizer, texts, tokens, vocabulary)) for tokenizer in base.tokenizers
    )
    return replace(first, second=others[0]) if others else first


def cut_text(base: Base, prompt: str, vocabulary: Vocabulary) -> str:
    """Return the end of a prompt that lies beyond the encoder's length and is not read."""
    ids, _ = _all_ids(base.tokenizer, *split_at_concepts(base, prompt, vocabulary), vocabulary)
    return str(base.tokenizer.decode(ids[base.text_length - 1 :])).strip()


def padded_ids(base: Base, tokenizer: CLIPTokenizer, ids: list[int], words: list[tuple[int, str, int]]) -> TokenIds:
    """Return the ids of a start token and a text, cut or padded to the encoder's length."""
    longest = base.text_length - 1
    if words and words[-1][0] >= longest:
        raise RequestError(
            f"the prompt is too long: {words[-1][1]} comes after the {longest} tokens that this base model reads. "
            "Name it earlier"
        )
    ids = ids[:longest]
    end = len(ids)
    ids += [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (base.text_length - (end + 1))
    return TokenIds(tuple(ids), tuple(words), end)


def _all_ids(
    tokenizer: CLIPTokenizer, texts: Sequence[str], tokens: Sequence[str], vocabulary: Vocabulary
) -> tuple[list[int], list[tuple[int, str, int]]]:
    """Return the ids of a whole prompt, however long, and the places of concept words in it."""
    ids: list[int] = [tokenizer.bos_token_id]
    words: list[tuple[int, str, int]] = []
    for text, token in zip_longest(texts, tokens):
        ids += plain_ids(tokenizer, text)
        for word in range(vocabulary[token].shape[1] if token else 0):
            words.append((len(ids), token, word))
            ids.append(tokenizer.bos_token_id)  # any id: its embedding is replaced
    return ids, words


@dataclass(frozen=True)
class TextRows:
    """The batch of the text encoder: each distinct (prompt, cross-attention layer) once.

    `texts[r]` and `layers[r]` say what row r is; `index[p][k]` is the row that layer k reads of
    prompt p.
    """

    texts: tuple[TokenIds, ...]
    layers: tuple[int, ...]
    index: tuple[tuple[int, ...], ...]


def text_rows(base: Base, texts: Sequence[TokenIds], vocabulary: Vocabulary) -> TextRows:
    """Return the distinct rows of some prompts: one per group of layers with the same words."""
    count = base.layout.word_layers
    alike = {token: _alike(words, count) for token, words in vocabulary.items()}
    rows: dict[tuple[TokenIds, int], int] = {}
    index = []
    for text in texts:
        of_text, first = [], dict[tuple[int, ...], int]()
        for k in range(count):
            kind = tuple(alike[token][k] for token in dict.fromkeys(token for _, token, _ in text.words))
            of_text.append(rows.setdefault((text, first.setdefault(kind, k)), len(rows)))
        index.append(tuple(of_text))
    return TextRows(tuple(text for text, _ in rows), tuple(layer for _, layer in rows), tuple(index))


def encode_prompts(base: Base, prompts: Sequence[str], vocabulary: Vocabulary) -> TextFeatures:
    """Encode every prompt for every cross-attention layer."""
    return encode_token_ids(base, [tokenise(base, prompt, vocabulary) for prompt in prompts], vocabulary)


def encode_token_ids(base: Base, texts: Sequence[TokenIds], vocabulary: Vocabulary) -> TextFeatures:
    """Encode prompts that are already tokenised, as `encode_prompts` does."""
    rows = text_rows(base, texts, vocabulary)
    index = torch.tensor(rows.index, device=base.token_table.device)
    # Layers are outermost in memory: each layer's prompts are contiguous, as they are read.
    return encode_rows(base, rows, vocabulary)[index.T].transpose(0, 1)


def encode_rows(base: Base, rows: TextRows, vocabulary: Vocabulary) -> Float[Tensor, "rows tokens width"]:
    """Return the text encoder's output for each distinct row, in one pass."""
    vectors = []
    for text, layer in zip(rows.texts, rows.layers, strict=True):
        for _, token, word in text.words:
            words = vocabulary[token]
            vectors.append(words[layer if len(words) > 1 else 0, word])
    features = [
        # XL's UNet was trained on the output of the last but one layer.
        out.last_hidden_state if len(base.text_encoders) == 1 else out.hidden_states[-2]
        for out in _outputs(base, rows.texts, vectors)
    ]
    return torch.cat(features, dim=2)


def encode_pooled(
    base: Base, texts: Sequence[TokenIds], vocabulary: Vocabulary
) -> Float[Tensor, "prompts width"] | None:
    """Return the pooled output of XL's second text encoder; None for other bases.

    It reads the first layer's embedding of layer-wise words.
    """
    if len(base.text_encoders) == 1:
        return None
    distinct = list(dict.fromkeys(texts))
    vectors = [vocabulary[token][0, word] for text in distinct for _, token, word in text.words]
    *_, last = _outputs(base, distinct, vectors)
    pooled: Tensor = last.text_embeds
    return pooled[[distinct.index(text) for text in texts]]


def _outputs(base: Base, texts: Sequence[TokenIds], vectors: Sequence[Tensor]) -> Iterator[Any]:
    """Yield the output of each text encoder, with `vectors` in place of the concept words."""
    widths = [table.shape[1] for table in base.token_tables]
    parts = [torch.split(vector, widths) for vector in vectors]
    for number, encoder in enumerate(base.text_encoders):
        table = base.token_tables[number]
        read = [text.second if number and text.second else text for text in texts]
        places = [(row, position) for row, text in enumerate(read) for position, _, _ in text.words]
        ids = torch.tensor([text.ids for text in read], device=table.device)
        with _replaced_embeddings(encoder, places, [part[number] for part in parts]):
            yield encoder(ids, output_hidden_states=len(widths) > 1)


def _alike(words: Tensor, count: int) -> list[int]:
    """Return, for each layer, the first one with the same words.

    While words are tuned, every layer counts as distinct, even if layers start equal.
    """
    if words.shape[0] == 1:
        return [0] * count
    if words.requires_grad:
        return list(range(count))
    return [next((j for j in range(k) if torch.equal(words[j], words[k])), k) for k in range(count)]


def plain_ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    """Return the token ids of a text that names no concept, without start and end."""
    if not text.strip():
        return []
    if own_words(tokenizer):  # a word of several vectors is followed by its others: <toy>, <toy>_1, ...
        from diffusers.loaders import TextualInversionLoaderMixin

        text = TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@contextmanager
def _replaced_embeddings(
    encoder: CLIPTextModel | CLIPTextModelWithProjection, places: Sequence[tuple[int, int]], vectors: Sequence[Tensor]
) -> Iterator[None]:
    if not places:
        yield
        return
    table = encoder.get_input_embeddings()
    row, position = torch.tensor(places).T
    stacked = torch.stack(list(vectors))

    def replace(_module: object, _inputs: object, embedded: Tensor) -> Tensor:
        where = row.to(embedded.device), position.to(embedded.device)
        return embedded.index_put(where, stacked.to(embedded))

    handle = table.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
