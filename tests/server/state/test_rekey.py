"""A state folder of an earlier release, opened with its base, with another base, and again."""

from __future__ import annotations

import json
import shutil
import stat
from dataclasses import replace

import pytest

from mos_common.concept_file import concept_to_bytes, content_digest, read_concept
from mos_common.errors import BaseModelError
from mos_server.state.folder import CONFIG, ServerConfig, State, create_state, open_state
from mos_server.state.rekey import rekey_state


@pytest.fixture
def before(sixteen, make_concept, tmp_path) -> State:
    """A state that an earlier release made, with one admitted concept."""
    old = sixteen.legacy_fingerprint
    state = create_state(tmp_path / "state", ServerConfig(base="tiny", base_fingerprint=old, mos_port=1234))
    concept = replace(make_concept(sixteen), base_fingerprint=old)
    data = concept_to_bytes(concept)
    (tmp_path / "uploaded").write_bytes(data)
    state.artefacts.put_concept(content_digest(read_concept(tmp_path / "uploaded")), data)
    return state


def test_config_and_kept_concepts_get_todays_fingerprint_and_nothing_else_changes(before, sixteen, make_concept):
    told = json.loads((before.path / CONFIG).read_bytes())
    state = rekey_state(before, sixteen)
    assert state.config.base_fingerprint == sixteen.fingerprint
    assert open_state(before.path).config == state.config
    assert json.loads((state.path / CONFIG).read_bytes()) == told | {"base_fingerprint": sixteen.fingerprint}
    (file,) = (state.path / "concepts").iterdir()
    assert file.read_bytes() == concept_to_bytes(make_concept(sixteen))
    assert file.stem == content_digest(read_concept(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_state_of_today_is_left_alone(before, sixteen):
    state = rekey_state(before, sixteen)
    times = {file: file.stat().st_mtime_ns for file in state.path.rglob("*")}
    assert rekey_state(open_state(state.path), sixteen).config == state.config
    assert {file: file.stat().st_mtime_ns for file in state.path.rglob("*")} == times


def test_a_state_that_was_rekeyed_halfway_is_rekeyed_whole(before, sixteen):
    """The config comes last: a kill between a concept and the config leaves the old one."""
    config = (before.path / CONFIG).read_bytes()
    rekey_state(before, sixteen)
    (before.path / CONFIG).write_bytes(config)
    state = rekey_state(open_state(before.path), sixteen)
    assert open_state(state.path).config.base_fingerprint == sixteen.fingerprint


def test_a_state_of_another_base_is_an_error_that_says_which_and_changes_nothing(before, tiny, sixteen, tmp_path):
    copy = shutil.copytree(before.path, tmp_path / "copy")
    message = (
        rf"{tiny.fingerprint[:12]} now and was {sixteen.legacy_fingerprint[:12]}.*by the old rule.*put that one back"
    )
    with pytest.raises(BaseModelError, match=message):
        rekey_state(before, tiny)
    for file in copy.rglob("*"):
        if file.is_file():
            assert (before.path / file.relative_to(copy)).read_bytes() == file.read_bytes()


def test_a_damaged_concept_does_not_keep_the_others_from_their_fingerprint(before, sixteen, caplog):
    (before.path / "concepts" / "damaged.safetensors").write_bytes(b"no concept")
    state = rekey_state(before, sixteen)
    assert "damaged.safetensors keeps its old fingerprint" in caplog.text
    others = [file for file in (state.path / "concepts").iterdir() if file.stem != "damaged"]
    assert {read_concept(file).base_fingerprint for file in others} == {sixteen.fingerprint}
