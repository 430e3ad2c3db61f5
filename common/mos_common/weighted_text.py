"""Texts of any length, with weights: chunks that the text encoder reads, and their encodings.

A text longer than the encoder reads is cut into chunks of as many tokens as it does read, each with
its own start and end, and their encodings stand side by side, as in Automatic1111's web UI and
compel. A chunk ends early at a comma in its last quarter, so that fewer phrases are cut in two; a
concept's words are never separated. XL's pooled encoding is that of the first chunk.

A weight w acts on the encoding z of each of its tokens, and e is the encoding of the empty text at
the same position:

    z' = e + w (z - e)

That is what compel (above 1) and ComfyUI do. Automatic1111 multiplies z itself and then scales the
whole prompt back to its former mean: the words that nobody weighted change with it, and since all
encodings of CLIP share a few large components, much of what is multiplied says nothing about the
word. With e taken away, a weight of 0 is the empty text, and 1 changes no bit. Each layer's own
encoding of a concept's words is weighted in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch

from mos_common.base_model import Base
from mos_common.errors import RequestError
from mos_common.prompt_grammar import Part
from mos_common.prompt_names import split_at_concepts
from mos_common.words import TextFeatures, TokenIds, Vocabulary, encode_token_ids, padded_ids, plain_ids, tokenise

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MOST_CHUNKS = 16


@dataclass(frozen=True)
class Chunk:
    """As much of a text as the encoder reads at once; `weights[k]` are those of text encoder k."""

    ids: TokenIds
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class WeightedText:
    """A text in chunks, at least one. `cut` is what is beyond the most that are read."""

    chunks: tuple[Chunk, ...]
    cut: str = ""


@dataclass(frozen=True)
class _Unit:
    """What stays together: a token, or a concept's words. `ids[k]` are those of tokenizer k."""

    ids: tuple[tuple[int, ...], ...]
    weight: float
    token: str | None = None


@dataclass
class _Filling:
    """The units of a chunk, and how many tokens they are for each tokenizer."""

    units: list[_Unit] = field(default_factory=list)

    def sizes(self, *also: _Unit) -> list[int]:
        """Return the number of tokens with `also`, for each tokenizer."""
        units = [*self.units, *also]
        return [sum(map(len, ids)) for ids in zip(*(unit.ids for unit in units), strict=True)]


def weighted_text(base: Base, parts: Sequence[Part], vocabulary: Vocabulary) -> WeightedText:
    """Tokenise the parts of a prompt into chunks.

    Raises:
        RequestError: something in <> is no concept, or a concept has no place in the chunks.

    """
    units = [unit for part in parts for unit in _units_of(base, part, vocabulary)]
    room, comma = base.text_length - 2, tuple(plain_ids(base.tokenizer, ","))
    filled = _fill(units, room, comma)
    for unit in (unit for filling in filled[MOST_CHUNKS:] for unit in filling.units if unit.token):
        raise RequestError(
            f"the prompt is too long: {unit.token} comes after the {MOST_CHUNKS * room} tokens that are read. "
            "Name it earlier"
        )
    cut = [token for filling in filled[MOST_CHUNKS:] for unit in filling.units for token in unit.ids[0]]
    chunks = tuple(_chunk(base, filling.units) for filling in filled[:MOST_CHUNKS])
    return WeightedText(chunks, str(base.tokenizer.decode(cut)).strip())


def lengthened(base: Base, texts: Sequence[WeightedText], count: int) -> list[WeightedText]:
    """Return texts of `count` chunks each: the shorter ones end with chunks of the empty text."""
    empty = _chunk(base, [])
    return [WeightedText((*text.chunks, *[empty] * (count - len(text.chunks))), text.cut) for text in texts]


def encode_weighted(base: Base, texts: Sequence[WeightedText], vocabulary: Vocabulary) -> TextFeatures:
    """Encode texts of equally many chunks for every cross-attention layer."""
    chunks = [chunk for text in texts for chunk in text.chunks]
    features = _weighted(base, encode_token_ids(base, [chunk.ids for chunk in chunks], vocabulary), chunks)
    # Layers are outermost in memory and the chunks of a text neighbours: this moves nothing.
    by_layer = features.transpose(0, 1)
    layers, width = by_layer.shape[0], by_layer.shape[3]
    return by_layer.reshape(layers, len(texts), -1, width).transpose(0, 1)


