"""Text alignment on the tiny world: the share of a prompt's claims that a picture shows.

A prompt claims the class of V, the background, the other subject and the look of V. Text alignment
is the share of claims that the witnesses confirm. Witnesses learn (`recogniser.py`) from composed
pictures through the base's VAE, since no drawing is sharper. They never learn from drawings or from
pictures of a measured concept: they know the unseen styles from other people and icons of those
styles. Their ceiling is their accuracy on real pictures that they did not learn from.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mos_bench.identity.cache import key_of
from mos_bench.identity.concepts import BenchConcept, spare_icons, spare_people
from mos_bench.identity.protocol import Prompt, Side
from mos_bench.identity.recogniser import Recogniser
from mos_common.base_model import Base
from mos_common.digests import digest_of_code
from mos_common.files import write_atomically
from mos_common.scores import ImageScorer
from mos_tiny.recipe.compose import Subject, World, place
from mos_tiny.recipe.pictures import as_tensor
from mos_tiny.recipe.probes import colour_counts, thumbnail
from mos_tiny.recipe.sprites import recoloured
from mos_tiny.recipe.trials import PLACES, Place
from mos_tiny.recipe.world import HAIR, HUES, PALETTE, STYLES, nearest

PERSON = "person"
SQUARE = 64
# The code of the witnesses: when it changes, they learn and answer again.
WITNESSED_BY = (
    *(f"mos_bench.identity.{name}" for name in ("concepts", "protocol", "recogniser", "witness")),
    *(f"mos_tiny.recipe.{name}" for name in ("art", "compose", "pictures", "probes", "restyle", "scenes", "sprites")),
    *(f"mos_tiny.recipe.{name}" for name in ("trials", "wider", "world")),
    *("mos_common.base_loading", "mos_common.base_model", "mos_common.scores"),
)
SEED = 4000
AT_ONCE = 32
RIDGE = 0.2
Pictures = Float[Tensor, "n 3 height width"]
PARTS = ("mean", "factor", "prototypes")


@dataclass(frozen=True)
class Claim:
    """One thing that a part of a picture must show; `what` names the witness."""

    what: str
    value: str
    part: Side = ""


@dataclass(frozen=True)
class ProbeSizes:
    """The number of pictures that the witnesses learn from: `each` per class."""

    each: int = 12
    scenes: int = 600
    people: int = 500
    colours: int = 500


def claims_of(prompt: Prompt, concept: BenchConcept) -> list[Claim]:
    """Return what a drawing of the prompt must show; looks of people apply to people only."""
    claims = [Claim("class", PERSON if concept.person else concept.class_word, prompt.side)]
    if prompt.background:
        claims.append(Claim("background" if not prompt.side else "wide background", prompt.background))
    if partner := prompt.partner(concept.class_word):
        claims.append(Claim("class", partner, "right" if prompt.side == "left" else "left"))
    what, value = prompt.look
    if what and (concept.person or what != "style"):
        claims.append(Claim(what, value))
    return claims


def rebuilt_by(base: Base, pictures: Pictures) -> Pictures:
    """Return pictures through the base's VAE, a few at a time."""
    parts = torch.split(pictures, AT_ONCE)
    return torch.cat([base.decode_latents(base.encode_pictures(part)) for part in parts])


def part_of(picture: Float[Tensor, "*n 3 h w"], side: Side) -> Float[Tensor, "*n 3 h part"]:
    """Return a half of a wide picture, or the whole."""
    half = picture.shape[-1] // 2
    return picture if not side else picture[..., :half] if side == "left" else picture[..., -half:]


