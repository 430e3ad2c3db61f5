"""Which releases fit together, and what people are told whose releases do not."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

from mos_common.errors import RequestError
from mos_common.flower_app import POINTER
from mos_common.release import (
    OURS,
    PROTOCOL,
    PROTOCOL_KEY,
    RELEASE,
    RELEASE_KEY,
    SILENT,
    Release,
    advice_to_operator,
    advice_to_participant,
    release_in,
    release_metadata,
)

TOP = Path(__file__).parents[2]
NEWER = Release("9.0", PROTOCOL + 1)


def test_what_is_said_is_read():
    assert release_in((("x", "y"), *release_metadata())) == OURS


def test_who_says_nothing_is_0_1_0_or_earlier_and_does_not_fit():
    assert release_in((("x", "y"),)) == SILENT
    assert not SILENT.fits(OURS)


@pytest.mark.parametrize(
    "metadata",
    [
        release_metadata() * 2,
        ((RELEASE_KEY, "1.0"),),
        ((PROTOCOL_KEY, "2"),),
        ((RELEASE_KEY, "1.0"), (RELEASE_KEY, "1.0")),
        ((RELEASE_KEY, ""), (PROTOCOL_KEY, "2")),
        ((RELEASE_KEY, "1.0\nalice runs"), (PROTOCOL_KEY, "2")),
        ((RELEASE_KEY, "1" * 41), (PROTOCOL_KEY, "2")),
        ((RELEASE_KEY, "1.0"), (PROTOCOL_KEY, "-2")),
        ((RELEASE_KEY, "1.0"), (PROTOCOL_KEY, "2" * 5000)),
        ((RELEASE_KEY, b"1.0"), (PROTOCOL_KEY, "2")),
    ],
)
def test_what_is_no_release_is_refused(metadata):
    with pytest.raises(RequestError, match="does not say clearly which release"):
        release_in(metadata)


def test_the_older_side_is_told_to_install_the_newer_release():
    assert f"install release {RELEASE} and run" in advice_to_participant(SILENT, OURS)
    assert "ask the operator to install release 9.0" in advice_to_participant(NEWER, OURS)
    assert f"they are told to install {RELEASE}" in advice_to_operator("alice", SILENT, OURS)
    assert "install 9.0 here" in advice_to_operator("alice", NEWER, OURS)


def test_the_bundle_of_flower_has_the_number_of_the_protocol():
    assert tomllib.loads(POINTER)["project"]["version"] == f"{PROTOCOL}.0.0"


def test_the_distribution_and_its_citation_have_the_release():
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert f'RELEASE = "{RELEASE}"' in (TOP / project["tool"]["hatch"]["version"]["path"]).read_text()
    assert yaml.safe_load((TOP / "CITATION.cff").read_text())["version"] == RELEASE
