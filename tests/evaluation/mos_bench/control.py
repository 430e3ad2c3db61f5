"""Missing objects and attribute binding, by what a drawing is told: prompt, regions, sketch, both.

Three coloured things stand side by side on white. A thing is there if some part of the drawing, as
wide as high, is taken for its noun by a classifier that learnt from real pictures; it is bound if
such a part has its colour. So nothing is asked of where a prompt alone puts things. The ceiling is
the real pictures, the floor the drawings of one composition judged by what another asks for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from mos_common.base_model import Base, load_base
from mos_common.control.adapters import read_adapter
from mos_common.control.condition import Control
from mos_common.control.sketches import edges_of
from mos_common.digests import digest_of_json
from mos_common.drawing import Drawing, draw
from mos_common.files import write_atomically
from mos_common.pictures import as_image, save_image
from mos_common.regions import Region
from mos_common.shapes import Box
from mos_common.shell import say
from mos_tiny import adapter_folders
from mos_tiny.recipe.compose import Subject, World, place
from mos_tiny.recipe.pictures import as_tensor
from mos_tiny.recipe.sprites import recoloured
from mos_tiny.recipe.trials import COLOURS
from mos_tiny.recipe.vae import reconstructed
from mos_tiny.recipe.witnesses.classifier import nearest_mean
from mos_tiny.recipe.witnesses.features import Pictures, main_hue
from mos_tiny.recipe.witnesses.lessons import things_in_all_colours
from mos_tiny.recipe.witnesses.witness import Answer, Witness
from mos_tiny.recipe.world import HUES, with_article

SIDE, THINGS = 64, 3
WIDTH = SIDE * THINGS
WHERE = COLOURS[-1]  # white
WAYS = ("prompt", "regions", "sketch", "both")
SHOWN = 4  # compositions on the sheet


@dataclass(frozen=True)
class Composition:
    """Three things as (colour, noun), their regions, and the real picture of them."""

    things: tuple[tuple[str, str], ...]
    regions: tuple[Region, ...]
    real: UInt8[np.ndarray, "64 192 3"]

    @property
    def prompt(self) -> str:
        """The prompt that asks for all of them."""
        first, second, third = (with_article(f"{colour} {noun}") for colour, noun in self.things)
        return f"{first}, {second} and {third} {WHERE.words}"


@dataclass(frozen=True)
class Verdict:
    """The shares of all things that are missing, and of those there that have their colour."""

    way: str
    pictures: int
    missing: float
    bound: float

    def __str__(self) -> str:
        """Return the row of the table."""
        return f"| {self.way} | {self.missing:.3f} | {self.bound:.3f} | {self.pictures} |"


def compositions(count: int, world: World, seed: int) -> Iterator[Composition]:
    """Compose three things of different nouns and colours, side by side."""
    random = Random(seed)
    by_noun = {world.objects.labels[i]["noun"]: i for i in world.hues}
    for _ in range(count):
        nouns, colours = random.sample(sorted(by_noun), THINGS), random.sample(list(HUES), THINGS)
        things, regions = tuple(zip(colours, nouns, strict=True)), list[Region]()
        canvas = WHERE.canvas(WIDTH, random, world)
        for k, (colour, noun) in enumerate(things):
            i = by_noun[noun]
            sprite = recoloured(world.objects.pictures[i], world.hues[i], colour)
            subject = Subject(sprite, "", person=False, label=world.objects.labels[i])
            at = place(canvas, subject, SIDE * k, SIDE, random)
            sides = (at.left / WIDTH, at.top / SIDE, (at.left + at.side) / WIDTH, (at.top + at.side) / SIDE)
            box = Box(*(min(1.0, max(0.0, side)) for side in sides))
            regions.append(Region(f"{with_article(f'{colour} {noun}')} {WHERE.words}", box))
        yield Composition(things, tuple(regions), np.clip(canvas, 0, 255).astype(np.uint8))


def run_control(out: Path, *, count: int, steps: int, seed: int = 11, part: int = 0, parts: int = 1) -> list[Verdict]:
    """Draw and judge `count` compositions in every way; write OUT/control.json and a sheet.

    Drawings of the same base and adapter are kept. `part` of `parts` draws its share, and judges
    when all are there.
    """
    base, world = load_base("tiny"), World()
    asked = list(compositions(count, world, seed))
    adapter = read_adapter(adapter_folders()["sketch"], base)
    key = digest_of_json([base.fingerprint, adapter.digest, steps, seed])[:12]
    files = {way: [out / key / way / f"{number:03}.png" for number in range(count)] for way in WAYS}
    how = Drawing(steps=steps, height=SIDE, width=WIDTH)
    for number, way in product(range(part, count, parts), WAYS):
        if files[way][number].is_file():
            continue
        each = asked[number]
        regions = each.regions if way in ("regions", "both") else ()
        controls = [Control(adapter, _sketch(each))] if way in ("sketch", "both") else []
        (picture,) = draw(base, [each.prompt], [number], regions=regions, how=how, controls=controls)
        save_image(as_image(picture), files[way][number])
    if not all(file.is_file() for way in WAYS for file in files[way]):
        say("drawings of other parts are missing: nothing is judged yet")
        return []
    pictures = {way: np.stack([_pixels(file) for file in files[way]]) for way in WAYS}
    verdicts = judged(base, world, asked, pictures)
    report = {"base": base.fingerprint, "steps": steps, "seed": seed, "verdicts": [asdict(each) for each in verdicts]}
    write_atomically(out / "control.json", json.dumps(report, indent=1).encode() + b"\n")
    rows = [
        [each.real, np.asarray(_sketch(each).convert("RGB")), *(pictures[way][i] for way in WAYS)]
        for i, each in enumerate(asked)
    ]
    sheet = np.concatenate([np.concatenate(row, axis=0) for row in rows[:SHOWN]], axis=1)
    save_image(Image.fromarray(sheet), out / "control.webp")
    say("| told | missing | bound | pictures |\n|---|---|---|---|")
    for verdict in verdicts:
        say(str(verdict))
    return verdicts


def judged(base: Base, world: World, asked: Sequence[Composition], pictures: dict[str, np.ndarray]) -> list[Verdict]:
    """Return the verdict of each way, then of the ceiling and of the floor."""
    nouns = Witness.learn(things_in_all_colours(world, Random(0)), "noun", "image_features", nearest_mean)
    answer = partial(verdict_of, nouns)
    truths = [each.things for each in asked]
    real = reconstructed(base.vae, as_tensor(np.stack([each.real for each in asked])))
    drawn = {way: as_tensor(pixels) for way, pixels in pictures.items()}
    floor = answer("floor", drawn["both"], [*truths[1:], truths[0]])
    return [*(answer(way, drawn[way], truths) for way in pictures), answer("ceiling", real, truths), floor]


def verdict_of(nouns: Answer, way: str, pictures: Pictures, truths: Sequence[Sequence[tuple[str, str]]]) -> Verdict:
    """Judge pictures by the things that were asked for."""
    begins = range(0, WIDTH - SIDE + 1, SIDE // 2)
    views = torch.cat([pictures[..., begin : begin + SIDE] for begin in begins])
    named, count = nouns(views), len(pictures)
    hues = [main_hue(view) for view in views]
    there, bound, total = 0, 0, 0
    for number, things in enumerate(truths):
        seen = [(hues[k], named[k]) for k in range(number, len(views), count)]
        for colour, noun in things:
            total += 1
            there += any(other == noun for _, other in seen)
            bound += (colour, noun) in seen
    return Verdict(way, count, 1 - there / total, bound / max(there, 1))


def _sketch(composition: Composition) -> Image.Image:
    return Image.fromarray(edges_of(composition.real))


def _pixels(file: Path) -> np.ndarray:
    with Image.open(file) as opened:
        return np.asarray(opened.convert("RGB"))
