"""What a participant keeps: tuned once and answered ever after, one `join` at a time, for the eyes of its owner."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mos_client.federation.session import SETTINGS, Session, locked
from mos_client.tuning import tune_folder as tune_command
from mos_common.concept_file import read_concept, write_concept
from mos_common.errors import BaseModelError, PicturesError, StateError
from mos_common.kit import Kit, read_kit, write_kit

HOLDS = "import sys, time; from pathlib import Path; from mos_client.federation.session import locked\nwith locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def session(sixteen, random_base_folder, make_pictures, tmp_path) -> Session:
    settings = {"base": str(random_base_folder()), "fingerprint": sixteen.fingerprint, "device": "cpu"}
    return Session(tmp_path / "state", make_pictures(4), "<cat>", "cat", steps=1, **settings)


@pytest.fixture
def tunings(monkeypatch) -> list[Path]:
    """Replace tuning by something that takes a moment; the file of each."""
    made: list[Path] = []

    def pretend(images: Path, *, out: Path, **settings: object) -> Path:
        made.append(out)
        time.sleep(0.1)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(b"concept")
        return out

    monkeypatch.setattr(tune_command, "tune_folder", pretend)
    return made


def test_what_was_tuned_once_is_never_tuned_again(session, tunings):
    first = session.concept_file()
    session.save()
    assert session.concept_file() == Session.load(session.state).concept_file() == first
    assert tunings == [first]
    assert first.parent == session.state / "concepts"


def test_two_who_ask_at_once_wait_for_one_tuning(session, tunings):
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(session.concept_file())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tunings) == 1
    assert found == tunings * 4


def test_whoever_waits_for_the_first_is_told_when_it_is(session, tunings):
    begun = threading.Event()
    session.concept_file(begun=begun)
    assert begun.is_set()
    begun.clear()
    session.concept_file(begun=begun)
    assert begun.is_set()  # from the cache too


def test_a_tuning_that_fails_leaves_nothing_and_the_next_begins_anew(session, monkeypatch, tunings):
    pretend = tune_command.tune_folder

    def fails(*given: object, **settings: object) -> Path:
        raise StateError("the disk is full")

    monkeypatch.setattr(tune_command, "tune_folder", fails)
    with pytest.raises(StateError, match="disk is full"):
        session.concept_file()
    assert not session.cached().exists()
    monkeypatch.setattr(tune_command, "tune_folder", pretend)
    assert session.concept_file() == session.cached()


CHANGES = {
    "concept": "<dog>",
    "class_word": "dog",
    "steps": 2,
    "seed": 1,
    "author": "Alice",
    "licence": "CC0",
    "fingerprint": "ab" * 32,
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_setting_is_another_file(session, name):
    assert replace(session, **{name: CHANGES[name]}).cached() != session.cached()


@pytest.mark.parametrize("name", ["state", "images", "base"])
def test_where_things_lie_makes_no_other_file(session, tmp_path, name):
    """The same pictures and the same base in other folders: the contents count."""
    before = session.cached()
    if name == "images":
        session.images.rename(tmp_path / "elsewhere")
    after = replace(session, **{name: tmp_path / "elsewhere"}).cached()
    assert before.name == after.name


def changed_picture(folder: Path) -> None:
    (folder / "00.png").write_bytes((folder / "01.png").read_bytes())


def caption(folder: Path) -> None:
    (folder / "00.txt").write_text("V in a meadow")


def one_more(folder: Path) -> None:
    (folder / "99.png").write_bytes((folder / "01.png").read_bytes())


def renamed(folder: Path) -> None:
    (folder / "00.png").rename(folder / "0.png")


@pytest.mark.parametrize("change", [changed_picture, caption, one_more, renamed])
def test_other_pictures_are_another_file(session, change: Callable[[Path], None]):
    before = session.cached()
    change(session.images)
    assert session.cached() != before


def test_pictures_that_are_gone_are_said_and_not_answered_from_the_cache(session, tunings):
    session.concept_file()
    for picture in session.images.iterdir():
        picture.unlink()
    with pytest.raises(PicturesError, match="at least 3"):
        session.concept_file()


def test_another_base_than_the_operators_is_said_before_anything_is_tuned(session, tunings):
    wrong = replace(session, fingerprint="ab" * 32)
    with pytest.raises(BaseModelError, match=r"abababababab.*--base"):
        wrong.concept_file()
    assert tunings == []


@pytest.fixture
def before(session, sixteen, make_concept) -> Session:
    """A state folder of an earlier release, in which the concept has been tuned."""
    old = replace(session, fingerprint=sixteen.legacy_fingerprint)
    write_concept(replace(make_concept(sixteen), base_fingerprint=old.fingerprint), old.cached())
    old.cached().with_suffix(".progress.png").write_bytes(b"drawings")
    old.save()
    kit = {"server_id": "0" * 32, "name": "alice", "fleet": "a:1", "mos": "a:2", "token": "t" * 32, "base_name": "x"}
    pem = {"ca": "-----BEGIN CERTIFICATE-----", "signing_key": "-----BEGIN PUBLIC KEY-----"}
    write_kit(Kit(**kit, **pem, base=old.fingerprint, expires=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)), old.kit)
    return old


def test_a_state_of_an_earlier_release_is_rekeyed_and_nothing_is_tuned_again(before, sixteen, make_concept, tunings):
    kit = read_kit(before.kit)
    session = Session.load(before.state).current()
    assert session == replace(Session.load(before.state), fingerprint=sixteen.fingerprint)
    assert read_kit(before.kit) == kit.model_copy(update={"base": sixteen.fingerprint})
    (concept, drawings) = sorted(before.cached().parent.iterdir(), reverse=True)
    assert concept == session.concept_file() == session.cached() != before.cached()
    assert drawings == concept.with_suffix(".progress.png")
    assert read_concept(concept).base_fingerprint == sixteen.fingerprint
    write_concept(make_concept(sixteen), before.state / "fresh.safetensors")
    assert concept.read_bytes() == (before.state / "fresh.safetensors").read_bytes()
    assert tunings == []


def test_a_new_kit_finds_what_was_tuned_under_the_old_fingerprint(before, sixteen, tunings):
    again = replace(before, fingerprint=sixteen.fingerprint)
    assert again.concept_file() == again.cached()
    assert read_concept(again.cached()).base_fingerprint == sixteen.fingerprint
    assert tunings == []


def test_a_session_of_today_asks_no_base(session):
    """Where the base lies is not looked at: the fingerprint says that there is nothing to do."""
    away = replace(session, base="/nowhere/at/all")
    assert away.current() is away


def test_an_old_fingerprint_of_another_base_is_said_and_nothing_is_changed(before, random_base_folder):
    away = replace(before, base=str(random_base_folder(seed=1)))
    kept = {file: file.read_bytes() for file in before.state.rglob("*") if file.is_file()}
    with pytest.raises(BaseModelError, match=rf"{before.fingerprint[:12]} is a fingerprint by the old rule.*--base"):
        away.current()
    assert {file: file.read_bytes() for file in before.state.rglob("*") if file.is_file()} == kept


def test_a_concept_is_tuned_on_the_operators_base(session, sixteen):
    """With nothing replaced: one step on the random base."""
    steps: list[object] = []
    concept = read_concept(session.concept_file(steps.append))
    assert (concept.name, concept.base_fingerprint) == ("<cat>", sixteen.fingerprint)
    assert len(steps) == 1
    assert not (session.state / "tuning").exists()


def test_settings_come_back_as_they_were(session, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    here = replace(session, state=Path("state"), images=Path("pictures"), author="Älice \N{SNOWMAN}")
    here.save()
    loaded = Session.load(Path("state"))
    assert loaded == replace(here, state=tmp_path / "state", images=tmp_path / "pictures")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '{"state": 1}', '{"nonsense": "x"}'])
def test_a_folder_that_is_no_participants_is_said(tmp_path, text):
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(StateError, match="not a participant's state folder"):
        Session.load(tmp_path)
    with pytest.raises(StateError, match="mos-client join"):
        Session.load(tmp_path / "nowhere")


def test_settings_of_another_release_are_said(session):
    session.save()
    values = json.loads((session.state / SETTINGS).read_bytes())
    (session.state / SETTINGS).write_text(json.dumps(values | {"colour": "red"}))
    with pytest.raises(StateError, match="not a participant's state folder"):
        Session.load(session.state)


def test_one_join_at_a_time(tmp_path):
    with locked(tmp_path / "state"), pytest.raises(StateError, match=r"another mos-client join.*--state"):  # noqa: SIM117
        with locked(tmp_path / "state"):
            pass
    with locked(tmp_path / "state"), locked(tmp_path / "other"):
        pass


def test_the_folder_is_its_owners_alone(tmp_path):
    (tmp_path / "state").mkdir(mode=0o755)
    with locked(tmp_path / "state"):
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_is_gone_with_its_process(tmp_path, number):
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StateError, match="another mos-client join"), locked(tmp_path):
            pass
        os.kill(other.pid, number)
        other.wait()
    with locked(tmp_path):
        pass


def test_a_state_folder_that_is_a_file_is_said(tmp_path):
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(StateError), locked(tmp_path / "letter"):
        pass
    assert (tmp_path / "letter").read_text() == "dear"
