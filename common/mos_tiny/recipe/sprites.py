"""Sprites, small pictures with transparency: resize, recolour, paste."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mos_tiny.recipe.world import HUES

Sprite = UInt8[np.ndarray, "h w 4"]
Canvas = Float[np.ndarray, "height width 3"]
HUE_REACH = 0.09  # largest distance of hues that count as one colour; the circle is 1


def resized(sprite: Sprite, side: int) -> Sprite:
    """Resize to a square of `side` pixels, without colour from transparent pixels."""
    if side == len(sprite):
        return sprite
    return np.asarray(
        Image.fromarray(sprite).convert("RGBa").resize((side, side), Image.Resampling.BOX).convert("RGBA")
    )


def mirrored(sprite: Sprite) -> Sprite:
    """Flip the sprite left to right."""
    return np.ascontiguousarray(sprite[:, ::-1])


def paste(canvas: Canvas, sprite: Sprite, top: int, left: int) -> None:
    """Draw the sprite onto the canvas, in place; parts outside are cut off."""
    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(canvas.shape[0], top + sprite.shape[0]), min(canvas.shape[1], left + sprite.shape[1])
    if y1 > y0 and x1 > x0:
        part = sprite[y0 - top : y1 - top, x0 - left : x1 - left].astype(np.float32)
        alpha = part[..., 3:] / 255
        canvas[y0:y1, x0:x1] = part[..., :3] * alpha + canvas[y0:y1, x0:x1] * (1 - alpha)


def to_hsv(colours: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Convert RGB to hue, saturation and value; all are in [0, 1]."""
    colours = np.asarray(colours, np.float32)
    highest, spread = colours.max(-1), colours.max(-1) - colours.min(-1)
    red, green, blue = np.moveaxis(colours, -1, 0)
    safe = np.maximum(spread, 1e-6)
    sixth = np.where(
        highest == red,
        ((green - blue) / safe) % 6,
        np.where(highest == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return np.stack([sixth / 6, spread / np.maximum(highest, 1e-6), highest], -1)


def to_rgb(hsv: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Invert `to_hsv`."""
    hue, saturation, value = hsv[..., 0] * 6, hsv[..., 1], hsv[..., 2]
    sector, rest = np.floor(hue).astype(int) % 6, hue - np.floor(hue)
    low, falling = value * (1 - saturation), value * (1 - rest * saturation)
    rising = value * (1 - (1 - rest) * saturation)
    return np.stack(
        [
            np.choose(sector, [value, falling, low, low, rising, value]),
            np.choose(sector, [rising, value, value, falling, low, low]),
            np.choose(sector, [low, low, rising, value, value, falling]),
        ],
        -1,
    )


def dominant_hue(sprite: Sprite) -> float | None:
    """Return the hue that dominates a sprite, or None if none does."""
    hsv = to_hsv(sprite[sprite[..., 3] > 128][:, :3] / 255.0)
    vivid = (hsv[:, 1] > 0.35) & (hsv[:, 2] > 0.25)
    if vivid.mean() < 0.3:
        return None
    counts = np.histogram(hsv[vivid, 0], 36, (0, 1))[0].astype(float)
    smooth = counts + np.roll(counts, 1) + np.roll(counts, -1)
    best = int(smooth.argmax())
    return (best + 0.5) / 36 if smooth[best] / vivid.sum() > 0.4 else None


def recoloured(sprite: Sprite, own_hue: float, colour: str) -> Sprite:
    """Turn all pixels near the hue `own_hue` to a colour of `HUES`."""
    hsv = to_hsv(sprite[..., :3] / 255.0)
    near = (np.abs((hsv[..., 0] - own_hue + 0.5) % 1 - 0.5) < HUE_REACH) & (hsv[..., 1] > 0.25)
    hsv[..., 0] = np.where(near, (hsv[..., 0] - own_hue + HUES[colour]) % 1, hsv[..., 0])
    turned = sprite.copy()
    turned[..., :3] = np.clip(to_rgb(hsv) * 255, 0, 255)
    return turned
