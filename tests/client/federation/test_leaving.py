"""The page's table of what leaves is the code's, and `join` shows it before it enrols."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mos_client.federation import join as joining
from mos_client.federation.leaving import LEAVES, say_what_leaves
from mos_client.federation.session import Session
from mos_client.tuning.request import TuneRequest
from mos_common.kit import Kit

PAGE = Path(__file__).parents[3] / "docs" / "participating.md"


def test_the_table_on_the_page_is_the_one_in_the_code():
    section = PAGE.read_text(encoding="utf-8").split("\n## What leaves your machine, and what does not\n")[1]
    rows = re.findall(r"^\| (.+) \| (.+) \|$", section.split("\n## ")[0], re.M)
    assert rows == [("what leaves it", "when"), *((each.what, each.when) for each in LEAVES)]


def test_join_says_it_before_the_kit_is_used(tmp_path, monkeypatch):
    said: list[str] = []

    def enrol(*_: object, **__: object) -> None:
        assert said == list(say_what_leaves())
        raise InterruptedError

    session = Session(tmp_path, "ab" * 32, TuneRequest(tmp_path, "<cat>", "cat"))
    monkeypatch.setattr(joining, "check_kit", lambda *_: None)
    monkeypatch.setattr(joining, "prepared", lambda session, **_: (session, None))
    monkeypatch.setattr(joining, "enrol", enrol)
    with pytest.raises(InterruptedError):
        joining.join(session, Kit.model_construct(), rounds=1, say=said.append, on_step=lambda _: None)
    assert len(said) == len(LEAVES) + 1


@pytest.mark.parametrize("agreed", [True, False])
def test_join_asks_for_own_changes_before_the_kit_is_used(tmp_path, monkeypatch, agreed):
    """It says who gets them, what a withdrawal does and does not do, and how to refuse."""
    said: list[str] = []

    def enrol(*_: object, **__: object) -> None:
        if agreed:
            assert "everybody in it can fetch them" in said[-1]
            assert "copies fetched before cannot be called back" in said[-1]
            assert "--fused-only" in said[-1]
        else:
            assert "own changes are not published" in said[-1]
        raise InterruptedError

    session = Session(tmp_path, "ab" * 32, TuneRequest(tmp_path, "<cat>", "cat"), agreed)
    monkeypatch.setattr(joining, "check_kit", lambda *_: None)
    monkeypatch.setattr(joining, "prepared", lambda session, **_: (session, None))
    monkeypatch.setattr(joining, "enrol", enrol)
    kit = Kit.model_construct(publishes="own")
    with pytest.raises(InterruptedError):
        joining.join(session, kit, rounds=1, say=said.append, on_step=lambda _: None)
    session.save()
    assert Session.load(tmp_path).own is agreed


def test_the_page_says_that_copies_cannot_be_called_back():
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert "copies fetched before cannot be called back" in page
    assert "--fused-only" in page
