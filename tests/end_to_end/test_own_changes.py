"""Own changes in a federation: who agrees, what is published, fetched, verified, and called off.

Alice agrees, bob refuses with --fused-only. Everything runs as commands, on real ports.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from end_to_end.dying import ROUND, Dying
from end_to_end.federation import join_tuned
from mos_bench.demo import free_ports
from mos_bench.processes import Processes
from mos_common.concept_file import read_concept
from mos_common.fused_model import read_fused_manifest
from mos_common.kit import read_kit
from mos_common.layers import Group
from mos_common.own.folder import read_own
from mos_common.own.names import beside, own_folder
from mos_server.state.folder import open_state
from mos_server.state.journal import Journal

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.timeout(1800)


@dataclass
class Federation:
    """One published round of two, with its server running."""

    dying: Dying
    said: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        """The model on the server."""
        return self.dying.server / "models" / "round-001"

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / str(words[0])), *map(str, words[1:])]
        return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)

    def download(self, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        bob = self.dying.participants[1]
        return self.run("mos-client", "download", bob.kit, "--state", bob.state, "--out", out, *flags)


@pytest.fixture(scope="module")
def federation(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(Dying(tmp_path_factory.mktemp("own")))
    dying = made.dying
    dying.create(tuned)
    alice, bob = dying.participants
    fleet, mos = free_ports(2)
    with Processes(dying.environment()) as processes:
        ports = ["--fleet-port", fleet, "--mos-port", mos]
        processes.do("operator", ["mos-server", "init", dying.server, *ports, "--publish", "own"])
        for someone in dying.participants:
            processes.do("operator", ["mos-server", "invite", dying.server, someone.name, "--out", someone.kit])
        processes.start("server", ["mos-server", "serve", dying.server])
        processes.start(alice.name, join_tuned(alice))
        processes.start(bob.name, [*join_tuned(bob), "--fused-only"])
        processes.start("operator", ["mos-server", "round", dying.server, *ROUND])
        for name in ("operator", alice.name, bob.name):
            processes.wait(name, beside=["server"])
        yield made


def test_the_operator_s_choice_is_in_kits_and_round_and_the_participants_in_their_uploads(federation):
    alice, bob = federation.dying.participants
    assert read_kit(alice.kit).publishes == "own"
    with closing(Journal(open_state(federation.dying.server).database)) as journal:
        assert journal.rounds.get("round-001").settings.publishes == "own"
        assert {upload.token: upload.own for upload in journal.uploads.of("round-001")} == {
            alice.token: True,
            bob.token: False,
        }
    audited = federation.run("mos-server", "audit", federation.dying.server)
    assert audited.returncode == 0, audited.stderr
    assert audited.stdout.count("own changes may be published") == 1


def test_only_who_agreed_is_published_and_the_model_names_the_folder(federation, tiny):
    alice, bob = federation.dying.participants
    manifest = read_fused_manifest(federation.model)
    named = {concept.token: concept.own for concept in manifest.concepts}
    folder = own_folder(federation.model, alice.token)
    assert named[bob.token] is None
    assert named[alice.token] == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert [path.name for path in beside(federation.model).iterdir()] == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.safetensors", "manifest.json", "model.sig"]
    (file,) = (alice.state / "concepts").glob("*.safetensors")
    uploaded = read_concept(file).pairs
    spatial = {layer.name for layer in tiny.layout.by_group[Group.SPATIAL]}
    read = read_own(federation.model, manifest, tiny, [alice.token])[alice.token]
    assert read.keys() == uploaded.keys() & spatial
    for name, pair in read.items():
        torch.testing.assert_close(pair.change(), uploaded[name].change())


def test_they_are_fetched_on_demand_drawn_verified_and_after_a_withdrawal_served_no_more(federation, tmp_path):
    """A model without them verifies; copies fetched before stay, and everybody is told so."""
    alice, bob = federation.dying.participants
    done = federation.download(tmp_path / "plain")
    assert done.returncode == 0, done.stderr
    assert not beside(tmp_path / "plain" / "round-001").exists()

    models = bob.state / "models"  # where `join` has put the model
    fetched = federation.download(models, "--own")
    assert fetched.returncode == 0, fetched.stderr
    folder = own_folder(models / "round-001", alice.token)
    assert f"own changes of {alice.token}: {folder}" in fetched.stdout
    verified = federation.run("mos-client", "verify", models / "round-001")
    assert verified.returncode == 0, verified.stdout
    assert f"own changes of {alice.token}: the folder that the model names, signed by the operator" in verified.stdout
    drawn = [
        federation.run(
            "mos-client", "draw", models / "round-001", f"a {alice.token}", "--steps", 2, "--out", out, *flags
        )
        for out, flags in ((tmp_path / "own.png", ()), (tmp_path / "fused.png", ("--own", "off")))
    ]
    assert [each.returncode for each in drawn] == [0, 0], drawn
    assert (tmp_path / "own.png").read_bytes() != (tmp_path / "fused.png").read_bytes()

    withdrawn = federation.run("mos-server", "concepts", federation.dying.server, "withdraw", alice.token)
    assert withdrawn.returncode == 0, withdrawn.stderr
    assert "copies fetched before cannot be called back" in withdrawn.stdout
    assert not beside(federation.model).exists()
    late = federation.download(tmp_path / "late", "--own")
    assert late.returncode == 0, late.stderr
    assert f"own changes of {alice.token}: the server does not hand them out" in late.stdout
    assert not own_folder(tmp_path / "late" / "round-001", alice.token).exists()
    for model in (tmp_path / "late" / "round-001", models / "round-001"):
        assert federation.run("mos-client", "verify", model, "--kit", bob.kit).returncode == 0
    data = bytearray((folder / "adapter.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "adapter.safetensors").write_bytes(bytes(data))
    assert federation.run("mos-client", "verify", models / "round-001").returncode == 8
