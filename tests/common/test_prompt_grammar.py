"""The grammar of prompts to draw: weights, changes on the way, and what is text after all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mos_common import prompts
from mos_common.errors import RequestError
from mos_common.prompt_grammar import DEEPEST, MOST_CHARACTERS, as_text, parse_prompt

STEPS = 20


def said(prompt: str, step: int = 0, *, steps: int = STEPS, evaluations: int | None = None) -> list[tuple[str, float]]:
    parts = parse_prompt(prompt).parts(step, steps, evaluations or steps)
    return [(part.text, round(part.weight, 4)) for part in parts]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (cat:1.3) here", [("a ", 1), ("cat", 1.3), (" here", 1)]),
        ("(cat)", [("cat", 1.1)]),
        ("((cat))", [("cat", 1.21)]),
        ("[cat]", [("cat", 0.9091)]),
        ("([cat])", [("cat", 1)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3), (" c", 1.5)]),
        ("(cat:0)", [("cat", 0)]),
        ("(cat: 1.2 )", [("cat", 1.2)]),
        ("(time 12:1.5)", [("time 12", 1.5)]),
        ("(<alice/cat>:1.2) sits", [("<alice/cat>", 1.2), (" sits", 1)]),
        ("(cat:1) and (dog:1)", [("cat and dog", 1)]),
        ("(a: b)", [("a: b", 1.1)]),
    ],
)
def test_weights_are_those_of_the_web_ui(prompt, expected):
    assert said(prompt) == expected
    assert parse_prompt(prompt).remarks == ()


@pytest.mark.parametrize(
    ("prompt", "text"),
    [(r"\(cat\)", "(cat)"), (r"\[a\:b\|c\]", "[a:b|c]"), (r"\\", "\\"), (r"C:\dir", r"C:\dir"), ("a: b", "a: b")],
)
def test_a_backslash_makes_a_bracket_a_character(prompt, text):
    assert said(prompt) == [(text, 1)]


@pytest.mark.parametrize(
    ("prompt", "first", "later", "begins"),
    [
        ("[dog:cat:0.5]", "dog", "cat", 10),
        ("[dog:cat:8]", "dog", "cat", 8),
        ("a [cat:.25]", "a ", "a cat", 5),
        ("a [dog::0.25]", "a dog", "a ", 5),
        ("[a dog, big:<cat> (small:1):0.33]", "a dog, big", "<cat> small", 6),
    ],
)
def test_a_part_changes_after_a_share_of_the_steps_or_a_number_of_them(prompt, first, later, begins):
    """As in the web UI: 0.33 of 20 steps are the first six whole ones."""
    assert parse_prompt(prompt).changes(STEPS, STEPS) == {begins}
    for step in range(STEPS):
        assert said(prompt, step) == [(first if step < begins else later, 1)]


def test_changes_nest():
    prompt = "[[a:b:0.25]:c:0.5]"
    assert parse_prompt(prompt).changes(STEPS, STEPS) == {5, 10}
    assert [said(prompt, step)[0][0] for step in (0, 4, 5, 9, 10, 19)] == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize(
    ("when", "word"), [("0", "cat"), ("0.0", "cat"), ("1.0", "dog"), ("20", "dog"), ("999", "dog")]
)
def test_a_change_at_either_end_is_no_change(when, word):
    prompt = f"[dog:cat:{when}]"
    assert parse_prompt(prompt).changes(STEPS, STEPS) == set()
    assert {said(prompt, step)[0][0] for step in range(STEPS)} == {word}


def test_a_sampler_that_evaluates_twice_a_step_changes_at_the_same_step():
    assert parse_prompt("[dog:cat:8]").changes(20, 39) == {15}, "8 of 20 steps are 15.6 of 39 evaluations"


@pytest.mark.parametrize(
    ("prompt", "remark"),
    [
        ("a (cat", "a lone '('"),
        ("cat :)", "a lone ')'"),
        ("(a]", "a lone ']'"),
        ("(12:30)", "'(12:30)'"),
        ("[a|b]", "'[a|b]'"),
        ("[a:b:1.5]", "'[a:b:1.5]'"),
        ("[a:b:c]", "'[a:b:c]'"),
        ("[a:b:c:0.5]", "'[a:b:c:0.5]'"),
        ("a cat BREAK a dog", "'BREAK'"),
        ("a cat AND a dog", "'AND'"),
        ("a cat++", "'cat++'"),
    ],
)
def test_what_is_not_understood_is_text_and_is_noted(prompt, remark):
    assert "".join(text for text, _ in said(prompt)) == prompt
    assert remark in parse_prompt(prompt).remarks


@given(st.text(alphabet="ab ()[]:|\\<>.15", max_size=40))
def test_any_text_is_parsed_and_written_as_text_it_comes_back(text):
    parse_prompt(text).parts(3, 5, 5)
    assert "".join(part for part, _ in said(as_text(text))) == text
    assert all(weight == 1 for _, weight in said(as_text(text)))


@pytest.mark.parametrize("bracket", ["(", "[", "[a:", "(a:1", "[[:]", "a+", "(a)"])
def test_thousands_of_brackets_are_read_as_deep_as_brackets_go(bracket):
    prompt = bracket * (MOST_CHARACTERS // len(bracket))
    assert len(said(prompt)) <= 2 * DEEPEST + 2
    assert parse_prompt(prompt).changes(20, 20) == set()


def test_a_prompt_beyond_any_length_is_refused():
    with pytest.raises(RequestError, match="at most 10,000 are read"):
        parse_prompt("a" * (MOST_CHARACTERS + 1))


def test_contexts_of_fusion_and_scores_hold_nothing_that_the_grammar_reads():
    contexts = [*prompts.RECORDED, *prompts.SCORED, *prompts.ORDINARY, *prompts.WATCHED, *prompts.UNRELATED]
    assert [parse_prompt(context).parts(0, 20, 20)[0].text for context in contexts if context] == [
        context for context in contexts if context
    ]
    assert not any(as_text(context) != context for context in contexts)
