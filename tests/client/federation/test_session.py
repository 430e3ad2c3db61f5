"""A participant's state folder: settings, the name of the tuned file, the lock, permissions."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mos_client.federation.session import SETTINGS, Session, locked
from mos_client.pictures.folder import find_pictures, pictures_digest
from mos_client.tuning.request import TuneRequest
from mos_common.errors import StateError

HOLDS = (
    "import sys, time; from pathlib import Path; from mos_client.federation.session import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def with_request(session: Session, **changes: object) -> Session:
    return replace(session, request=replace(session.request, **changes))


@pytest.fixture
def session(sixteen, random_base_folder, make_pictures, tmp_path) -> Session:
    base = str(random_base_folder())
    request = TuneRequest(make_pictures(4), "<cat>", "cat", base=base, steps=1, device="cpu")
    return Session(tmp_path / "state", sixteen.fingerprint, request)


CHANGES = {
    "concept": "<dog>",
    "class_word": "dog",
    "steps": 2,
    "seed": 1,
    "author": "Alice",
    "licence": "CC0",
    "settings": {"rank": "2"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_setting_is_another_file(session, name):
    assert with_request(session, **{name: CHANGES[name]}).cached() != session.cached()


def test_another_base_model_is_another_file(session):
    assert replace(session, fingerprint="ab" * 32).cached() != session.cached()


def test_a_state_folder_of_version_0_1_0_is_read_and_its_tuned_file_found(make_pictures, tmp_path):
    """settings.json and the digest as that version wrote them, with the setting as it was typed."""
    pictures = make_pictures(4)
    values = {"author": "", "base": "tiny", "class_word": "cat", "concept": "<cat>", "device": None, "dtype": None}
    values |= {"fingerprint": "ab" * 32, "images": str(pictures), "licence": "", "seed": 0, "steps": 3, "vram": None}
    values |= {"settings": {"rank": "08"}, "state": str(tmp_path)}
    (tmp_path / SETTINGS).write_text(json.dumps(values))
    session = Session.load(tmp_path)
    digest = pictures_digest(find_pictures(pictures))
    made_of = ["<cat>", "cat", "ab" * 32, 3, 0, "", "", digest, {"rank": "08"}]
    text = json.dumps(made_of, separators=(",", ":"))
    name = f"cat-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    assert session.cached() == tmp_path / "concepts" / name
    session.save()
    assert json.loads((tmp_path / SETTINGS).read_text()) == values
    marked = Session(tmp_path, session.fingerprint, replace(session.request, mark="sks"))
    marked.save()
    assert Session.load(tmp_path) == marked


@pytest.mark.parametrize("name", ["state", "images", "base"])
def test_where_things_lie_makes_no_other_file(session, tmp_path, name):
    """The same pictures and the same base in other folders: the contents count."""
    before = session.cached()
    if name == "images":
        session.request.images.rename(tmp_path / "elsewhere")
    change = {name: tmp_path / "elsewhere"}
    after = (replace(session, **change) if name == "state" else with_request(session, **change)).cached()
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
    change(session.request.images)
    assert session.cached() != before


def test_settings_come_back_as_they_were(session, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    relative = with_request(replace(session, state=Path("state")), images=Path("pictures"), author="Älice \N{SNOWMAN}")
    relative.save()
    loaded = Session.load(Path("state"))
    assert loaded == with_request(replace(relative, state=tmp_path / "state"), images=tmp_path / "pictures")


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
    with locked(tmp_path / "state"), pytest.raises(StateError, match=r"another mos-client.*--state"):  # noqa: SIM117
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
