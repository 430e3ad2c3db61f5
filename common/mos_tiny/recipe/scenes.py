"""Backgrounds of the tiny world: flat colours, and ten drawn scenes with random details."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

import numpy as np

from mos_tiny.recipe.sprites import Canvas, Sprite, paste, resized
from mos_tiny.recipe.world import PALETTE, SCENES, Colour

HEIGHT = 64
LOW_HORIZON = 44
Icons = Mapping[str, Sprite]
SCENERY = ("palm-tree", "evergreen-tree", "cactus", "full-moon", "sun")
"""The icons in scenes."""


def flat(colour: str, width: int) -> Canvas:
    """Fill a canvas with a paler shade of a palette colour (black and white stay)."""
    value = np.array(PALETTE[colour], np.float64)
    if colour not in ("black", "white"):
        value = value * 0.8 + 45
    return np.broadcast_to(np.clip(value, 0, 255).astype(np.float32), (HEIGHT, width, 3)).copy()


def scene(name: str, width: int, random: Random, icons: Icons) -> Canvas:
    """Paint one of `SCENES`; the same state of `random` paints the same scene."""
    horizon = LOW_HORIZON if name in ("night", "city", "sunset", "room") else random.randint(34, 42)
    return _PAINTERS[name](width, horizon, random, icons)


def background(width: int, random: Random, icons: Icons) -> tuple[Canvas, str]:
    """Choose a flat colour (six times in ten) or a scene; return it with the words for it."""
    if random.random() < 0.6:
        colour = random.choice(list(PALETTE))
        return flat(colour, width), f"on a {colour} background"
    name = random.choice(list(SCENES))
    return scene(name, width, random, icons), SCENES[name]


def _gradient(height: int, width: int, top: Colour, bottom: Colour) -> Canvas:
    t = np.linspace(0, 1, height)[:, None, None]
    mixed = np.array(top, np.float32) * (1 - t) + np.array(bottom, np.float32) * t
    return np.broadcast_to(mixed, (height, width, 3)).copy()


def _land(width: int, horizon: int, sky: tuple[Colour, Colour], ground: tuple[Colour, Colour]) -> Canvas:
    canvas = _gradient(HEIGHT, width, *sky)
    canvas[horizon:] = _gradient(HEIGHT - horizon, width, *ground)
    return canvas


def _beach(width: int, horizon: int, random: Random, icons: Icons) -> Canvas:
    canvas = _gradient(HEIGHT, width, (120, 200, 245), (190, 230, 250))
    canvas[horizon : horizon + 8] = (40, 140, 200)
    canvas[horizon + 8 :] = _gradient(HEIGHT - horizon - 8, width, (240, 220, 160), (225, 195, 125))
    paste(canvas, resized(icons["palm-tree"], 32), horizon - 22, random.choice([-6, width - 26]))
    return canvas


def _forest(width: int, horizon: int, random: Random, icons: Icons) -> Canvas:
    canvas = _land(width, horizon, ((150, 210, 190), (190, 230, 190)), ((80, 140, 70), (55, 110, 50)))
    for x in range(-8, width, 13):
        tree = resized(icons["evergreen-tree"], random.randint(26, 34))
        paste(canvas, tree, horizon - 26, x + random.randint(-2, 2))
    return canvas


def _snow(width: int, horizon: int, random: Random, icons: Icons) -> Canvas:
    canvas = _land(width, horizon, ((170, 200, 230), (215, 230, 245)), ((250, 252, 255), (225, 235, 245)))
    for x in (random.randint(-4, 6), width - random.randint(12, 20)):
        paste(canvas, resized(icons["evergreen-tree"], 18), horizon - 15, x)
    return canvas


def _desert(width: int, horizon: int, random: Random, icons: Icons) -> Canvas:
    canvas = _land(width, horizon, ((250, 200, 130), (255, 230, 180)), ((235, 190, 110), (205, 150, 80)))
    paste(canvas, resized(icons["cactus"], 20), horizon - 14, random.choice([-2, width - 18]))
    return canvas


def _night(width: int, horizon: int, random: Random, icons: Icons) -> Canvas:
    canvas = _gradient(HEIGHT, width, (10, 12, 45), (40, 40, 95))
    paste(canvas, resized(icons["full-moon"], 13), 4, random.choice([4, width - 18]))
    for _ in range(20 * width // 64):
        canvas[random.randint(0, HEIGHT - 1), random.randint(0, width - 1)] = (255, 255, 210)
    return canvas


def _city(width: int, horizon: int, random: Random, icons: Icons) -> Canvas:
    canvas = _gradient(HEIGHT, width, (140, 190, 230), (220, 230, 240))
    x = -2
    while x < width:
        wide, top = random.randint(10, 15), random.randint(8, 30)
        canvas[top:54, max(0, x) : x + wide] = random.choice([(110, 120, 140), (150, 150, 160), (90, 100, 125)])
        canvas[top + 3 : 52 : 5, max(0, x + 2) : max(x + 2, x + wide - 2) : 3] = (250, 235, 160)
        x += wide + 1
    canvas[54:] = (90, 90, 95)
    return canvas


def _meadow(width: int, horizon: int, random: Random, icons: Icons) -> Canvas:
    canvas = _land(width, horizon, ((130, 200, 250), (205, 235, 250)), ((130, 200, 90), (90, 165, 65)))
    paste(canvas, resized(icons["sun"], 14), 3, random.choice([3, width - 17]))
    return canvas


def _sea(width: int, horizon: int, random: Random, icons: Icons) -> Canvas:
    return _land(width, horizon, ((140, 205, 245), (215, 235, 250)), ((50, 130, 210), (20, 80, 160)))


def _sunset(width: int, horizon: int, random: Random, icons: Icons) -> Canvas:
    canvas = _gradient(HEIGHT, width, (120, 60, 120), (255, 160, 80))
    y, x = np.mgrid[0:HEIGHT, 0:width]
    centre = random.choice([12, width - 12])
    canvas[((y - 38) ** 2 + (x - centre) ** 2) < 80] = (255, 230, 120)
    canvas[horizon:] = _gradient(HEIGHT - horizon, width, (110, 50, 90), (50, 25, 60))
    return canvas


def _room(width: int, horizon: int, random: Random, icons: Icons) -> Canvas:
    canvas = np.full((HEIGHT, width, 3), (225, 215, 195), np.float32)
    canvas[48:] = (165, 115, 75)
    canvas[47] = 240
    x = random.choice([4, width - 22])
    canvas[8:28, x : x + 18] = 240
    canvas[10:26, x + 2 : x + 16] = (150, 205, 245)
    canvas[17:19, x + 2 : x + 16] = 240
    canvas[10:26, x + 8 : x + 10] = 240
    return canvas


_PAINTERS: dict[str, Callable[[int, int, Random, Icons], Canvas]] = {
    "beach": _beach,
    "forest": _forest,
    "snow": _snow,
    "desert": _desert,
    "night": _night,
    "city": _city,
    "meadow": _meadow,
    "sea": _sea,
    "sunset": _sunset,
    "room": _room,
}
