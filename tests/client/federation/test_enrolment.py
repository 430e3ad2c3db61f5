"""Enrolment with a kit, against a real server over TLS."""

from __future__ import annotations

import datetime as dt
import threading

import pytest

from mos_client.federation import enrolment
from mos_client.federation.enrolment import enrol, read_enrolment
from mos_common.errors import NetworkError, StateError, TrustError
from mos_common.kit import read_kit
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
