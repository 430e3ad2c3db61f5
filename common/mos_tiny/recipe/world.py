"""The words of the tiny world, which the embedded base model can draw.

A caption names one or two subjects ("a red car", "a smiling woman with long blue hair, outline
style,") and a place ("on a green background", "on the beach"). Every word here is one token of
the base's tokenizer; other words are several tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

Colour = tuple[int, int, int]

NOUNS = (
    *("dog", "cat", "rabbit", "bear", "panda", "frog", "penguin", "fish", "turtle", "owl"),
    *("car", "bus", "airplane", "sailboat", "house"),
    *("tree", "palm tree", "cactus", "tulip", "sunflower", "mushroom"),
    *("apple", "banana", "strawberry", "pizza", "cupcake"),
    *("balloon", "heart", "star", "crown", "umbrella", "soccer ball", "book", "chair", "guitar", "snowman"),
)
RECOLOURED = (
    *("car", "bus", "balloon", "heart", "star", "fish", "tulip"),
    *("umbrella", "book", "house", "mushroom", "apple", "chair", "cupcake"),
)
"""Nouns that come in all of `HUES`."""

HUES = {"red": 0.0, "orange": 0.075, "yellow": 0.14, "green": 0.33, "blue": 0.6, "purple": 0.76, "pink": 0.92}
PALETTE: dict[str, Colour] = {
    "red": (220, 50, 50),
    "orange": (240, 140, 40),
    "yellow": (250, 215, 70),
    "green": (70, 170, 80),
    "blue": (60, 120, 220),
    "purple": (140, 80, 190),
    "pink": (245, 150, 190),
    "teal": (80, 210, 200),
    "black": (25, 25, 30),
    "white": (245, 245, 245),
}
"""Colours of backgrounds and clothes."""

HAIR: dict[str, Colour] = {
    "black": (25, 20, 30),
    "brown": (115, 65, 40),
    "blond": (220, 185, 105),
    "red": (225, 92, 102),
    "orange": (245, 160, 95),
    "white": (225, 225, 245),
    "blue": (107, 217, 233),
    "pink": (252, 144, 159),
    "purple": (146, 135, 255),
    "yellow": (244, 209, 80),
    "auburn": (165, 87, 40),
}
SCENES = {
    "beach": "on the beach",
    "forest": "in the forest",
    "snow": "in the snow",
    "desert": "in the desert",
    "night": "at night",
    "city": "in the city",
    "meadow": "in a meadow",
    "sea": "at sea",
    "sunset": "at sunset",
    "room": "in a room",
}
STYLES = {"toonHead": "toon style", "micah": "outline style", "personas": "flat style"}
"""The styles of people in training: their names in the art and in captions."""


def rgb(code: str) -> Colour:
    """Return the colour that six hexadecimal digits give."""
    return int(code[0:2], 16), int(code[2:4], 16), int(code[4:6], 16)


def nearest(code: str, names: Mapping[str, Colour]) -> str:
    """Return the name of the colour nearest to six hexadecimal digits."""
    colour = rgb(code)
    return min(names, key=lambda name: sum((a - b) ** 2 for a, b in zip(names[name], colour, strict=True)))


def with_article(noun: str) -> str:
    """Put the indefinite article before a noun: `a cat`, `an apple`."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun
