"""What the base may learn from, and what is kept from it."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from mos_tiny.recipe.art import look, trained_characters, trained_objects
from mos_tiny.recipe.kept import KINDS, UNSEEN_ICONS, kept_subjects, people_alike
from mos_tiny.recipe.wider import ICON_STYLES, PERSON_STYLES
from mos_tiny.recipe.world import NOUNS, STYLES


def test_each_step_is_a_command():
    """`art` lists the art for training; every step has a help text."""
    steps = ("art", "compose", "tokenizer", "vae", "latents", "train", "judge", "demonstration")
    for step in steps:
        command = importlib.import_module(f"mos_tiny.recipe.{step}").app
        result = CliRunner().invoke(command, ["--help"])
        assert result.exit_code == 0 and f"python -m mos_tiny.recipe.{step}" in result.output
    assert "38 icons of 36 nouns" in CliRunner().invoke(importlib.import_module("mos_tiny.recipe.art").app, []).output


def test_no_kept_style_noun_or_icon_is_in_the_training_list(world):
    objects = world.objects
    learnt = trained_objects(objects)
    assert {objects.labels[i]["style"] for i in learnt} == {"noto"}
    assert {objects.labels[i]["noun"] for i in learnt} == set(NOUNS)
    assert not {"held"} & {objects.labels[i]["kind"] for i in learnt}
    assert {world.characters.labels[i]["style"] for i in trained_characters(world.characters, world.concepts)} == set(
        STYLES
    )
    kept = {subject.sprite.tobytes() for kind in KINDS for views in kept_subjects(kind) for subject in views}
    shown = [objects.pictures[i] for i in learnt] + [world.characters.pictures[i] for i in world.people]
    assert kept.isdisjoint(sprite.tobytes() for sprite in shown)


def test_no_kept_style_noun_or_icon_is_in_the_wider_art(widened):
    """Styles, nouns and icons are compared by name, and all pictures by their pixels."""
    wider, objects = widened.wider, widened.objects
    assert {label["style"] for label in wider.labels} == set(ICON_STYLES) | set(PERSON_STYLES)
    unseen = {label["style"] for label in widened.concepts.labels if label["unseenStyle"]}
    forbidden = {*unseen, *UNSEEN_ICONS, "avataaars", "bottts", "openmoji"}
    assert not [
        style for style in (*ICON_STYLES, *PERSON_STYLES) if style.lower().startswith(tuple(map(str.lower, forbidden)))
    ]
    kept = [label for label in objects.labels if label["noun"] not in NOUNS or label["kind"] == "held"]
    assert len(kept) > 300
    nouns, icons = {label["noun"] for label in kept}, {label["icon"].replace("-", "") for label in kept}
    for label in wider.labels:
        assert not any(f" {label.get('noun', '')}".endswith(f" {noun}") for noun in nouns), label
        assert re.sub(r"-\d$", "", label.get("icon", "")).replace("-", "") not in icons, label
    pictures = {
        p.tobytes()
        for p in (*widened.concepts.pictures, *objects.pictures[[i for i, m in enumerate(objects.labels) if m in kept]])
    }
    pictures |= {subject.sprite.tobytes() for kind in KINDS for views in kept_subjects(kind) for subject in views}
    assert pictures.isdisjoint(sprite.tobytes() for sprite in wider.pictures)


CLOTHES_BEGIN = {"toonHead": 55, "micah": 46, "personas": 54}


@pytest.mark.parametrize("style", CLOTHES_BEGIN)
def test_no_kept_face_is_in_the_training_list_with_any_clothes_or_expression(style, world, widened):
    """Pixels above the clothes that all views of a kept person share are in no training picture."""
    concepts, learnt = world.concepts, learnt_people(style, world, widened)
    identities = {concepts.labels[i]["id"] for i in concepts.where(style=style)}
    assert len(identities) == 4
    for identity in identities:
        views = concepts.pictures[concepts.where(style=style, id=identity)]
        assert len(views) == 12
        assert least_difference(views, learnt, CLOTHES_BEGIN[style]) > 0.005, f"{style} {identity}"


@pytest.mark.parametrize(("style", "count"), [("micah", 56), ("personas", 8), ("toonHead", 0)])
def test_no_face_of_people_who_look_alike_is_in_the_training_list_either(style, count, world, widened):
    """The same for the set `alike`, where a style has as many people as say the pages."""
    learnt = learnt_people(style, world, widened)
    people = [np.stack([view.sprite for view in views]) for views in people_alike() if of_style(views[0], style)]
    assert len(people) == count
    for views in people:
        assert len(views) == 12
        assert least_difference(views, learnt, CLOTHES_BEGIN[style]) > 0.005
    faces = [views[0, : CLOTHES_BEGIN[style]].tobytes() for views in people]
    assert len(set(faces)) == count


def test_people_who_look_alike_are_none_of_the_other_kept_people(world):
    kept = {look(label) for label in world.concepts.labels if not label["unseenStyle"]}
    assert kept.isdisjoint(look(views[0].label) for views in people_alike())


def learnt_people(style, world, widened):
    people = world.characters
    own = people.pictures[[i for i in world.people if people.labels[i]["style"] == style]]
    return np.concatenate([own, widened.wider.pictures[widened.wider.where(style=style)]])


def of_style(subject, style):
    return subject.label["style"] == style


def least_difference(views, learnt, clothes_begin):
    """Return the share of differing pixels in the most similar picture for training.

    They are compared where all views are equal, above the clothes.
    """
    fixed = (views == views[0]).all(axis=(0, 3))
    fixed[clothes_begin:] = False
    return (learnt[:, fixed] != views[0][fixed]).any(axis=2).mean(axis=1).min()
