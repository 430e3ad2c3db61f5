"""The contexts of recording and scoring."""

from __future__ import annotations

import pytest

from mos_common import prompts
from mos_common.prompts import ORDINARY, RECORDED, UNRELATED, about


def test_recorded_and_scored_contexts_share_nothing():
    """Least squares keeps what was recorded: only other contexts say how well fusion works."""
    # What is watched while one concept is tuned says nothing about fusion.
    others = {name: texts for name, texts in vars(prompts).items() if name.isupper() and name != "WATCHED"}
    assert not {text for name, texts in others.items() if name != "RECORDED" for text in texts} & set(RECORDED)
    assert not set(ORDINARY) & set(UNRELATED)


def test_there_are_a_dozen_or_more_contexts_of_recording():
    assert len(set(RECORDED)) == len(RECORDED) >= 12
    assert len(set(ORDINARY)) == len(ORDINARY) >= 12
    assert "" in ORDINARY, "the unconditional prompt is the half of every guided drawing"


def test_every_recorded_context_names_the_concept_and_no_ordinary_one_does():
    assert all(about(context, "<cat>").count("<cat>") == 1 for context in RECORDED)
    assert all(about(context, "<cat>") == context for context in (*ORDINARY, *UNRELATED))


@pytest.mark.parametrize(
    ("context", "text"),
    [
        ("V", "<a/b>"),
        ("V at night", "<a/b> at night"),
        ("photo of a V", "photo of a <a/b>"),
        ("a TV and V.", "a TV and <a/b>."),
    ],
)
def test_the_subject_stands_in_the_place_of_v(context, text):
    assert about(context, "<a/b>") == text


def test_a_subject_is_taken_literally():
    assert about("V", r"\1 \g<0>") == r"\1 \g<0>"
