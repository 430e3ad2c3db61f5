"""The concept file of a session: tuned once, then answered from the state folder."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mos_client.federation import tuned
from mos_client.federation.remembered import PICTURES
from mos_client.federation.session import Session
from mos_client.federation.tuned import pictures_to_score, tuned_already, tuned_file
from mos_client.tuning import tune_folder as tuning
from mos_client.tuning.request import TuneRequest
from mos_common.errors import BaseModelError, PicturesError, StateError
from mos_common.outage import Outage


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


def away(session: Session) -> None:
    """Take the folder of pictures away, as a stick that is pulled out."""
    session.request.images.rename(session.request.images.with_name("elsewhere"))


def back(session: Session) -> None:
    session.request.images.with_name("elsewhere").rename(session.request.images)


@pytest.fixture(autouse=True)
def _nothing_is_away(monkeypatch):
    monkeypatch.setattr(tuned, "PICTURES_AWAY", Outage(lambda line: tuned.log.warning("%s", line)))


def test_a_tuned_concept_is_answered_though_its_pictures_are_gone(session, tunings, caplog):
    """It is said once, and once that they are back."""
    file = tuned_file(session)
    away(session)
    assert [tuned_file(session) for _ in range(3)] == [file] * 3
    assert caplog.text.count("is sent all the same, without scores") == 1
    back(session)
    assert tuned_file(session) == file
    assert caplog.text.count("are back after") == 1
    assert tunings == [file]


def test_pictures_that_are_gone_before_anything_was_tuned_on_them_are_an_error(session, tunings):
    tuned_file(session)
    away(session)
    for change in ({"steps": 2}, {"seed": 3}, {"class_word": "dog"}, {"images": session.state / "nowhere"}):
        with pytest.raises(PicturesError, match="no folder of pictures"):
            tuned_file(replace(session, request=replace(session.request, **change)))
    assert len(tunings) == 1


def mask(folder: Path, name: str) -> Path:
    path = folder / f"{name}.mask.png"
    Image.new("L", (64, 64), 255).save(path)
    return path


@pytest.mark.parametrize("what", ["mask", "caption", "picture"])
def test_a_file_that_is_gone_is_no_reason_to_tune_again_at_an_answer(session, tunings, caplog, what):
    images = session.request.images
    (images / "00.txt").write_text("V asleep")
    files = {"mask": mask(images, "01"), "caption": images / "00.txt", "picture": images / "02.png"}
    file = tuned_file(session)
    files[what].unlink()
    assert [tuned_file(session) for _ in range(2)] == [file] * 2
    assert caplog.text.count("has lost") == 1
    assert {"mask": "mask of 01.png", "caption": "captions of 00.png", "picture": "02.png"}[what] in caplog.text
    assert tuned_already(session, starting=True) is None, "the command itself tunes on what is there"
    assert len(tunings) == 1


def test_a_picture_that_is_new_or_changed_is_tuned_on(session, tunings):
    file = tuned_file(session)
    (session.request.images / "99.png").write_bytes((session.request.images / "00.png").read_bytes())
    assert tuned_file(session) != file
    (session.request.images / "99.png").unlink()
    (session.request.images / "00.txt").write_text("V asleep")
    assert tuned_file(session) not in tunings[:2]
    assert len(tunings) == 3


def test_scores_need_every_picture_that_was_tuned_on(session, tunings):
    """Else one of the pictures tuned on would take the place of the one held back."""
    tuned_file(session)
    assert [len(part) for part in pictures_to_score(session)] == [2, 2]
    (session.request.images / "03.png").unlink()
    with pytest.raises(PicturesError, match=r"has lost 03\.png: bring it back for scores"):
        pictures_to_score(session)


def test_a_state_that_remembers_no_pictures_answers_with_its_only_concept(session, tunings):
    """As release 0.1.0 left it: no pictures.json."""
    file = tuned_file(session)
    (session.state / PICTURES).unlink()
    away(session)
    assert tuned_file(session) == file
    with pytest.raises(PicturesError):
        tuned_already(replace(session, request=replace(session.request, steps=9)), session.request)
    other = file.with_name("cat-0123456789abcdef.safetensors")
    other.write_bytes(b"another")
    with pytest.raises(
        StateError, match=rf"{other.name} and .*{file.name} could both be|{file.name} and .*{other.name} could"
    ):
        tuned_file(session)


def test_an_answer_does_not_need_a_state_folder_that_can_be_written(session, tunings, monkeypatch, caplog):
    file = tuned_file(session)

    def full(path: Path, data: bytes, **how: object) -> None:
        raise StateError(f"{path}: the disk is full")

    monkeypatch.setattr("mos_client.federation.remembered.write_atomically", full)
    (session.state / PICTURES).unlink()
    assert tuned_file(session) == file
    assert "the disk is full" in caplog.text


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
