"""Names, keys and trust with real processes: who may speak for a name, and whom it trusts.

One federation that began with 0.1.0's kind of signing key:

    alice     is joined all the time, while everything is rotated and the server moves
    bob       has enrolled and is away meanwhile
    carol     has two keys, of which one is barred, and then the other
    mallory   runs a server of her own under the federation's number
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from end_to_end.federation import QUICK, Federation, create_server, processes, tuned_people
from mos_bench.participant import Participant
from mos_client.federation.calling import calling
from mos_client.federation.download import describe
from mos_client.federation.enrolment import enrol, read_enrolment
from mos_common.errors import TrustError
from mos_common.fused_model import read_fused
from mos_common.kit import read_kit
from mos_common.node_key import key_digest, public_pem
from mos_common.rotation import public_pem as signing_pem
from mos_common.signing import verify_model
from mos_common.trust import read_pins
from mos_server.cli.init import init
from mos_server.cli.people import invite
from mos_server.state.folder import open_state
from mos_server.state.pki import private_pem

BIN = Path(sys.executable).parent


def command(*words: object, code: int = 0) -> str:
    """Run a command of this installation to its end; return what it printed."""
    done = subprocess.run(
        [str(BIN / str(words[0])), *map(str, words[1:])], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@dataclass
class Rotating(Federation):
    """A federation of alice, whose server replaces its keys."""

    @property
    def alice(self) -> Participant:
        return self.participants[0]

    def invite(self, name: str, file: str, *, again: bool = False) -> Path:
        invite(self.server, name, self.out / file, again=again)
        return self.out / file

    def rotate(self, *flags: str) -> str:
        return command("mos-server", "rotate", self.server, *flags)

    def restart(self) -> None:
        self.processes.stop("server")
        self.processes.start("server", ["mos-server", "serve", self.server])

    def statements(self) -> int:
        return len(read_pins(self.alice.state).anchors.statements)


@pytest.fixture(scope="module")
def federation(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rotating]:
    """Everything is rotated between two rounds, the second of which is published."""
    out = tmp_path_factory.mktemp("names")
    with processes() as running:
        federation = Rotating(out, running, tuned_people(tuned, out, scoring=())[:1])
        alice = federation.alice
        create_server(federation.server, [], sets=QUICK)
        key = ed25519.Ed25519PrivateKey.generate()
        (federation.server / "pki" / "signing.key").write_bytes(private_pem(key))
        (federation.server / "pki" / "signing.pub").write_text(signing_pem(key))
        invite(federation.server, "alice", alice.kit)
        federation.serve()
        federation.join(alice, rounds=2)
        enrol(read_kit(federation.invite("bob", "bob.kit")), out / "bob")
        federation.round(beside=["alice"])
        federation.until("alice has the first model", (alice.state / "models" / "round-001").is_dir)
        federation.rotate("--signing-key")
        federation.rotate("--authority")
        federation.until("alice knows of both", lambda: federation.statements() == 2)
        federation.rotate("--authority", "--finish")
        federation.rotate("--certificate", "--host", "localhost")
        federation.restart()
        federation.until("alice has gone on to the new authority", lambda: federation.statements() == 4)
        federation.round(beside=["alice"])
        running.wait("alice", timeout_s=300, beside=["server"])
        yield federation


def test_who_is_joined_while_everything_is_rotated_needs_no_new_kit(federation):
    pki = open_state(federation.server).pki
    member = read_enrolment(federation.alice.state)
    assert member.kit.anchors == pki.anchors(member.kit.server_id)
    assert member.kit.ca == pki.authority_pem(), "the former authority is no longer trusted"
    model = read_fused(federation.alice.state / "models" / "round-002").manifest
    assert [concept.token for concept in model.concepts] == [federation.alice.token]


def test_models_signed_before_and_after_are_verified(federation):
    keys = read_enrolment(federation.alice.state).trusted_keys
    assert len(keys) == 2
    for name, key in (("round-001", keys[1]), ("round-002", keys[0])):
        verify_model(federation.alice.state / "models" / name, keys)
        verify_model(federation.alice.state / "models" / name, key)


def test_who_was_away_is_told_and_joins_again_with_a_new_kit(federation):
    state, old = federation.out / "bob", federation.out / "bob.kit"
    command("mos-client", "download", old, "--state", state, "--out", federation.out / "b", code=7)
    assert len(read_pins(state).anchors.statements) == 0
    key = (state / "node_key").read_bytes()
    new = federation.invite("bob", "bob-again.kit")
    for model in ("round-001", "round-002"):
        command("mos-client", "download", new, "--state", state, "--out", federation.out / "b", "--model", model)
    assert len(read_pins(state).anchors.statements) == 4
    assert (state / "node_key").read_bytes() == key
    # The first kit is no way back, and no harm.
    command("mos-client", "download", old, "--state", state, "--out", federation.out / "b")


def test_complaint_8_the_certificate_is_for_the_name_that_kits_give(federation):
    """OpenFL #1265: localhost against the real name. A server that has moved answers to both."""
    kit = read_kit(federation.invite("dora", "dora.kit"))
    assert kit.mos.startswith("localhost:")
    named = read_kit(federation.alice.state / "kit.json")
    for mos in (kit.mos, kit.mos.replace("localhost", "127.0.0.1")):
        at = named.model_copy(update={"mos": mos})
        member = read_enrolment(federation.alice.state)
        with calling(at) as stub:
            assert describe(member, stub, "latest").model == "round-002"


