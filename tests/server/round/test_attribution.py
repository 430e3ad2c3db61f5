"""What a round's process was reading when it died is set aside, by name, and not read again."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from mos_common.concept_file import concept_from_bytes, content_digest
from mos_common.errors import StateError
from mos_server.round.attribution import CONCEPT, RECORDING, SCORES, Attribution, is_attributed
from mos_server.round.follow import describe_round
from mos_server.state.records import COLLECTING, PUBLISHED, SCORING

DIES = """
import os, sys
from pathlib import Path
from mos_server.round.attribution import Attribution
with Attribution(Path(sys.argv[1]), "round-001").doing(sys.argv[2], sys.argv[3]):
    os._exit(137)
"""


def dies(folder: Path, kind: str, whose: str) -> None:
    """A process of round-001 that dies while it reads."""
    assert subprocess.run([sys.executable, "-c", DIES, str(folder), kind, whose], check=False).returncode == 137


def test_an_answer_that_ended_the_process_is_set_aside_and_its_owner_not_asked(federation, network):
    alice, mallory = federation.machine("alice"), federation.machine("mallory")
    name = federation.ask(wait=1)
    dies(federation.state.path, CONCEPT, mallory.key)
    assert is_attributed(federation.state.path, name)
    federation.go_on(name, network(alice, mallory))
    assert federation.status(name) == PUBLISHED
    assert federation.tokens(name) == ["<alice/alices-cat>"]
    assert mallory.asked == []
    reason = "the round's process died while it read this answer: set aside, and not read again"
    assert federation.refusals(name) == {"mallory": reason}
    assert f"mallory: {reason}" in federation.notes(name)
    assert reason in "\n".join(describe_round(federation.journal, federation.journal.rounds.get(name)))
    assert not (federation.state.path / "reading.json").exists()


def test_it_is_set_aside_for_this_round_alone(federation, network):
    alice, mallory = federation.machine("alice"), federation.machine("mallory")
    dies(federation.state.path, CONCEPT, mallory.key)
    federation.go_on(federation.ask(wait=1), network(alice, mallory))
    assert len(federation.tokens(federation.run(alice, mallory, wait=2))) == 2


def test_scores_that_ended_the_process_are_set_aside_and_the_concept_stays(federation, network):
    alice, mallory = federation.machine("alice"), federation.machine("mallory")
    with federation.killed_at(status=SCORING):
        federation.run(alice, mallory, wait=2)
    dies(federation.state.path, SCORES, mallory.key)
    for _ in range(2):  # it stays aside, however often the round is started again
        with federation.killed_at(status=PUBLISHED):
            federation.go_on("round-001", network(alice, mallory))
    federation.go_on("round-001", network(alice, mallory))
    assert len(federation.tokens("round-001")) == 2
    assert mallory.asked == ["concept"]
    assert len([text for text in federation.notes("round-001") if text.startswith("mallory: the round's")]) == 1


def test_a_concept_whose_recording_ended_the_process_twice_is_left_out_by_name(federation, network):
    alice, mallory = federation.machine("alice"), federation.machine("mallory")
    with federation.killed_at(note="fusing "):
        federation.run(alice, mallory, wait=2)
    digest = content_digest(concept_from_bytes(mallory.concepts[0]))
    dies(federation.state.path, RECORDING, digest)
    with federation.killed_at(note="fusing "):
        federation.go_on("round-001", network(alice, mallory))
    assert len(federation.admitted("round-001")) == 2  # once may be an accident
    dies(federation.state.path, RECORDING, digest)
    federation.go_on("round-001", network(alice, mallory))
    assert federation.tokens("round-001") == ["<alice/alices-cat>"]
    assert "died twice while it recorded" in federation.refusals("round-001")["mallory"]


def test_what_is_being_recorded_is_written_down_before_it_is(federation, monkeypatch):
    """The concepts one after another; ordinary prompts are nobody's."""
    seen: list[str] = []
    real = Attribution.doing
    monkeypatch.setattr(Attribution, "doing", lambda *given: seen.append(given[1]) or real(*given))
    federation.run(federation.machine("alice"), federation.machine("bob"), wait=2)
    assert seen[:2] == [CONCEPT, CONCEPT]
    assert seen.count(RECORDING) >= 2


def test_an_error_is_no_death(tmp_path):
    with pytest.raises(KeyboardInterrupt), Attribution(tmp_path, "round-001").doing(CONCEPT, "key"):
        assert is_attributed(tmp_path, "round-001")
        raise KeyboardInterrupt
    assert not is_attributed(tmp_path, "round-001")
    assert Attribution(tmp_path, "round-001").fatal(CONCEPT) == []


@pytest.mark.parametrize("since", ["before", "meanwhile", "afterwards"])
def test_a_disk_that_is_full_while_an_answer_is_read_accuses_nobody(tmp_path, monkeypatch, since):
    """Before it is said that it is read, while it is, and when that is taken back."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    attribution = Attribution(tmp_path, "round-001")
    with attribution.doing(CONCEPT, "bob"):
        pass
    with monkeypatch.context() as disk:
        if since == "before":
            disk.setattr(os, "fsync", full)
        with suppress(StateError), attribution.doing(CONCEPT, "alice"):
            disk.setattr(tempfile, "mkstemp", full)
            if since == "meanwhile":
                raise StateError("the disk is full")
    assert not is_attributed(tmp_path, "round-001")
    assert Attribution(tmp_path, "round-001").fatal(CONCEPT) == []


def test_a_death_in_another_round_says_nothing_about_this_one(tmp_path):
    dies(tmp_path, CONCEPT, "key")
    assert Attribution(tmp_path, "round-002").fatal(CONCEPT) == []


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff", b'{"round": "round-001", "doing": null}'])
def test_a_damaged_file_accuses_nobody(tmp_path, damage):
    (tmp_path / "reading.json").write_bytes(damage)
    opened = Attribution(tmp_path, "round-001")
    assert opened.fatal(CONCEPT) == opened.fatal(SCORES) == opened.fatal(RECORDING) == []


def test_a_kill_while_an_upload_is_spooled_accuses_nobody(federation, network):
    """Reading is over then: an accident of the machine costs nobody their place."""
    alice, bob = federation.machine("alice"), federation.machine("bob")
    with federation.killed_at(note="<alice/alices-cat> arrived"):
        federation.run(alice, bob, wait=2)
    assert federation.status("round-001") == COLLECTING
    assert not is_attributed(federation.state.path, "round-001")
    federation.go_on("round-001", network(alice, bob))
    assert len(federation.tokens("round-001")) == 2
