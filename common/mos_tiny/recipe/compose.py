"""Captioned pictures of the tiny world, on a flat colour or in a drawn scene.

A square picture shows one subject, a wide one two. The art is labelled, so the captions are true:
colours, hair, glasses, clothes, mood and sides. Only art for training is used
(`mos_tiny.recipe.art`). Pictures for training come from a wider world: the tiny world's own
people and icons, art of other styles (`mos_tiny.recipe.wider`), and both drawn in other manners
(`mos_tiny.recipe.restyle`). The same seed composes the same pictures.

    python -m mos_tiny.recipe.compose --out DATA --square 48000 --wide 14000 --seed 1

writes DATA/train_64.npy and train_128.npy (n x 64 x width x 3, uint8), each with a JSON list of
captions beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
import typer
from jaxtyping import UInt8

from mos_common.errors import StateError
from mos_common.files import write_atomically
from mos_common.flags import SeedType
from mos_common.shell import OnCount, counting, run
from mos_tiny.recipe.art import SIDE, TRAINED_ICONS, Art, Label, load_art, trained_characters, trained_objects
from mos_tiny.recipe.restyle import MANNERS, caption_in_manner
from mos_tiny.recipe.scenes import HEIGHT, Icons, background, scene
from mos_tiny.recipe.sprites import Sprite, dominant_hue, mirrored, paste, recoloured, resized
from mos_tiny.recipe.wider import MOODS, described_wider, skin_words
from mos_tiny.recipe.world import HAIR, HUES, PALETTE, RECOLOURED, SCENES, STYLES, nearest, with_article

WIDTHS = (64, 128)
OLD_WORLD, NEW_ART = 0.55, 0.25
"""Shares of the wider world: the old world unchanged, and new art. The rest is redrawn."""


@dataclass(frozen=True)
class Subject:
    """A sprite, and the words for it in a caption."""

    sprite: Sprite
    caption: str
    person: bool
    label: Label


@dataclass(frozen=True)
class Placement:
    """Where a sprite was drawn: its top left corner, its side in pixels, whether mirrored."""

    left: int
    top: int
    side: int
    mirrored: bool


@dataclass(frozen=True)
class World:
    """The art for training, ready to be composed."""

    objects: Art = field(default_factory=lambda: load_art("objects"))
    characters: Art = field(default_factory=lambda: load_art("characters"))
    concepts: Art = field(default_factory=lambda: load_art("concepts"))
    wider: Art | None = None
    """More art, for training only. Without it the world is the one that `judge` measures."""

    @cached_property
    def icons(self) -> Icons:
        """The icons by name, to furnish scenes with."""
        style = self.objects.where(style=TRAINED_ICONS)
        return {self.objects.labels[i]["icon"]: self.objects.pictures[i] for i in style}

    @cached_property
    def by_noun(self) -> dict[str, list[int]]:
        """The icons that the base learns, by noun."""
        icons: dict[str, list[int]] = {}
        for i in trained_objects(self.objects):
            icons.setdefault(self.objects.labels[i]["noun"], []).append(i)
        return icons

    @cached_property
    def hues(self) -> dict[int, float]:
        """The original hue of each icon that comes in several colours."""
        several = [i for noun, icons in self.by_noun.items() if noun in RECOLOURED for i in icons]
        return {i: hue for i in several if (hue := dominant_hue(self.objects.pictures[i])) is not None}

    @cached_property
    def people(self) -> list[int]:
        """The characters that the base learns."""
        return trained_characters(self.characters, self.concepts)

    def thing(self, random: Random) -> Subject:
        """Choose an object, often in another colour."""
        i = random.choice(random.choice(list(self.by_noun.values())))
        label = self.objects.labels[i]
        noun, sprite = label["noun"], self.objects.pictures[i]
        if i in self.hues and random.random() < 0.7:
            colour = random.choice(list(HUES))
            sprite, noun = recoloured(sprite, self.hues[i], colour), f"{colour} {noun}"
            label = {**label, "colour": colour}
        return Subject(sprite, with_article(noun), person=False, label=label)

    def person(self, random: Random) -> Subject:
        """Choose a person, and describe them by their labels."""
        i = self.people[random.randrange(len(self.people))]
        label = self.characters.labels[i]
        return Subject(self.characters.pictures[i], describe(label, random), person=True, label=label)

    def subject(self, random: Random) -> Subject:
        """Choose a person or a thing; in a wider world, some are new or redrawn."""
        if self.wider is None:
            return self._old_subject(random)
        chance = random.random()
        if chance < OLD_WORLD:
            return self._old_subject(random)
        if chance < OLD_WORLD + NEW_ART:
            return self._new_subject(self.wider, random)
        subject = self._old_subject(random) if random.random() < 0.6 else self._new_subject(self.wider, random)
        manner = random.choice(MANNERS)
        sprite = manner.redrawn(subject.sprite, random)
        return replace(subject, sprite=sprite, caption=caption_in_manner(subject.caption, manner))

    def _old_subject(self, random: Random) -> Subject:
        return (self.person if random.random() < 0.5 else self.thing)(random)

    def _new_subject(self, wider: Art, random: Random) -> Subject:
        """Choose new art; a style's chance grows with the square root of its number of pictures."""
        members = random.choices(self._wider_members, self._wider_weights)[0]
        i = random.choice(members)
        label = wider.labels[i]
        person = label["kind"] != "thing" and label.get("noun") != "face"
        return Subject(wider.pictures[i], described_wider(label, random), person=person, label=label)

    @cached_property
    def _wider_members(self) -> list[list[int]]:
        members: dict[tuple[str, str], list[int]] = {}
        for i, label in enumerate(self.wider.labels if self.wider else []):
            members.setdefault((label["style"], label["kind"]), []).append(i)
        return list(members.values())

    @cached_property
    def _wider_weights(self) -> list[float]:
        return [len(members) ** 0.5 for members in self._wider_members]