def test_a_rogue_kit_with_the_federations_number_replaces_nothing(federation):
    rogue, state = federation.out / "rogue", federation.alice.state
    init(rogue)
    config = json.loads((rogue / "config.json").read_bytes())
    config["server_id"] = open_state(federation.server).config.server_id
    (rogue / "config.json").write_text(json.dumps(config))
    invite(rogue, "alice", federation.out / "rogue.kit")
    before = {file.name: file.read_bytes() for file in state.iterdir() if file.is_file()}
    said = command(
        "mos-client", "download", federation.out / "rogue.kit", "--state", state, "--out", federation.out / "r", code=8
    )
    assert "it is not by the operator whose federation you joined" in said
    after = {file.name: file.read_bytes() for file in state.iterdir() if file.is_file()}
    assert after == before


def test_a_name_is_its_keys_and_loses_them_one_by_one(federation):
    first = enrol(read_kit(federation.invite("carol", "carol-1.kit")), federation.out / "carol-1")
    second = enrol(read_kit(federation.invite("carol", "carol-2.kit")), federation.out / "carol-2")
    digests = [key_digest(public_pem(member.key)) for member in (first, second)]
    listed = command("mos-server", "status", federation.server)
    assert "carol: 2 keys" in listed
    assert all(digest[:12] in listed for digest in digests)

    def is_answered(member) -> bool:
        try:
            with calling(member.kit) as stub:
                return bool(describe(member, stub, "latest").model)
        except TrustError:
            return False

    assert [is_answered(each) for each in (first, second)] == [True, True]
    command("mos-server", "bar", federation.server, "carol", "--key", digests[0][:12])
    assert [is_answered(each) for each in (first, second)] == [False, True]
    command("mos-server", "bar", federation.server, "carol")
    assert [is_answered(each) for each in (first, second)] == [False, False]
    refused = command("mos-server", "invite", federation.server, "carol", "--out", federation.out / "c", code=2)
    assert "carol was barred on" in refused
    third = enrol(read_kit(federation.invite("carol", "carol-3.kit", again=True)), federation.out / "carol-3")
    assert [is_answered(each) for each in (first, second, third)] == [False, False, True]


def test_a_kit_of_one_name_is_no_key_to_anothers_state(federation):
    kit = federation.invite("erin", "erin.kit")
    for flags in (("--state", federation.alice.state), ("--state", federation.out / "bob")):
        said = command("mos-client", "download", kit, *flags, "--out", federation.out / "e", code=8)
        assert "the kit is for erin" in said
    assert enrol(read_kit(kit), federation.out / "erin").participant == "erin", "it was not used up"


def test_the_journal_knows_no_other_keys(federation):
    with federation.journal() as journal:
        assert {each.name for each in journal.participants.all()} <= {"alice", "bob", "carol", "erin"}
