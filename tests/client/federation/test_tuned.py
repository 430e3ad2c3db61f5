"""The concept file of a session: tuned once, then answered from the state folder."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mos_client.federation.session import Session
from mos_client.federation.tuned import tuned_file
from mos_client.tuning import tune_folder as tuning
from mos_client.tuning.request import TuneRequest
from mos_common.errors import BaseModelError, PicturesError, StateError


@pytest.fixture
def session(sixteen, random_base_folder, make_pictures, tmp_path) -> Session:
    base = str(random_base_folder())
    request = TuneRequest(make_pictures(4), "<cat>", "cat", base=base, steps=1, device="cpu")
    return Session(tmp_path / "state", sixteen.fingerprint, request)


@pytest.fixture
def tunings(monkeypatch) -> list[Path]:
    """Replace tuning by a short pause; return the file of each call."""
    made: list[Path] = []

    def pretend(request: TuneRequest, out: Path, **settings: object) -> Path:
        made.append(out)
        time.sleep(0.1)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(b"concept")
        return out

    monkeypatch.setattr(tuning, "tune_folder", pretend)
    return made


def test_what_was_tuned_once_is_never_tuned_again(session, tunings):
    first = tuned_file(session)
    session.save()
    assert tuned_file(session) == tuned_file(Session.load(session.state)) == first
    assert tunings == [first]
    assert first.parent == session.state / "concepts"


def test_two_callers_at_once_wait_for_one_tuning(session, tunings):
    files: list[Path] = []
    threads = [threading.Thread(target=lambda: files.append(tuned_file(session))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tunings) == 1
    assert files == tunings * 4


def test_a_caller_that_waits_for_the_first_learns_when_its_turn_begins(session, tunings):
    begun = threading.Event()
    tuned_file(session, begun=begun)
    assert begun.is_set()
    begun.clear()
    tuned_file(session, begun=begun)
    assert begun.is_set()  # from the cache too


def test_a_tuning_that_fails_leaves_nothing_and_the_next_begins_anew(session, monkeypatch, tunings):
    pretend = tuning.tune_folder

    def fails(*given: object, **settings: object) -> Path:
        raise StateError("the disk is full")

    monkeypatch.setattr(tuning, "tune_folder", fails)
    with pytest.raises(StateError, match="disk is full"):
        tuned_file(session)
    assert not session.cached().exists()
    monkeypatch.setattr(tuning, "tune_folder", pretend)
    assert tuned_file(session) == session.cached()


def test_pictures_that_are_gone_are_said_and_not_answered_from_the_cache(session, tunings):
    tuned_file(session)
    for picture in session.request.images.iterdir():
        picture.unlink()
    with pytest.raises(PicturesError, match="at least 3"):
        tuned_file(session)


def test_another_base_than_the_operators_is_said_before_anything_is_tuned(session, tunings):
    wrong = replace(session, fingerprint="ab" * 32)
    with pytest.raises(BaseModelError, match=r"abababababab.*--base"):
        tuned_file(wrong)
    assert tunings == []


def test_a_concept_is_tuned_on_the_operators_base(session, sixteen):
    """Nothing is replaced: one real step on the random base."""
    from mos_common.concept_file import read_concept

    steps: list[object] = []
    concept = read_concept(tuned_file(session, steps.append))
    assert (concept.name, concept.base_fingerprint) == ("<cat>", sixteen.fingerprint)
    assert len(steps) == 1
    assert not (session.state / "tuning").exists()
