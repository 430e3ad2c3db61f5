"""A participant follows the operator's rotations over a real server, and nobody else's."""

from __future__ import annotations

import dataclasses

import pytest

from mos_client.federation.enrolment import Enrolment, enrol, read_enrolment
from mos_client.federation.following import Follower, followed
from mos_common.errors import NetworkError, TrustError
from mos_common.kit import read_kit, write_kit
from mos_common.trust import TRUST, read_pins
from mos_server.network.service import MosService
from mos_server.state.folder import open_state
from mos_server.state.rotation import announce_authority, finish_authority, rotate_certificate, rotate_signing_key


def test_without_rotations_nothing_changes(member: Enrolment, tmp_path):
    said: list[str] = []
    before = {file.name: file.read_bytes() for file in (tmp_path / "alice").iterdir()}
    assert followed(member, tmp_path / "alice", said.append) == member
    assert said == []
    assert {file.name: file.read_bytes() for file in (tmp_path / "alice").iterdir()} == before


def test_an_authority_is_replaced_in_two_steps_and_nobody_is_lost(operator, member, tmp_path):
    """Between the steps both are trusted; after the second the former one is not."""
    state, said = tmp_path / "alice", []
    first = member.kit.ca
    announce_authority(operator.state)
    operator.stop()
    operator.start()  # the server still has a certificate by the former authority
    between = followed(member, state, said.append)
    assert between.kit.ca.count("BEGIN CERTIFICATE") == 2
    assert first.strip() in between.kit.ca
    finish_authority(operator.state)
    operator.stop()
    operator.start()  # and now by the new one
    after = followed(between, state, said.append)
    assert after.kit.ca == operator.state.pki.authority_pem()
    assert first.strip() not in after.kit.ca
    assert read_enrolment(state).kit == followed(after, state, said.append).kit == after.kit
    assert len(said) == 2
    assert all("the operator rotated the federation's keys on" in line for line in said)


def test_who_was_away_for_both_steps_needs_a_new_kit_and_keeps_the_key(operator, member, tmp_path):
    state = tmp_path / "alice"
    announce_authority(operator.state)
    finish_authority(operator.state)
    operator.stop()
    operator.start()
    with pytest.raises(NetworkError, match="you need a new kit"):
        followed(member, state, print)
    again = followed(enrol(operator.kit("alice"), state), state, print)
    assert again.key.private_numbers() == member.key.private_numbers()
    assert len(read_pins(state).anchors.statements) == 2
    assert len(operator.journal.participants.all()) == 1, "the new kit was not used"


def test_after_a_rotation_the_old_kit_takes_nobody_back(operator, member, tmp_path):
    """The command that people type again names the kit that they have."""
    state, old = tmp_path / "alice", member.kit
    rotate_signing_key(operator.state)
    now = followed(member, state, print)
    moved = old.model_copy(update={"mos": "former.example.org:9093"})
    assert enrol(moved, state).kit == now.kit
    assert now.trusted_keys == (operator.state.pki.signing_key_pem(), old.signing_key)


def test_a_server_of_an_earlier_release_has_no_statements(operator, member, tmp_path, monkeypatch):
    operator.stop()
    methods = MosService.methods.fget
    earlier = property(lambda self: {name: each for name, each in methods(self).items() if name != "Trust"})
    monkeypatch.setattr(MosService, "methods", earlier)
    operator.start()
    assert followed(member, tmp_path / "alice", print) == member


def test_a_server_that_was_restored_to_another_history_is_refused(operator, member, tmp_path):
    """Two rotations from one backup: who saw the first follows no second."""
    state, pki = tmp_path / "alice", operator.state.pki
    backup = {file.name: file.read_bytes() for file in pki.folder.iterdir()}
    rotate_signing_key(operator.state)
    now, before = followed(member, state, print), (state / TRUST).read_bytes()
    (pki.folder / "rotations.json").unlink()
    for name, data in backup.items():
        (pki.folder / name).write_bytes(data)
    assert followed(now, state, print) == now, "a server that forgot a rotation is behind, and nothing more"
    rotate_signing_key(operator.state)
    with pytest.raises(TrustError, match="two histories of one federation"):
        followed(now, state, print)
    assert (state / TRUST).read_bytes() == before
    with pytest.raises(TrustError, match="is not by the operator whose federation you joined"):
        enrol(operator.kit("alice"), state)


def test_a_server_that_moved_is_found_at_the_address_that_was_announced(operator, member, tmp_path):
    state, said = tmp_path / "alice", []
    rotate_certificate(operator.state, "localhost")
    config = open_state(operator.state.path).config
    assert (config.host, config.also_names) == ("localhost", ("127.0.0.1",))
    told = followed(member, state, said.append)
    # The announced port is that of config.json; put the test's own in its place.
    last = told.kit.statements[-1]
    assert (last.mos, told.kit.mos) == ("localhost:9093", member.kit.mos), "it answers where it was"
    gone = dataclasses.replace(told, kit=told.kit.model_copy(update={"mos": "127.0.0.1:1"}))
    with pytest.raises(NetworkError, match="localhost:9093"):
        followed(gone, state, said.append)


def test_a_refusal_is_said_once_and_changes_are_told(operator, member, tmp_path, caplog):
    follower = Follower(member, tmp_path / "alice", lambda line: None)
    rotate_signing_key(operator.state)
    assert len(follower.look().trusted_keys) == 2
    assert follower.changed.is_set()
    (operator.state.pki.folder / "rotations.json").write_text("[]")
    rotate_signing_key(operator.state)  # by the key of the second link, as if it were the first
    for _ in range(2):
        assert len(follower.look().trusted_keys) == 2
    assert len([record for record in caplog.records if "was refused" in record.message]) == 1


def test_a_kit_of_a_rotated_federation_has_its_history(operator, tmp_path):
    rotate_signing_key(operator.state)
    kit = operator.kit("bob")
    write_kit(kit, tmp_path / "bob.kit")
    assert read_kit(tmp_path / "bob.kit") == kit
    assert len(enrol(kit, tmp_path / "bob").trusted_keys) == 2
