"""Every way in which a state folder could come to trust somebody else in silence."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from mos_client.federation.enrolment import enrol, read_enrolment
from mos_common.errors import MosError, NetworkError, StateError, TrustError
from mos_common.kit import Kit, read_kit, write_kit
from mos_common.trust import read_pins, trusted_keys

LOST = ("enrolled.json", "kit.json", "trust.json")


@pytest.fixture
def alice(operator, tmp_path) -> Path:
    """The state folder of alice, who has enrolled."""
    enrol(operator.kit("alice"), tmp_path / "alice")
    return tmp_path / "alice"


@pytest.fixture
def rogue(operator, new_operator) -> Kit:
    """A kit for alice by somebody else, under the number of the federation, which every kit has."""
    other = new_operator().kit("alice")
    return other.model_copy(update={"server_id": operator.state.config.server_id})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def lose(state: Path, name: str, how: str) -> None:
    """Let a file be gone, empty, damaged, or a link to nowhere."""
    (state / name).unlink()
    if how == "link":
        (state / name).symlink_to(state / "nowhere")
    elif how != "gone":
        (state / name).write_bytes({"empty": b"", "damaged": b'{"format": 1'}[how])


@pytest.mark.parametrize("how", ["gone", "empty", "damaged", "link"])
@pytest.mark.parametrize("name", LOST)
def test_no_lost_file_lets_a_rogue_kit_in(alice, rogue, name, how):
    lose(alice, name, how)
    before = contents(alice)
    with pytest.raises((TrustError, StateError)):
        enrol(rogue, alice, patient=False)
    assert contents(alice) == before


@pytest.mark.parametrize("kept", LOST)
def test_two_lost_files_let_no_rogue_kit_in(alice, rogue, kept):
    for name in set(LOST) - {kept}:
        lose(alice, name, "gone")
    before = contents(alice)
    with pytest.raises((TrustError, StateError)):
        enrol(rogue, alice, patient=False)
    assert contents(alice) == before


@pytest.mark.parametrize("name", ["kit.json", "trust.json"])
@pytest.mark.parametrize("how", ["gone", "empty", "damaged"])
def test_either_copy_of_the_anchors_can_be_lost(operator, alice, name, how):
    """The participant goes on with the kit that they have, and both files are there again."""
    kit, before = read_kit(alice / "kit.json"), contents(alice)
    lose(alice, name, how)
    assert enrol(kit, alice).participant == "alice"
    assert contents(alice) == before


def test_a_folder_that_cannot_say_whom_it_trusts_takes_no_kit(operator, alice):
    kit = read_kit(alice / "kit.json")
    for name in ("kit.json", "trust.json"):
        lose(alice, name, "gone")
    with pytest.raises(StateError, match=r"used by alice, and nothing says whom it trusts: .* another --state folder"):
        enrol(kit, alice)


def test_a_folder_of_0_1_0_has_its_anchors_in_its_kit(operator, alice, rogue):
    kit = read_kit(alice / "kit.json")
    (alice / "trust.json").unlink()
    with pytest.raises(TrustError, match="is not by the operator"):
        enrol(rogue, alice)
    enrol(kit, alice)
    assert read_pins(alice).anchors == kit.anchors


def test_files_that_name_two_people_are_a_question(alice, operator):
    kit = read_kit(alice / "kit.json")
    (alice / "enrolled.json").write_text(json.dumps({"participant": "carol"}))
    with pytest.raises(StateError, match=r"enrolled\.json says carol, .*trust\.json says alice"):
        enrol(kit, alice)


def test_files_that_name_two_federations_are_a_question(alice, rogue, operator):
    kit = read_kit(alice / "kit.json")
    write_kit(rogue, alice / "kit.json")
    with pytest.raises(StateError, match=r"trust\.json and .*kit\.json disagree about whom"):
        enrol(kit, alice)
    with pytest.raises(StateError, match="disagree"):
        read_enrolment(alice)


def test_a_half_enrolled_folder_is_its_federations_already(operator, rogue, tmp_path):
    """The server was away when the kit was used: the folder waits for this server, and no other."""
    kit = operator.kit("alice")
    operator.stop()
    with pytest.raises(NetworkError):
        enrol(kit, tmp_path / "alice", patient=False)
    for other in (rogue, kit.model_copy(update={"name": "carol"}), kit.model_copy(update={"server_id": "0" * 32})):
        with pytest.raises(TrustError, match="Nothing was changed"):
            enrol(other, tmp_path / "alice", patient=False)
    operator.start()
    assert enrol(kit, tmp_path / "alice").participant == "alice"


def test_a_kit_that_the_server_refuses_leaves_the_folder_free(operator, new_operator, tmp_path):
    used = operator.kit("alice")
    enrol(used, tmp_path / "alice")
    with pytest.raises(TrustError, match="used already"):
        enrol(used, tmp_path / "new")
    assert enrol(new_operator().kit("bob"), tmp_path / "new").participant == "bob"


def test_a_kit_whose_token_is_another_names_makes_no_member(operator, tmp_path):
    """A kit that was edited: the server knows whose the token is."""
    edited = operator.kit("carol").model_copy(update={"name": "alice"})
    with pytest.raises(TrustError, match="the kit is for alice, the server admits its token as 'carol'"):
        enrol(edited, tmp_path)
    assert not (tmp_path / "enrolled.json").exists()


def test_a_second_kit_in_a_folder_that_has_joined_stays_unused(operator, alice):
    second = operator.kit("alice")
    before = contents(alice)
    enrol(second, alice)
    assert contents(alice) == before
    assert enrol(second, alice.parent / "other").participant == "alice"
    assert len({each.key for each in operator.journal.participants.all()}) == 2


@pytest.mark.parametrize("same", [True, False], ids=["two names", "two federations"])
def test_of_two_kits_at_once_one_is_refused(operator, new_operator, tmp_path, same):
    kits, ended = [operator.kit("alice"), operator.kit("bob") if same else new_operator().kit("alice")], []

    def use(kit: Kit) -> None:
        try:
            ended.append((enrol(kit, tmp_path / "state").participant, kit.server_id))
        except MosError as error:
            ended.append(error)

    threads = [threading.Thread(target=use, args=(kit,)) for kit in kits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((name, server),) = [each for each in ended if isinstance(each, tuple)]
    pins, member = read_pins(tmp_path / "state"), read_enrolment(tmp_path / "state")
    assert (pins.participant, pins.anchors.server_id) == (member.participant, member.kit.server_id) == (name, server)


def test_keys_that_are_trusted_are_those_pinned(operator, alice, rogue):
    kit = read_kit(alice / "kit.json")
    assert trusted_keys(kit) == trusted_keys(kit, alice) == (kit.signing_key,)
    assert trusted_keys(rogue) == (rogue.signing_key,)
    with pytest.raises(TrustError, match="has another certificate"):
        trusted_keys(rogue, alice)