def describe(label: Label, random: Random) -> str:
    """Describe a person by some of their labels, in the order of captions."""
    noun, parts = _noun(label, random), []
    if label.get("hat"):
        parts.append(with_article(f"{nearest(label['hatColor'], HAIR)} {label['hat']}"))
    elif label["hairKind"] == "bald":
        parts.append("no hair")
    elif label.get("hair"):
        parts.append(hair_words(label))
    if label.get("beard"):
        parts.append("a beard")
    if label.get("glasses"):
        parts.append("glasses")
    if random.random() < 0.6:
        parts.append(with_article(f"{nearest(label['clothColor'], PALETTE)} {label['cloth']}"))
    skin = skin_words(label) if random.random() < 0.5 else ""
    mood = MOODS.get(label["mouth"], "") if random.random() < 0.4 else ""
    style = f", {STYLES[label['style']]}," if random.random() < 0.8 else ""
    return with_article(" ".join(word for word in (mood, skin, noun) if word)) + " with " + " and ".join(parts) + style


def hair_words(label: Label) -> str:
    """Describe hair, such as `long blue hair` or `short black mohawk`."""
    kind = {None: "hair", "curly": "curly hair", "spiky": "spiky hair"}.get(label["hairKind"], label["hairKind"])
    return f"{label['hair']} {nearest(label['hairColor'], HAIR)} {kind}"


def _noun(label: Label, random: Random) -> str:
    if label.get("beard"):
        return "man"
    long = label.get("hair") == "long" or label.get("hairKind") in ("pigtails", "bun")
    return random.choice(["woman", "woman", "person"] if long else ["man", "man", "person"])


