"""Captions for the art of the wider world: icons of five sets, and people in more styles.

This art teaches the base that there are many ways to draw. It has no identity, style, icon style
or noun that is kept from the base (`mos_tiny.recipe.art`).
"""

from __future__ import annotations

from random import Random
from typing import Any

from mos_tiny.recipe.world import HAIR, PALETTE, STYLES, nearest, rgb, with_article

Label = dict[str, Any]

ICON_STYLES = {
    "noto": "",
    "notoV1": "blob style",
    "emojione": "shiny style",
    "fxemoji": "paper style",
    "streamline": "inked style",
}
"""The words for a set of icons in captions; the tiny world's own set has none."""

PERSON_STYLES = STYLES | {
    "dylan": "bold style",
    "croodles": "doodle style",
    "croodlesNeutral": "doodle style",
    "funEmoji": "sticker style",
    "thumbs": "thumb style",
}
MOODS = {
    "smile": "smiling",
    "laugh": "laughing",
    "laughing": "laughing",
    "bigSmile": "laughing",
    "sad": "sad",
    "frown": "sad",
    "surprise": "surprised",
    "surprised": "surprised",
}
MORE_MOODS = MOODS | {"angry": "angry"}


def described_wider(label: Label, random: Random) -> str:
    """Describe a sprite of the set `wider`; most captions name its style."""
    if label["kind"] != "avatar":
        tone = f"{label['tone']} " if "tone" in label and random.random() < 0.7 else ""
        style = ICON_STYLES[label["style"]]
        return with_article(tone + label["noun"]) + (f" in {style}" if style and random.random() < 0.85 else "")
    looks = _looks(label, random)
    style = f", {PERSON_STYLES[label['style']]}," if random.random() < 0.85 else ""
    return _noun(label, random) + (" with " + " and ".join(looks) if looks else "") + style


def skin_words(label: Label) -> str:
    """Return `light-skinned`, `dark-skinned`, or nothing for skin in between."""
    brightness = sum(rgb(label["skin"]))
    return "light-skinned" if brightness > 520 else "dark-skinned" if brightness < 330 else ""


def _noun(label: Label, random: Random) -> str:
    mood = MORE_MOODS.get(label.get("mouth") or "", "") if random.random() < 0.6 else ""
    skin = skin_words(label) if "skin" in label and random.random() < 0.5 else ""
    colour = nearest(label["colour"], PALETTE) if "colour" in label else ""
    noun = label.get("noun") or ("man" if label.get("beard") else "person")
    return with_article(" ".join(word for word in (mood, skin, colour, noun) if word))


def _looks(label: Label, random: Random) -> list[str]:
    looks = []
    if label.get("hairKind") == "bald":
        looks.append("no hair")
    elif label.get("hairColor"):
        kind = {"curly": "curly hair", "spiky": "spiky hair"}.get(label["hairKind"], label["hairKind"]) or "hair"
        length = f"{label['hair']} " if label["hair"] else ""
        looks.append(f"{length}{nearest(label['hairColor'], HAIR)} {kind}")
    if label.get("beard"):
        looks.append("a beard")
    if label.get("glasses"):
        looks.append("glasses")
    if label.get("cloth") and random.random() < 0.6:
        looks.append(with_article(f"{nearest(label['clothColor'], PALETTE)} {label['cloth']}"))
    return looks
