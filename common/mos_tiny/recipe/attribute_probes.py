"""One probe for each attribute of a trial: noun, place, style, hair, face, coloured thing.

They learn from composed pictures only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageFilter
from torch import Tensor

from mos_common.scores import ImageScorer
from mos_tiny.recipe.art import Art, load_art
from mos_tiny.recipe.compose import Subject, World
from mos_tiny.recipe.pictures import as_tensor
from mos_tiny.recipe.probes import (
    Centroids,
    FaceDetector,
    LinearProbe,
    Pictures,
    colour_counts,
    face_boxes,
    flat_background,
    main_hue,
    thumbnail,
    without,
)
from mos_tiny.recipe.sprites import recoloured
from mos_tiny.recipe.trials import COLOURS, DRAWN_SCENES, PLACES, Trial, composed, noun_trials, person_trials
from mos_tiny.recipe.vae import reconstructed
from mos_tiny.recipe.world import HUES, SCENES, STYLES, with_article

Answer = Callable[[Pictures], list[str]]


@dataclass(frozen=True)
class AttributeProbes:
    """One function for each attribute, which names it in every picture."""

    scorer: ImageScorer
    noun_on_flat: Answer
    noun_in_scene: Answer
    scene: Answer
    flat: Answer
    style: Answer
    hair: Answer
    face: Answer
    thing: Answer
    """Names a coloured thing on white by colour and noun."""
    faceless_taken_for_faces: float
    """Share of people without eyes or mouth whose face the detector takes for a whole one."""

    def person(self, pictures: Pictures) -> list[str]:
        """Name the style and the hair colour of each person."""
        return [f"{style}, {hair}" for style, hair in zip(self.style(pictures), self.hair(pictures), strict=True)]


def pictures_of(trials: list[Trial]) -> Pictures:
    """Return the real pictures of trials, in [-1, 1]."""
    return as_tensor(np.stack([trial.real for trial in trials]))


def learn_probes(world: World, vae: Any, *, each: int = 12, people: int = 1500, seed: int = 1000) -> AttributeProbes:
    """Train the probes on `each` pictures of every noun, flat and in scenes, and on `people`."""
    random, scorer = Random(seed), ImageScorer()

    def nouns(trials: list[Trial]) -> Answer:
        centroids = Centroids.of(scorer.features(pictures_of(trials)), [trial.truth["noun"] for trial in trials])
        return lambda pictures: centroids.name(scorer.features(pictures))

    flat, scenes = (noun_trials(places, each, world, random) for places in (COLOURS, DRAWN_SCENES))
    persons = person_trials(people, world, random, PLACES)
    twice = [*persons, *persons]  # unchanged, and through the autoencoder: drawings are no sharper
    portraits = pictures_of(persons)
    portraits = torch.cat([portraits, reconstructed(vae, portraits)])
    style = LinearProbe.of(scorer.features(portraits), [trial.truth["style"] for trial in twice])
    hair = LinearProbe.of(_colours(portraits), [trial.truth["hair colour"] for trial in twice])
    words = set(SCENES.values())
    placed = [trial for trial in (*scenes, *persons) if trial.truth["background"] in words]
    scene = LinearProbe.of(thumbnail(pictures_of(placed)), [trial.truth["background"] for trial in placed])
    faces = FaceDetector().fit(*faces_with_truth(world, vae, 2 * people, random))
    tested, has = faces_with_truth(world, vae, people // 3, random)
    faceless = ~has.bool().all(dim=1)
    return AttributeProbes(
        scorer=scorer,
        noun_on_flat=nouns(flat),
        noun_in_scene=nouns(scenes),
        scene=lambda pictures: scene.name(thumbnail(pictures)),
        flat=lambda pictures: [f"on a {colour} background" for colour in flat_background(pictures)],
        style=lambda pictures: style.name(scorer.features(pictures)),
        hair=lambda pictures: hair.name(_colours(pictures)),
        face=faces.both,
        faceless_taken_for_faces=faces.both(tested[faceless]).count("yes") / int(faceless.sum()),
        thing=_coloured_things(world, scorer, random),
    )


def _colours(pictures: Pictures) -> torch.Tensor:
    return torch.cat([colour_counts(pictures), thumbnail(pictures) / 16], dim=1)


def _coloured_things(world: World, scorer: ImageScorer, random: Random) -> Answer:
    """Name nouns by centroids over all their colours, and colours by the hue of vivid pixels."""
    pictures, nouns = [], []
    for (i, hue), colour, _ in product(world.hues.items(), HUES, range(3)):
        label = world.objects.labels[i]
        sprite = recoloured(world.objects.pictures[i], hue, colour)
        subject = Subject(sprite, with_article(label["noun"]), person=False, label=label)
        pictures.append(composed(COLOURS[-1], [subject], random, world))
        nouns.append(label["noun"])
    centroids = Centroids.of(scorer.features(as_tensor(np.stack(pictures))), nouns)

    def answer(shown: Pictures) -> list[str]:
        names = centroids.name(scorer.features(shown))
        return [f"{main_hue(picture)} {noun}" for picture, noun in zip(shown, names, strict=True)]

    return answer


def faces_with_truth(world: World, vae: Any, count: int, random: Random) -> tuple[Pictures, Float[Tensor, "n 2"]]:
    """Compose people with and without eyes and mouth, and return the pictures with the truth.

    Truth is (1 or 0 for eyes, 1 or 0 for a mouth); both are 0 for faces that are blurred beyond
    recognition. Every second picture goes through the autoencoder.
    """
    concepts: Art = load_art("concepts")
    boxes = {style: face_boxes(concepts, style) for style in STYLES}
    pictures, has = [], []
    for _ in range(count):
        i = random.choice(world.people)
        label, sprite = world.characters.labels[i], world.characters.pictures[i]
        truth = random.choice([(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
        for visible, box in zip(truth, boxes[label["style"]], strict=True):
            sprite = sprite if visible else without(sprite, box, label["skin"])
        subject = Subject(sprite, "", person=True, label=label)
        picture = composed(random.choice(PLACES), [subject], random, world)
        if truth == (1.0, 1.0) and random.random() < 0.15:
            blurred = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(random.uniform(2.5, 4)))
            picture, truth = np.asarray(blurred), (0.0, 0.0)
        pictures.append(picture)
        has.append(truth)
    composed_people = as_tensor(np.stack(pictures))
    half = torch.arange(len(composed_people)) % 2 == 0
    composed_people[half] = reconstructed(vae, composed_people[half])
    return composed_people, torch.tensor(has)