class Witnesses:
    """One probe per question, trained at the first question and kept in `folder`."""

    def __init__(self, base: Base, folder: Path | None = None, sizes: ProbeSizes | None = None) -> None:
        self.base, self.sizes = base, sizes or ProbeSizes()
        self.scorer = ImageScorer()
        self.name = key_of("witnesses", digest_of_code(WITNESSED_BY), base.fingerprint, asdict(self.sizes))
        self._file = None if folder is None else folder / f"witnesses.{self.name[:16]}.safetensors"
        self._probes: dict[str, Recogniser] = {}

    def confirmed(self, asked: Sequence[tuple[Tensor, Claim]]) -> list[bool]:
        """Return for each picture (3 H W) if it shows its claim."""
        groups: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
        parts = [part_of(picture, claim.part) for picture, claim in asked]
        for i, (_, claim) in enumerate(asked):
            groups[claim.what, tuple(parts[i].shape)].append(i)
        found = [False] * len(asked)
        for (what, _), rows in groups.items():
            answers = self.answer(what, torch.stack([parts[i] for i in rows]))
            for i, answer in zip(rows, answers, strict=True):
                found[i] = answer == asked[i][1].value
        return found

    def answer(self, what: str, pictures: Pictures) -> list[str]:
        """Return one witness's answers; a person of any style is called a person."""
        if not self._probes:
            self._probes = self._kept() or self._learnt()
        said = self._probes[what].who(self._features(what, pictures))
        return [PERSON if name.startswith(PERSON) else name for name in said]

    def _features(self, what: str, pictures: Pictures) -> Tensor:
        if what in ("class", "style"):
            return self.scorer.features(pictures)
        if what.endswith("background"):
            return thumbnail(pictures)
        return torch.cat([colour_counts(pictures), thumbnail(pictures) / 16], dim=1)

    def _learnt(self) -> dict[str, Recogniser]:
        world, random = World(), Random(SEED)
        lessons: list[tuple[tuple[str, ...], Pictures, list[dict[str, str]]]] = [
            (("class",), *classes(world, random, self.sizes.each)),
            (("background",), *scenes(world, random, SQUARE, self.sizes.scenes)),
            (("wide background",), *scenes(world, random, 2 * SQUARE, self.sizes.scenes)),
            (("colour",), *coloured_things(world, random, self.sizes.colours)),
            (("style",), *(of_people := people(world, random, self.sizes.people))),
            (("shirt", "hair"), *of_people),
        ]
        probes = {}
        for asked, pictures, truths in lessons:
            rebuilt = rebuilt_by(self.base, pictures)
            features = self._features(asked[0], rebuilt)
            for what in asked:
                known = [i for i, truth in enumerate(truths) if truth[what]]
                probes[what] = Recogniser.of(features[known], [truths[i][what] for i in known], RIDGE)
        if self._file is not None:
            tensors = {f"{what}.{part}": getattr(probe, part) for what, probe in probes.items() for part in PARTS}
            names = {what: json.dumps(probe.names) for what, probe in probes.items()}
            write_atomically(self._file, save({name: tensor.contiguous() for name, tensor in tensors.items()}, names))
        return probes

    def _kept(self) -> dict[str, Recogniser]:
        if self._file is None or not self._file.is_file():
            return {}
        with safe_open(self._file, "pt") as file:
            names = file.metadata()
            return {
                what: Recogniser(json.loads(told), *(file.get_tensor(f"{what}.{part}") for part in PARTS))
                for what, told in names.items()
            }


def classes(world: World, random: Random, each: int) -> tuple[Pictures, list[dict[str, str]]]:
    """Return `each` pictures of every noun and of people of every style, no measured concept."""
    shown: dict[str, list[Subject]] = defaultdict(list)
    for noun, icons in world.by_noun.items():
        shown[noun] += [_icon(world, i) for i in icons]
    for icon in spare_icons():
        shown[icon.label["noun"]].append(icon)
    for views in spare_people():
        shown[f"{PERSON} {views[0].label['style']}"] += views
    for i in world.people[:: max(1, len(world.people) // (8 * each))]:
        shown[f"{PERSON} {world.characters.labels[i]['style']}"].append(_person(world, i))
    given = [(name, views[turn % len(views)]) for name, views in shown.items() for turn in range(each)]
    return composed([view for _, view in given], random, world), [{"class": name} for name, _ in given]


def scenes(world: World, random: Random, width: int, count: int) -> tuple[Pictures, list[dict[str, str]]]:
    """Return pictures of a subject in every place, two subjects in a wide picture."""
    places = [PLACES[i % len(PLACES)] for i in range(count)]
    pictures = as_tensor(np.stack([in_place(where, width, random, world) for where in places]))
    return pictures, [{"background": where.words, "wide background": where.words} for where in places]


def people(world: World, random: Random, count: int) -> tuple[Pictures, list[dict[str, str]]]:
    """Return people of the base's styles and their visible traits (empty for absent hair)."""
    subjects = [world.person(random) for _ in range(count)]
    truths = [
        {
            "style": STYLES[label["style"]],
            "shirt": nearest(label["clothColor"], PALETTE),
            "hair": nearest(label["hairColor"], HAIR) if label.get("hair") else "",
        }
        for label in (subject.label for subject in subjects)
    ]
    return composed(subjects, random, world), truths


def coloured_things(world: World, random: Random, count: int) -> tuple[Pictures, list[dict[str, str]]]:
    """Return things in a colour of `HUES`."""
    icons, subjects, truths = list(world.hues), [], []
    for _ in range(count):
        i, colour = random.choice(icons), random.choice(list(HUES))
        sprite = recoloured(world.objects.pictures[i], world.hues[i], colour)
        subjects.append(Subject(sprite, "", person=False, label=world.objects.labels[i]))
        truths.append({"colour": colour})
    return composed(subjects, random, world), truths


def composed(subjects: Sequence[Subject], random: Random, world: World) -> Pictures:
    """Return one picture of each subject at a random place."""
    pictures = []
    for subject in subjects:
        canvas = random.choice(PLACES).canvas(SQUARE, random, world)
        place(canvas, subject, 0, SQUARE, random)
        pictures.append(np.clip(canvas, 0, 255).astype(np.uint8))
    return as_tensor(np.stack(pictures))


def in_place(where: Place, width: int, random: Random, world: World) -> np.ndarray:
    """Return a subject in a place, two subjects in a wide picture."""
    canvas, count = where.canvas(width, random, world), width // SQUARE
    for i in range(count):
        place(canvas, world.subject(random), i * SQUARE, SQUARE, random)
    pixels: np.ndarray = np.clip(canvas, 0, 255).astype(np.uint8)
    return pixels


def _icon(world: World, i: int) -> Subject:
    return Subject(world.objects.pictures[i], "", person=False, label=world.objects.labels[i])


def _person(world: World, i: int) -> Subject:
    return Subject(world.characters.pictures[i], "", person=True, label=world.characters.labels[i])