def place(canvas: np.ndarray, subject: Subject, left: float, slot: float, random: Random) -> Placement:
    """Draw a subject into the slot from `left`, in place, with random size and position."""
    most = int(min(SIDE, slot * 1.05))
    side = random.randint(int(most * 0.82), most)
    flipped = random.random() < 0.5
    sprite = mirrored(subject.sprite) if flipped else subject.sprite
    x = round(left + 0.5 * slot - side / 2 + random.uniform(-0.07, 0.07) * slot)
    y = HEIGHT - side if subject.person else int((HEIGHT - side) * random.uniform(0.3, 0.8))
    paste(canvas, resized(sprite, side), y, x)
    return Placement(x, y, side, flipped)


def picture(world: World, random: Random, width: int) -> tuple[UInt8[np.ndarray, "64 width 3"], str]:
    """One picture and its caption."""
    chance = random.random()
    if chance < 0.04:
        name = random.choice(list(SCENES))
        empty = scene(name, width, random, world.icons)
        return _as_bytes(empty), random.choice(["an empty picture ", "nothing "]) + SCENES[name]
    count = 1 if width == SIDE or chance < 0.2 else 2
    canvas, where = background(width, random, world.icons)
    names = []
    for slot in range(count):
        subject = world.subject(random)
        names.append(subject.caption)
        place(canvas, subject, slot * width / count, width / count, random)
    sides = "{} on the left and {} on the right"
    caption = names[0] if count == 1 else random.choice([sides, sides, "{} and {}", "{} next to {}"]).format(*names)
    if random.random() < 0.92:
        caption = f"{caption} {where}"
    return _as_bytes(canvas), caption.replace(",,", ",")


def compose(
    world: World, count: int, width: int, seed: int, on_count: OnCount | None = None
) -> tuple[UInt8[np.ndarray, "count 64 width 3"], list[str]]:
    """Compose `count` pictures and their captions."""
    random = Random(seed)
    pictures, captions = np.empty((count, HEIGHT, width, 3), np.uint8), []
    for i in range(count):
        pictures[i], caption = picture(world, random, width)
        captions.append(caption)
        if on_count:
            on_count(i + 1, count, "")
    return pictures, captions


def _as_bytes(canvas: np.ndarray) -> UInt8[np.ndarray, "64 width 3"]:
    pixels: UInt8[np.ndarray, "64 width 3"] = np.clip(canvas, 0, 255).astype(np.uint8)
    return pixels


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: python -m mos_tiny.recipe.compose --out build/tiny --seed 1")
def composed(
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    square: Annotated[int, typer.Option("--square", help="Number of pictures of 64 x 64.")] = 48_000,
    wide: Annotated[int, typer.Option("--wide", help="Number of pictures of 64 x 128.")] = 14_000,
    seed: Annotated[int, typer.Option("--seed", click_type=SeedType(), help="Random seed, from 0.")] = 1,
    art: Annotated[Path | None, typer.Option("--art", help="Folder of the art; default: the packaged one.")] = None,
    narrow: Annotated[
        bool, typer.Option("--narrow", help="Leave the wider art out: only the world that judge measures.")
    ] = False,
) -> None:
    """Compose captioned pictures to train on."""
    objects, characters, concepts = (load_art(name, art) for name in ("objects", "characters", "concepts"))
    world = World(objects, characters, concepts, None if narrow else load_art("wider", art))
    for width, count in zip(WIDTHS, (square, wide), strict=True):
        with counting(f"64 x {width}") as on_count:
            pictures, captions = compose(world, count, width, seed + width, on_count)
        save_pictures(out, width, pictures, captions)


def save_pictures(out: Path, width: int, pictures: np.ndarray, captions: list[str]) -> None:
    """Write the pictures of one width, then their captions, so that captions imply pictures."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        part = out / f"train_{width}.part.npy"
        np.save(part, pictures, allow_pickle=False)
        part.replace(out / f"train_{width}.npy")
    except OSError as error:
        raise StateError(f"cannot write {out}: {error.strerror}") from error
    write_atomically(out / f"train_{width}.json", json.dumps(captions).encode())


if __name__ == "__main__":
    run(app)
