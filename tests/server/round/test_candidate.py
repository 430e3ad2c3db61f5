"""A candidate is made with its round's settings, says so, and is only current for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from mos_common.concept_file import concept_to_bytes
from mos_common.fused_model import read_fused
from mos_common.node_key import create_node_key, key_digest, public_pem
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.fusion.presets import PRESETS
from mos_server.round.candidate import fuse_candidate, is_current
from mos_server.round.intake import take_upload
from mos_server.state.concepts import named_concepts
from mos_server.state.folder import ServerConfig, create_state
from mos_server.state.journal import Journal
from mos_server.state.records import RoundSettings

FUSION = {
    "settings": {"contexts": ["V"], "ordinary": [""], "steps": 1, "guidance": 1.0, "preserve": 3.0},
    "weights": {"<alice/cat>": 2.0, "<carol/cat>": 5.0},
}


@pytest.fixture
def state(tmp_path, tiny):
    return create_state(tmp_path / "state", ServerConfig(base="tiny", base_fingerprint=tiny.fingerprint))


@pytest.fixture
def journal(state, tiny, make_concept) -> Iterator[Journal]:
    """A journal in which a round of alice's and bob's cats is asked for."""
    with closing(Journal(state.database)) as opened:
        round_id = opened.rounds.ask(RoundSettings(fusion=FUSION)).id
        for seed, name in enumerate(("alice", "bob")):
            pem = public_pem(create_node_key(state.path / name))
            token, _ = opened.participants.invite(name, valid_s=60)
            opened.participants.enrol(token, key_digest(pem), pem)
            participant = next(each for each in opened.participants.all() if each.name == name)
            data = concept_to_bytes(make_concept(tiny, "<cat>", seed=seed, strength=0.02))
            assert take_upload(state, opened, tiny, participant, data, round_id).refused is None
        yield opened


def test_it_is_fused_with_the_round_s_settings_and_weights(state, journal, tiny):
    """As a fusion of the same concepts with these settings by hand.

    The manifest holds all of them, the log what differs.
    """
    lines: list[str] = []
    made = read_fused(fuse_candidate(state, journal, "round-001", tiny, lines.append))
    settings = GradientSettings(contexts=("V",), ordinary=("",), steps=1, guidance=1.0, preserve=3.0)
    concepts = named_concepts(state, journal.uploads.admitted("round-001"))
    by_hand = fuse(tiny, concepts, settings, weights={"<alice/cat>": 2.0})
    for name, pair in by_hand.changes.items():
        assert (pair.change() - made.changes[name].change()).abs().max() < 1e-6
    assert made.manifest.settings == by_hand.manifest.settings
    assert made.manifest.settings["preserve"] == 3.0
    assert made.manifest.settings["ridge"] == PRESETS["identity"].ridge
    assert {it.token: it.weight for it in made.manifest.concepts} == {"<alice/cat>": 2.0, "<bob/cat>": 1.0}
    described = (
        "settings of fusion: gradient, preset identity, contexts=V, ordinary=, steps=1, guidance=1, preserve=3, "
    )
    assert any(line.startswith(described) for line in lines)
    assert "<carol/cat> is not in this round: its weight is not used" in lines


@pytest.mark.parametrize(
    "other",
    [
        {},
        {**FUSION, "settings": {**FUSION["settings"], "preserve": 1.0}},
        {**FUSION, "weights": {"<alice/cat>": 3.0}},
        {**FUSION, "weights": {}},
        {"method": "average"},
    ],
    ids=["defaults", "a setting", "a weight", "no weight", "a method"],
)
def test_a_candidate_of_other_settings_is_not_current(state, journal, tiny, other):
    folder = fuse_candidate(state, journal, "round-001", tiny, lambda line: None)
    uploads = journal.uploads.admitted("round-001")
    assert is_current(folder, uploads, FUSION, "round-001")
    assert not is_current(folder, uploads, other, "round-001")


def test_where_it_was_recorded_makes_no_other_candidate(state, journal, tiny):
    """Nor a weight for a concept that is not in the round."""
    folder = fuse_candidate(state, journal, "round-001", tiny, lambda line: None)
    same = {**FUSION, "weights": {"<alice/cat>": 2.0}, "workers": "auto"}
    assert is_current(folder, journal.uploads.admitted("round-001"), same, "round-001")


def test_a_candidate_of_other_concepts_or_none_is_not_current(state, journal, tiny):
    folder = fuse_candidate(state, journal, "round-001", tiny, lambda line: None)
    alice, bob = journal.uploads.admitted("round-001")
    assert not is_current(folder, [alice], FUSION, "round-001")
    assert not is_current(folder, [alice, replace(bob, digest="ab" * 32)], FUSION, "round-001")
    assert not is_current(folder.with_name("nowhere"), [alice, bob], FUSION, "round-001")
