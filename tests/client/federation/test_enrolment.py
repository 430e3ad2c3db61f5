"""Enrolment with a kit, against a real server over TLS."""

from __future__ import annotations

import datetime as dt
import threading
from pathlib import Path

import pytest

from mos_client.federation import enrolment
from mos_client.federation.enrolment import enrol, read_enrolment
from mos_common.errors import NetworkError, StateError, TrustError
from mos_common.kit import read_kit, write_kit
from mos_common.node_key import key_digest, public_pem


def test_a_kit_makes_a_member(operator, tmp_path):
    """The server learns the public key; the private key stays on this machine."""
    member = enrol(operator.kit("alice"), tmp_path)
    assert member.participant == "alice"
    assert operator.journal.participants.is_admitted(key_digest(public_pem(member.key)))
    again = read_enrolment(tmp_path)
    assert (again.participant, public_pem(again.key), again.kit) == ("alice", public_pem(member.key), member.kit)
    assert (tmp_path / "node_key").stat().st_mode & 0o077 == 0


def test_a_member_needs_neither_server_nor_token(operator, tmp_path):
    kit = operator.kit()
    first = enrol(kit, tmp_path)
    operator.stop()
    assert public_pem(enrol(kit, tmp_path).key) == public_pem(first.key)


@pytest.mark.parametrize("kept", [None, b"", b"{}"], ids=["lost", "empty", "damaged"])
def test_a_member_whose_kept_kit_is_unreadable_goes_on_with_the_one_given(operator, tmp_path, kept):
    kit = operator.kit()
    first = enrol(kit, tmp_path)
    (tmp_path / "kit.json").unlink()
    if kept is not None:
        (tmp_path / "kit.json").write_bytes(kept)
    again = enrol(kit, tmp_path)
    assert (again.participant, public_pem(again.key)) == (first.participant, public_pem(first.key))
    assert read_kit(tmp_path / "kit.json") == kit


def test_a_kit_is_good_once(operator, tmp_path):
    kit = operator.kit()
    enrol(kit, tmp_path / "alice")
    with pytest.raises(TrustError, match=r"the server refuses: .*used already"):
        enrol(kit, tmp_path / "mallory")
    assert not (tmp_path / "mallory" / "enrolled.json").exists()


def test_an_expired_kit_is_refused_on_both_sides(operator, tmp_path, monkeypatch):
    kit = operator.kit(valid_s=1.0)
    late = kit.model_copy(update={"expires": dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)})
    with pytest.raises(TrustError, match="this kit expired"):
        enrol(late, tmp_path)
    lying = kit.model_copy(update={"expires": dt.datetime.now(dt.UTC) + dt.timedelta(days=1)})
    at = dt.datetime.now(dt.UTC).timestamp() + 10
    monkeypatch.setattr("mos_server.state.journal.participants.time.time", lambda: at)
    with pytest.raises(TrustError, match=r"the server refuses: .*expired"):
        enrol(lying, tmp_path)


def test_a_killed_enrolment_goes_on_with_the_same_key(operator, tmp_path, monkeypatch):
    """Killed after the server admitted the key: the used token works again for that key."""
    kit = operator.kit()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(enrolment, "write_kit", killed)
        with pytest.raises(KeyboardInterrupt):
            enrol(kit, tmp_path)
    assert not (tmp_path / "enrolled.json").exists()
    assert enrol(kit, tmp_path).participant == "alice"
    assert len(operator.journal.participants.all()) == 1


def test_a_state_folder_belongs_to_one_federation(new_operator, tmp_path):
    enrol(new_operator().kit(), tmp_path)
    with pytest.raises(TrustError, match=r"belongs to another federation.*another --state"):
        enrol(new_operator().kit(), tmp_path)


def test_a_new_kit_of_the_same_federation_says_where_the_server_is_now(operator, tmp_path):
    enrol(operator.kit(), tmp_path)
    moved = operator.kit().model_copy(update={"mos": "elsewhere.example.org:9093"})
    assert enrol(moved, tmp_path).kit.mos == "elsewhere.example.org:9093"
    assert read_kit(tmp_path / "kit.json").mos == "elsewhere.example.org:9093"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_state_folder_belongs_to_one_participant(operator, tmp_path):
    """Carol's kit with alice's folder: nothing is changed, and the kit can still be used."""
    enrol(operator.kit("alice"), tmp_path / "state")
    before, carols = contents(tmp_path / "state"), operator.kit("carol")
    for kit in (carols, operator.kit("carol").model_copy(update={"mos": "elsewhere:1"})):
        with pytest.raises(TrustError, match=r"this state folder is alice's .*the kit is for carol: .*another --state"):
            enrol(kit, tmp_path / "state")
    assert contents(tmp_path / "state") == before
    assert enrol(carols, tmp_path / "other").participant == "carol"


