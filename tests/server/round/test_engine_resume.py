"""A round that is killed in any state resumes there when it is started again under its name.

Each test ends with the same model as a round that nobody killed, layer by layer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch

from mos_common.signing import verify_model
from mos_server.state.records import COLLECTING, FUSING, HELD_BACK, PUBLISHED, SCORING


@pytest.fixture
def members(federation) -> dict:
    """Two participants, whose concepts are the same in every round."""
    return {name: federation.machine(name) for name in ("alice", "bob")}


@pytest.fixture
def resume(federation, members, network) -> Iterator[Callable[..., None]]:
    """Start round-001 again and check that its model is that of an undisturbed round."""
    resumed = []

    def go_on(*others) -> None:
        federation.go_on("round-001", network(*members.values(), *others))
        resumed.append(True)

    yield go_on
    assert resumed
    assert federation.status("round-001") == PUBLISHED
    verify_model(federation.state.artefacts.model("round-001"), federation.state.pki.signing_key_pem())
    shutil.rmtree(federation.state.artefacts.moments)
    undisturbed = federation.model(federation.run(*members.values(), wait=2))
    model = federation.model("round-001")
    assert model.changes.keys() == undisturbed.changes.keys()
    for layer, change in undisturbed.changes.items():
        torch.testing.assert_close(model.changes[layer].change(), change.change(), rtol=0, atol=0)
    assert [each.identity for each in model.manifest.concepts] == [
        each.identity for each in undisturbed.manifest.concepts
    ]


def fusions(federation) -> int:
    """How often the round began to fuse."""
    return len([text for text in federation.notes("round-001") if text.startswith("fusing ")])


def asked(members) -> dict[str, list[str]]:
    """What every member was asked."""
    return {name: list(machine.asked) for name, machine in members.items()}


def test_killed_before_it_asked_anybody_it_asks_everybody(federation, members, resume):
    with federation.killed_at(status=COLLECTING):
        federation.run(*members.values(), wait=2)
    resume()
    assert asked(members) == {"alice": ["concept", "scores"], "bob": ["concept", "scores"]}


def test_killed_while_it_collects_it_does_not_ask_again_for_what_is_spooled(federation, members, resume):
    with federation.killed_at(note="<alice/alices-cat> arrived"):
        federation.run(*members.values(), wait=2)
    assert federation.status("round-001") == COLLECTING
    (spooled,) = federation.admitted("round-001")
    assert federation.state.artefacts.concept_file(spooled.digest).is_file()
    resume()
    assert asked(members) == {"alice": ["concept", "scores"], "bob": ["concept", "concept", "scores"]}


def test_killed_while_it_fuses_it_fuses_what_it_had(federation, members, resume):
    """Nobody is asked for a concept any more, not even somebody who was not here before."""
    carol = federation.machine("carol")
    with federation.killed_at(note="unet: "):
        federation.run(*members.values(), wait=2)
    assert federation.status("round-001") == FUSING
    assert asked(members) == {"alice": ["concept"], "bob": ["concept"]}
    resume(carol)
    assert asked(members) == {"alice": ["concept", "scores"], "bob": ["concept", "scores"]}
    assert carol.asked == []


def test_killed_once_the_candidate_is_written_it_does_not_fuse_again(federation, members, resume):
    with federation.killed_at(status=SCORING):
        federation.run(*members.values(), wait=2)
    assert federation.status("round-001") == FUSING
    resume()
    assert fusions(federation) == 1


def test_killed_while_it_is_scored_it_keeps_the_scores_and_does_not_fuse_again(federation, members, resume):
    with federation.killed_at(note="<alice/alices-cat> identity"):
        federation.run(*members.values(), wait=2)
    assert federation.status("round-001") == SCORING
    resume()
    assert fusions(federation) == 1
    assert asked(members) == {"alice": ["concept", "scores"], "bob": ["concept", "scores", "scores"]}


def test_killed_once_the_model_is_signed_it_only_says_so(federation, members, resume):
    with federation.killed_at(note="published"):
        federation.run(*members.values(), wait=2)
    assert federation.status("round-001") == SCORING
    assert federation.state.artefacts.model("round-001").is_dir()
    signature = (federation.state.artefacts.model("round-001") / "model.sig").read_bytes()
    resume()
    assert (federation.state.artefacts.model("round-001") / "model.sig").read_bytes() == signature
    assert fusions(federation) == 1
    assert asked(members) == {"alice": ["concept", "scores"], "bob": ["concept", "scores"]}


def test_killed_before_it_journals_that_it_is_published_it_is_published_once(federation, members, resume):
    with federation.killed_at(status=PUBLISHED):
        federation.run(*members.values(), wait=2)
    resume()
    assert fusions(federation) == 1


def test_killed_before_it_journals_that_it_is_held_back_it_is_held_back(federation, members, network):
    with federation.killed_at(status=HELD_BACK):
        federation.run(*members.values(), wait=2, min_identity=0.9)
    federation.go_on("round-001", network(*members.values()))
    assert federation.status("round-001") == HELD_BACK
    assert not federation.state.artefacts.model("round-001").exists()
    assert fusions(federation) == 1
