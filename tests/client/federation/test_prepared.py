"""`join` judges everything before its kit is used; a state folder that disagrees is a question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mos_client.federation.join import join, prepared
from mos_client.federation.session import Session
from mos_client.tuning import tune_folder as tuning
from mos_client.tuning.request import TuneRequest
from mos_common.concept_file import write_concept
from mos_common.errors import BaseModelError, MosError, PicturesError, RequestError, StateError, TrustError


@pytest.fixture
def session(sixteen, random_base_folder, make_pictures, tmp_path) -> Session:
    request = TuneRequest(make_pictures(4), "<cat>", "cat", base=str(random_base_folder()), steps=1, device="cpu")
    return Session(tmp_path / "state", sixteen.fingerprint, request)


@pytest.fixture
def joined(session, sixteen, make_concept) -> Session:
    """A state folder in which the concept has been tuned."""
    write_concept(make_concept(sixteen), session.cached())
    session.save()
    return session


def changed(session: Session, **changes: object) -> Session:
    return replace(session, request=replace(session.request, **changes))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.fixture(autouse=True)
def _nothing_is_tuned(monkeypatch):
    monkeypatch.setattr(tuning, "tune_folder", lambda *given, **how: pytest.fail("tuned"))


def test_what_was_tuned_needs_no_judgement_and_no_base(joined):
    away = changed(joined, base="/nowhere/at/all")
    assert prepared(away) == (away, None)


def test_what_is_to_be_tuned_is_judged_on_the_base_that_tuning_gets(session, sixteen):
    again, judged = prepared(session)
    assert again == session
    assert judged.base.fingerprint == sixteen.fingerprint
    assert (len(judged.tuned_on), len(judged.held_back)) == (2, 2)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"concept": "<dog>"}, "--concept '<cat>'.*'<dog>'"), ({"class_word": "dog"}, "--class 'cat'.*'dog'")],
)
def test_a_state_folder_is_for_one_concept(joined, change, named):
    before = contents(joined.state)
    with pytest.raises(RequestError, match=f"is the state folder of <cat>, a cat .{named}.*another --state .*--anew"):
        prepared(changed(joined, **change))
    assert contents(joined.state) == before
    _, judged = prepared(changed(joined, **change), anew=True)
    assert judged is not None


def test_another_folder_of_pictures_is_a_question_unless_they_are_the_same(joined, make_pictures):
    others = changed(joined, images=make_pictures(5, "others"))
    before = contents(joined.state)
    with pytest.raises(RequestError, match=r"is for the pictures in .*pictures, this command says .*others.*--anew"):
        prepared(others)
    assert contents(joined.state) == before
    assert prepared(others, anew=True)[1] is not None
    assert prepared(changed(joined, images=make_pictures(4, "moved"))) == (
        changed(joined, images=joined.request.images.with_name("moved")),
        None,
    )


def test_pictures_that_are_gone_are_no_reason_to_stop(joined):
    assert prepared(joined)[1] is None
    joined.request.images.rename(joined.request.images.with_name("stick"))
    assert prepared(joined) == (joined, None)
    with pytest.raises(PicturesError, match="no folder of pictures"):
        prepared(changed(joined, steps=7))


@pytest.fixture
def refused(operator, session):
    """Return a function that joins, and checks that it is refused before the kit is used."""

    def of(kind: type[MosError], message: str, asked: Session = session, **changes: object) -> None:
        kit = operator.kit().model_copy(update={"base": asked.fingerprint} | changes)
        with pytest.raises(kind, match=message):
            join(asked, kit, rounds=1, say=lambda line: None, on_step=lambda step: None)
        assert operator.journal.participants.all() == []
        assert not list(asked.state.rglob("node_key"))

    return of


def test_a_caption_that_does_not_fit_costs_no_kit(refused, session):
    (session.request.images / "02.txt").write_text("a " * 30 + "V")
    refused(PicturesError, r"02\.txt: the concept is named only after the 18 tokens")


def test_flags_that_cannot_be_used_cost_no_kit(refused, session):
    refused(RequestError, "are too few", changed(session, vram=1e-6))
    refused(RequestError, "is larger than layer", changed(session, settings={"rank": "99"}))


def test_another_base_costs_no_kit(refused, session, random_base_folder):
    other = changed(session, base=str(random_base_folder(seed=1)))
    refused(BaseModelError, r"is base model .*this federation fuses on .*--base", other)
    refused(BaseModelError, "no base model at /nowhere", changed(session, base="/nowhere/model"))


def test_a_servers_state_folder_is_not_touched(operator, refused, session):
    refused(StateError, "is a server's state folder", replace(session, state=operator.state.path))
    assert not (operator.state.path / "settings.json").exists()


def test_the_kit_of_somebody_else_is_refused_before_the_pictures_are_looked_at(operator, joined, monkeypatch):
    from mos_client.federation.enrolment import enrol

    enrol(operator.kit("alice"), joined.state)
    before = contents(joined.state)
    monkeypatch.setattr(TuneRequest, "pictures", lambda self: pytest.fail("looked at the pictures"))
    with pytest.raises(TrustError, match="this state folder is alice's"):
        join(joined, operator.kit("carol"), rounds=1, say=lambda line: None, on_step=lambda step: None)
    assert contents(joined.state) == before
