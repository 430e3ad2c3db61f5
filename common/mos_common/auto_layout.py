"""Regions for the concepts that a prompt names, so that nobody has to draw them.

A region's prompt is the whole prompt with one concept in it and class words for the others, so that
the base knows the rest of the picture; the picture's own prompt has class words alone. Places and
styles get no region: they stay in every prompt, and so act everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from mos_common.attention import WatchedWords
from mos_common.base_model import Base
from mos_common.drawing import Drawing, denoise, generators_of, noise_from, scheduler_for
from mos_common.errors import RequestError
from mos_common.own.places import places_of_words
from mos_common.prompt_names import TAG, resolve
from mos_common.regions import Region
from mos_common.shapes import Box, Mask, feature_maps, softened
from mos_common.words import Vocabulary
from mos_common.written_prompts import read_written_prompts

CONCEPT = re.compile(f"({TAG.pattern})")
PLACES = frozenset(
    [
        "place",
        "scene",
        "scenery",
        "background",
        "landscape",
        "location",
        "room",
        "interior",
        "house",
        "city",
        "street",
        "town",
        "village",
        "garden",
        "park",
        "forest",
        "beach",
        "sea",
        "sky",
        "mountain",
        "desert",
        "meadow",
        "style",
        "painting",
        "artstyle",
        "aesthetic",
    ]
)
FIRST_PASS = 8  # steps; where things are is decided early, and shows in few
SMOOTH = 0.15  # of the shorter side: attention flickers from cell to cell
EDGE = 0.05  # of the regions that attention gave
LEAST = 0.02  # share of the picture below which a word attends nowhere


@dataclass(frozen=True)
class Named:
    """A prompt that names concepts: `parts` are texts with a concept's token between each two.

    `tokens` are the concepts that are laid out, in order, and `classes` their class words.
    """

    parts: tuple[str, ...]
    tokens: tuple[str, ...]
    classes: Mapping[str, str]

    def told(self, token: str = "") -> str:
        """Return the prompt with class words in place of all laid-out concepts but one."""
        return "".join(self.classes[part] if part in self.tokens and part != token else part for part in self.parts)


def named_in(prompt: str, vocabulary: Vocabulary, classes: Mapping[str, str]) -> Named:
    """Find the concepts of a prompt that are laid out; `classes` are the class words of a model's.

    Raises:
        RequestError: there are none, or one's class word is not known.

    """
    parts = [part if i % 2 == 0 else _whole(part, vocabulary) for i, part in enumerate(CONCEPT.split(prompt))]
    tokens = [token for token in dict.fromkeys(parts[1::2]) if token in vocabulary]
    if unknown := next((token for token in tokens if not classes.get(token)), None):
        raise RequestError(f"--auto-layout: the model does not say what kind of thing {unknown} is: give regions")
    tokens = [token for token in tokens if classes[token].lower() not in PLACES]
    if not tokens:
        raise RequestError("--auto-layout finds no concept to lay out in the prompt: name some, or leave it out")
    return Named(tuple(parts), tuple(tokens), classes)


def side_by_side(named: Named) -> list[Region]:
    """Return equal parts of the picture's width, one for each concept, from left to right."""
    count = len(named.tokens)
    return [Region(named.told(t), Box(i / count, 0, (i + 1) / count, 1)) for i, t in enumerate(named.tokens)]


@torch.no_grad()
def where_attended(base: Base, named: Named, seed: int, vocabulary: Vocabulary, how: Drawing) -> list[Region]:
    """Return a region for each concept where a first, short drawing attends to its class word.

    Raises:
        RequestError: some class word attends nowhere, or is not in the prompt from the first step.

    """
    return parted(named, _attention(base, named, seed, vocabulary, how))


def parted(named: Named, attended: Float[Tensor, "concepts height width"]) -> list[Region]:
    """Return a region for each concept, from the attention of each latent cell to its class word.

    A cell goes to the concept whose word has the most of it, measured by the word's mean over the
    picture, if that is more than the mean.

    Raises:
        RequestError: some class word has hardly a cell.

    """
    relative = attended / attended.mean(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(attended.dtype).tiny)
    smooth = torch.stack([softened(each.double(), SMOOTH) for each in relative])
    owner = smooth.argmax(dim=0).where(smooth.amax(dim=0) > 1, torch.tensor(-1))
    height, width = owner.shape
    regions = []
    for i, token in enumerate(named.tokens):
        inside = owner == i
        if inside.float().mean() < LEAST:
            raise RequestError(
                f"--auto-layout attention: the first pass puts {named.classes[token]!r} ({token}) nowhere: try another "
                "--seed, or --auto-layout side-by-side"
            )
        grey = (inside.to(torch.uint8) * 255).numpy().tobytes()
        regions.append(Region(named.told(token), Mask(width, height, grey, f"of {token}"), edge=EDGE))
    return regions


def _attention(
    base: Base, named: Named, seed: int, vocabulary: Vocabulary, how: Drawing
) -> Float[Tensor, "concepts height width"]:
    """Return each latent cell's attention to the class words, over a short drawing.

    Of a prompt that changes on the way, what it says first is drawn.
    """
    # A concept that is its class word's embeddings reads as that word, and its place is known.
    ids = {token: base.tokenizer(named.classes[token], add_special_tokens=False).input_ids for token in named.tokens}
    words = {**vocabulary, **{token: base.token_rows(list(ids[token]))[None] for token in named.tokens}}
    prompt, steps, scheduler = "".join(named.parts), min(how.steps, FIRST_PASS), scheduler_for(base, how)
    places = places_of_words(base, prompt, words, steps)
    of_token = [[position for position, token in places if token == each] for each in named.tokens]
    if late := next((each for each, at in zip(named.tokens, of_token, strict=True) if not at), None):
        raise RequestError(f"--auto-layout attention: the first steps say nothing of {late}: give regions")
    watched_at = [position for positions in of_token for position in positions]
    height, width = how.sized_for(base)
    size = (height // base.pixels_per_latent, width // base.pixels_per_latent)
    guidance = base.preset.guidance if how.guidance is None else how.guidance
    (first, *_) = read_written_prompts(
        base,
        [prompt],
        words,
        steps=steps,
        evaluations=steps,
        guidance=guidance,
        negative=how.negative,
        size=size,
    )
    told = first.conditioning
    watched = WatchedWords(torch.tensor([watched_at] * len(told.features), device=base.device))
    total, maps = torch.zeros(len(watched.positions[0]), *size), feature_maps(*size)

    def add(_done: int, _steps: int) -> None:
        for seen in watched.maps.values():
            of_prompt = seen[-1].float().cpu().reshape(-1, *maps[seen.shape[2]])
            total.add_(interpolate(of_prompt[None], size=size, mode="bilinear")[0])

    generators = generators_of([seed])
    noise = noise_from(base, generators, height, width)
    denoise(base, noise, told, scheduler, steps, generators, add, watched=watched)
    counts = [len(positions) for positions in of_token]
    return torch.stack([part.mean(dim=0) for part in torch.split(total, counts)])


def _whole(tag: str, vocabulary: Vocabulary) -> str:
    """Return a concept's whole name; what names none, drawing itself will judge."""
    try:
        return resolve(tag, vocabulary)
    except RequestError:
        return tag