def test_a_kit_of_another_federation_for_the_same_name_names_both(new_operator, tmp_path):
    first, second = new_operator(), new_operator()
    enrol(first.kit("alice"), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(TrustError, match=rf"alice's at 127\.0\.0\.1:{first.port} .*for alice at .*:{second.port}"):
        enrol(second.kit("alice"), tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["ca", "signing_key"])
def test_a_kit_with_another_anchor_is_not_the_operators(new_operator, tmp_path, name):
    operator, other = new_operator(), new_operator()
    enrol(operator.kit(), tmp_path)
    before = contents(tmp_path)
    false = operator.kit().model_copy(update={name: getattr(other.kit(), name)})
    with pytest.raises(TrustError, match=r"has another (certificate|signing key)"):
        enrol(false, tmp_path)
    assert contents(tmp_path) == before


def test_a_kit_for_another_base_is_refused(operator, tmp_path):
    """Fingerprints of one rule end alike."""
    old, new = ("ab" * 28 + "00000002", "cd" * 28 + "00000002")
    enrol(operator.kit().model_copy(update={"base": old}), tmp_path)
    with pytest.raises(TrustError, match=r"is for base model cdcdcdcdcdcd .*for abababababab"):
        enrol(operator.kit().model_copy(update={"base": new}), tmp_path)


def test_a_kit_made_again_for_the_same_participant_is_taken(operator, tmp_path):
    first, said = operator.kit(), []
    enrol(first, tmp_path)
    again = operator.kit().model_copy(update={"expires": first.expires - dt.timedelta(days=9)})
    assert again.token != first.token
    assert enrol(again, tmp_path, said.append).participant == "alice"
    assert said == [], "the server is where it was"
    enrol(again.model_copy(update={"mos": "b.example.org:9093"}), tmp_path, said.append)
    assert len(said) == 1
    assert "b.example.org:9093" in said[0]


def test_a_folder_that_an_earlier_release_mixed_up_is_its_members_again(operator, tmp_path):
    """0.1.0 took carol's kit into alice's folder: alice goes on, carol does not get in."""
    alices, carols = operator.kit("alice"), operator.kit("carol")
    enrol(alices, tmp_path)
    write_kit(carols, tmp_path / "kit.json")
    with pytest.raises(TrustError, match="this state folder is alice's"):
        enrol(carols, tmp_path)
    assert enrol(alices, tmp_path).participant == "alice"
    assert read_kit(tmp_path / "kit.json") == alices


def test_a_servers_state_folder_is_nobodys(operator):
    with pytest.raises(StateError, match="is a server's state folder"):
        enrol(operator.kit(), operator.state.path)
    assert not (operator.state.path / "node_key").exists()


def test_somebody_in_between_is_found_out(new_operator, tmp_path):
    """The certificate of a server with another authority is refused, and the token is not sent."""
    real, false = new_operator(), new_operator()
    kit = real.kit().model_copy(update={"mos": f"127.0.0.1:{false.port}"})
    with pytest.raises(NetworkError, match=r"cannot be reached"):
        enrol(kit, tmp_path, patient=False)
    assert real.journal.participants.all() == false.journal.participants.all() == []


def test_a_server_that_is_away_is_waited_for_and_that_is_said(operator, tmp_path):
    kit, lines = operator.kit(), []
    operator.stop()
    with pytest.raises(NetworkError, match=r"cannot be reached .*is it running"):
        enrol(kit, tmp_path, lines.append, patient=False)
    back = threading.Timer(0.5, operator.start)

    def say(line: str) -> None:
        lines.append(line)
        if "cannot be reached" in line:
            back.start()

    assert enrol(kit, tmp_path, say).participant == "alice"
    assert len(lines) == 2
    assert "waiting for it, Ctrl-C stops" in lines[0]
    assert "is reachable again" in lines[1]


@pytest.mark.parametrize("contents", [None, b"", b"[]", b"{}"])
def test_a_folder_without_membership_says_what_to_do(tmp_path, contents):
    if contents is not None:
        (tmp_path / "enrolled.json").write_bytes(contents)
    with pytest.raises(StateError, match="has not joined a federation: run mos-client join"):
        read_enrolment(tmp_path)
