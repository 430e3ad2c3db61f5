"""The operator's state folder: made once, whole, by one server at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mos_common.errors import RequestError, StateError
from mos_common.files import replacing_folder, write_atomically
from mos_server.state.folder import ServerConfig, create_state, is_served, locked, open_state

CONFIG = ServerConfig(base="tiny", base_fingerprint="ab" * 32)


def test_what_was_created_is_opened(tmp_path: Path):
    created = create_state(tmp_path / "state", CONFIG)
    assert open_state(tmp_path / "state") == created
    assert created.artefacts.candidate("round-001") == created.path / "models" / "round-001-candidate"


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(StateError, match="not empty"):
        create_state(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_an_ordinary_folder_is_not_a_state_folder(tmp_path: Path):
    with pytest.raises(StateError, match="mos-server init"):
        open_state(tmp_path)


def test_a_damaged_config_is_named(tmp_path: Path):
    create_state(tmp_path / "state", CONFIG)
    (tmp_path / "state" / "config.json").write_text('{"base": "tiny"}')
    with pytest.raises(StateError, match=r"config\.json cannot be used"):
        _ = open_state(tmp_path / "state").config


@pytest.mark.parametrize("host", ["", "two words", "-dash", "a/b", "x" * 300])
def test_a_host_is_a_name_or_an_address(tmp_path: Path, host: str):
    with pytest.raises(RequestError, match="--host"):
        create_state(tmp_path / "state", CONFIG.model_copy(update={"host": host}))


def test_one_port_cannot_serve_both(tmp_path: Path):
    with pytest.raises(RequestError, match="port 9000 is given twice"):
        create_state(tmp_path / "state", CONFIG.model_copy(update={"fleet_port": 9000, "mos_port": 9000}))


def test_one_server_at_a_time(tmp_path: Path):
    state = create_state(tmp_path / "state", CONFIG)
    assert not is_served(state)
    with locked(state):
        assert is_served(state)
        with pytest.raises(StateError, match=f"served already, by process {os.getpid()}"), locked(state):
            pytest.fail("two servers on one folder")
    assert not is_served(state)


def test_the_lock_of_a_server_that_was_killed_is_free(tmp_path: Path):
    """Its files are still there, with the process that nobody is any more."""
    state = create_state(tmp_path / "state", CONFIG)
    holds = (
        "import sys, time; from pathlib import Path; from mos_server.state.folder import locked, open_state\n"
        "with locked(open_state(Path(sys.argv[1]))): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holds, state.path], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert is_served(state)
        with pytest.raises(StateError, match=f"served already, by process {other.pid}"), locked(state):
            pytest.fail("two servers on one folder")
        other.kill()
    assert not is_served(state)
    with locked(state):
        assert (state.path / "pid").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written"), (errno.EIO, "cannot be written")],
)
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
):
    write_atomically(tmp_path / "file", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StateError, match=advice):
        write_atomically(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path):
    for text in ("first", "second"):
        with replacing_folder(tmp_path / "model") as beside:
            (beside / "file").write_text(text)
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "model") as beside:
        (beside / "file").write_text("third")
        _ = 1 / 0
    assert (tmp_path / "model" / "file").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
