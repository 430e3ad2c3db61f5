"""Sprites redrawn in another manner: outlines, pixel blocks, lines, greys, odd or few colours.

They teach the base that one thing can be drawn in many ways. The sprite keeps its place and its
size.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from jaxtyping import Bool

from mos_tiny.recipe.sprites import Sprite, resized, to_hsv, to_rgb
from mos_tiny.recipe.world import HAIR, PALETTE, with_article

INK = (20, 18, 24)
BLOCKS = (12, 16, 20)  # pixel blocks along a side
EDGE = 0.16  # neighbouring colours in [0, 1] that differ by more have an edge between them
OPAQUE = 128
DARK = 45  # darker than any skin: hair, ink


@dataclass(frozen=True)
class Manner:
    """A way to redraw a sprite; `words` follow the subject in a caption."""

    words: str
    redrawn: Callable[[Sprite, Random], Sprite]
    keeps_colours: bool = True


def outlined(sprite: Sprite, random: Random) -> Sprite:
    """Draw dark lines of one or two pixels around the sprite, and between its colours."""
    drawn, inside = sprite.copy(), sprite[..., 3] > OPAQUE
    around = _grown(inside) & ~inside
    if random.random() < 0.5:
        around |= _grown(around) & ~inside
    drawn[around | edges(sprite)] = (*INK, 255)
    return drawn


def in_blocks(sprite: Sprite, random: Random) -> Sprite:
    """Draw squares of one colour each, with a hard rim."""
    side, count = len(sprite), random.choice(BLOCKS)
    small = resized(sprite, count).copy()
    small[..., 3] = np.where(small[..., 3] > OPAQUE - 28, 255, 0)
    nearest = np.arange(side) * count // side
    return np.ascontiguousarray(small[nearest][:, nearest])


def as_lines(sprite: Sprite, random: Random) -> Sprite:
    """Draw the rim and the edges between colours on paper; fill the darkest parts half the time."""
    drawn, inside = sprite.copy(), sprite[..., 3] > OPAQUE
    drawn[inside] = (250, 249, 245, 255)
    drawn[~inside, 3] = 0
    lines = (_grown(~inside) & inside) | edges(sprite)
    if random.random() < 0.5:
        lines |= inside & (sprite[..., :3].mean(axis=-1) < DARK)
    drawn[lines] = (*INK, 255)
    return drawn


def in_greys(sprite: Sprite, random: Random) -> Sprite:
    """Replace colours by their brightness."""
    drawn = sprite.copy()
    drawn[..., :3] = (sprite[..., :3] @ np.array([0.299, 0.587, 0.114]))[..., None]
    return drawn


def in_odd_colours(sprite: Sprite, random: Random) -> Sprite:
    """Turn all hues by the same angle, between a fifth and four fifths of the circle."""
    drawn = sprite.copy()
    hsv = to_hsv(sprite[..., :3] / 255.0)
    hsv[..., 0] = (hsv[..., 0] + random.uniform(0.2, 0.8)) % 1
    drawn[..., :3] = np.clip(to_rgb(hsv) * 255, 0, 255)
    return drawn


def in_few_colours(sprite: Sprite, random: Random) -> Sprite:
    """Round red, green and blue to four levels each."""
    drawn = sprite.copy()
    drawn[..., :3] = (np.round(sprite[..., :3] / 85) * 85).astype(np.uint8)
    return drawn


MANNERS = (
    Manner("with dark lines", outlined),
    Manner("with dark lines", outlined),
    Manner("in blocks", in_blocks),
    Manner("in blocks", in_blocks),
    Manner("as a line drawing", as_lines, keeps_colours=False),
    Manner("as a line drawing", as_lines, keeps_colours=False),
    Manner("in grey", in_greys, keeps_colours=False),
    Manner("in odd colours", in_odd_colours, keeps_colours=False),
    Manner("in few colours", in_few_colours, keeps_colours=False),
)
"""The manners to choose from; one that stands here twice is chosen twice as often."""

_SKINS = "light-skinned|dark-skinned"
_COLOURS = "|".join(sorted({*HAIR, *PALETTE}))


def caption_in_manner(caption: str, manner: Manner) -> str:
    """Append the manner's words, and drop words for colours that are gone.

    Words for skin are always dropped, so that two subjects fit into a prompt.
    """
    untrue = _SKINS if manner.keeps_colours else f"{_SKINS}|{_COLOURS}"
    plain = re.sub(rf"\b({untrue}) ", "", caption)
    plain = re.sub(r"\ban? (?=(\w))", lambda match: with_article(match[1])[:-1], plain)
    return f"{plain} {manner.words}" + ("," if plain.endswith(",") else "")


def edges(sprite: Sprite) -> Bool[np.ndarray, "h w"]:
    """Mark pixels inside a sprite whose colour differs abruptly from the next below or right."""
    colours = sprite[..., :3].astype(np.float32) / 255
    inside = sprite[..., 3] > OPAQUE
    marked = np.zeros(inside.shape, bool)
    for axis in (0, 1):
        step = np.abs(np.diff(colours, axis=axis, append=np.take(colours, [-1], axis))).mean(axis=-1)
        marked |= (step > EDGE) & inside & np.roll(inside, -1, axis)
    return marked


def _grown(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Add the four neighbours of each pixel to the mask."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