def _weighted(base: Base, features: TextFeatures, chunks: Sequence[Chunk]) -> TextFeatures:
    """Return e + w (z - e) where w is not 1, and z itself where it is."""
    if all(weight == 1 for chunk in chunks for weights in chunk.weights for weight in weights):
        return features
    empty = encode_token_ids(base, [tokenise(base, "", {})], {})[0, 0]
    widths = [int(encoder.config.hidden_size) for encoder in base.text_encoders]
    w = torch.cat(
        [
            torch.tensor([chunk.weights[k] for chunk in chunks])[:, :, None].expand(-1, -1, width)
            for k, width in enumerate(widths)
        ],
        dim=2,
    ).to(features)[:, None]
    scaled = empty + w * (features - empty)
    return torch.where(w == 1, features, scaled).transpose(0, 1).contiguous().transpose(0, 1)


def _units_of(base: Base, part: Part, vocabulary: Vocabulary) -> Iterator[_Unit]:
    texts, tokens = split_at_concepts(base, part.text, vocabulary)
    for text, token in zip_longest(texts, tokens):
        yield from _text_units(base, text, part.weight)
        if token:
            # Any id will do: its embedding is replaced.
            ids = tuple((tokenizer.bos_token_id,) * vocabulary[token].shape[1] for tokenizer in base.tokenizers)
            yield _Unit(ids, part.weight, token)


def _text_units(base: Base, text: str, weight: float) -> Iterator[_Unit]:
    ids = [plain_ids(tokenizer, text) for tokenizer in base.tokenizers]
    if len({len(each) for each in ids}) == 1:
        yield from (_Unit(tuple((each,) for each in tokens), weight) for tokens in zip(*ids, strict=True))
        return
    # XL's tokenizers read "cat!" as different numbers of tokens: such a word stays together.
    room, words = base.text_length - 2, text.split()
    if len(words) > 1:
        for word in words:
            yield from _text_units(base, word, weight)
        return
    for start in range(0, max(map(len, ids)), room):
        yield _Unit(tuple(tuple(each[start : start + room]) for each in ids), weight)


def _fill(units: Sequence[_Unit], room: int, comma: tuple[int, ...]) -> list[_Filling]:
    chunks = [_Filling()]
    for unit in units:
        if max(map(len, unit.ids)) > room:
            raise RequestError(
                f"{unit.token} is {len(unit.ids[0])} words, more than the {room} that the base model reads"
            )
        if max(chunks[-1].sizes(unit)) > room:
            moved = _after_comma(chunks[-1].units, comma, room // 4)
            if max(_Filling(moved).sizes(unit)) > room:
                moved = []
            del chunks[-1].units[len(chunks[-1].units) - len(moved) :]
            chunks.append(_Filling(moved))
        chunks[-1].units.append(unit)
    return chunks


def _after_comma(units: Sequence[_Unit], comma: tuple[int, ...], most: int) -> list[_Unit]:
    """Return the last units, after a comma among the last `most`."""
    for count in range(min(most, len(units))):
        if units[len(units) - 1 - count].ids[0] == comma:
            return list(units[len(units) - count :])
    return []


def _chunk(base: Base, units: Sequence[_Unit]) -> Chunk:
    of_each, weights = [], []
    for k, tokenizer in enumerate(base.tokenizers):
        ids, words, weighted = _laid_out(tokenizer, units, k)
        of_each.append(padded_ids(base, tokenizer, ids, words))
        weights.append((*weighted, *[1.0] * (base.text_length - len(weighted))))
    first, *others = of_each
    return Chunk(TokenIds(first.ids, first.words, first.end, others[0] if others else None), tuple(weights))


def _laid_out(
    tokenizer: CLIPTokenizer, units: Sequence[_Unit], k: int
) -> tuple[list[int], list[tuple[int, str, int]], list[float]]:
    """Return the ids for one tokenizer, the places of concept words, and the weight of each id."""
    ids, words, weights = [int(tokenizer.bos_token_id)], list[tuple[int, str, int]](), [1.0]
    for unit in units:
        if unit.token:
            words += [(len(ids) + word, unit.token, word) for word in range(len(unit.ids[k]))]
        ids += unit.ids[k]
        weights += [unit.weight] * len(unit.ids[k])
    return ids, words, weights
