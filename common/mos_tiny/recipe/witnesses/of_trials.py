"""The judge's witnesses: noun, place, style, hair, face and coloured thing of a trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from mos_tiny.recipe.compose import World
from mos_tiny.recipe.trials import COLOURS, DRAWN_SCENES, PLACES, noun_trials, person_trials
from mos_tiny.recipe.vae import reconstructed
from mos_tiny.recipe.witnesses.classifier import nearest_mean, ridge_regression
from mos_tiny.recipe.witnesses.faces import FaceDetector, faces_with_truth
from mos_tiny.recipe.witnesses.features import Pictures, flat_background, main_hue
from mos_tiny.recipe.witnesses.lessons import lesson_of, things_in_all_colours
from mos_tiny.recipe.witnesses.witness import Answer, Lesson, Witness
from mos_tiny.recipe.world import SCENES


@dataclass(frozen=True)
class TrialWitnesses:
    """The answers by question, and how far the one about faces can be trusted."""

    answers: Mapping[str, Answer]
    faceless_taken_for_faces: float
    """Share of people without eyes or mouth whose face the detector takes for a whole one."""


def learn_of_trials(world: World, vae: Any, *, each: int = 12, people: int = 1500, seed: int = 1000) -> TrialWitnesses:
    """Train the witnesses on `each` pictures of every noun, flat and in scenes, and on `people`."""
    random = Random(seed)
    on_flat, in_scenes = (noun_trials(places, each, world, random) for places in (COLOURS, DRAWN_SCENES))
    persons = person_trials(people, world, random, PLACES)
    portraits = lesson_of(persons)
    # unchanged, and through the autoencoder: drawings are no sharper
    twice = torch.cat([portraits.pictures, reconstructed(vae, portraits.pictures)])
    portraits = Lesson(twice, [*portraits.truths, *portraits.truths])
    words = set(SCENES.values())
    placed = lesson_of([trial for trial in (*in_scenes, *persons) if trial.truth["background"] in words])
    faces = FaceDetector().fit(*faces_with_truth(world, vae, 2 * people, random))
    tested, has = faces_with_truth(world, vae, people // 3, random)
    faceless = ~has.bool().all(dim=1)
    style = Witness.learn(portraits, "style", "image_features", ridge_regression)
    hair = Witness.learn(portraits, "hair colour", "colours", ridge_regression)
    thing = Witness.learn(things_in_all_colours(world, random), "noun", "image_features", nearest_mean)
    answers: dict[str, Answer] = {
        "noun on a flat background": Witness.learn(lesson_of(on_flat), "noun", "image_features", nearest_mean),
        "noun in a scene": Witness.learn(lesson_of(in_scenes), "noun", "image_features", nearest_mean),
        "scene": Witness.learn(placed, "background", "thumbnail", ridge_regression),
        "flat background": lambda pictures: [f"on a {colour} background" for colour in flat_background(pictures)],
        "style": style,
        "hair colour": hair,
        "eyes and mouth": faces.both,
        "coloured thing": lambda pictures: _with_hue(pictures, thing(pictures)),
        "person": lambda pictures: [f"{s}, {h}" for s, h in zip(style(pictures), hair(pictures), strict=True)],
    }
    return TrialWitnesses(answers, faces.both(tested[faceless]).count("yes") / int(faceless.sum()))


def _with_hue(pictures: Pictures, nouns: list[str]) -> list[str]:
    """Return each noun with the hue of the picture's vivid pixels."""
    return [f"{main_hue(picture)} {noun}" for picture, noun in zip(pictures, nouns, strict=True)]
