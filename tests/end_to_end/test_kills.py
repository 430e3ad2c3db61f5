"""Whatever dies, and wherever: the round completes with the model of an undisturbed one.

The process that works at a point is killed there with SIGKILL, once, and started again by whom
ever it belongs to: the process of a round by its server, a server and a client by its owner.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from end_to_end.dying import Dying, Kill, warm
from end_to_end.federation import check_nothing_left
from mos_bench.processes import Processes

ROUND, SERVER, INVITE = "mos_server.round.app", "mos-server serve", "mos-server invite"
ALICE, SUPERNODE = "alice/kit.json", "run_supernode"
INFLATABLE = "flwr.supercore.inflatable.inflatable_utils"
UPLOADS, ROUNDS = "mos_server.state.journal.uploads:Uploads", "mos_server.state.journal.rounds:Rounds"
ARTEFACTS, LOOP = "mos_server.state.artefacts:Artefacts", "mos_client.tuning.loop:Tuning"
PEOPLE = "mos_server.state.journal.participants:Participants"

# Before alice has tuned: the case begins without a server, and with her pictures alone.
EARLY = {
    "invite, token kept": Kill(f"{PEOPLE}.invite", INVITE, when="after"),
    "invite, kit not written": Kill("mos_common.kit:write_kit", INVITE),
    "enrolled, not answered": Kill(f"{PEOPLE}.enrol", SERVER, when="after"),
    "tuning, first step": Kill(f"{LOOP}._step", ALICE),
    "tuning, second step": Kill(f"{LOOP}._step", ALICE, 2, "after"),
    "tuning, last step": Kill(f"{LOOP}._step", ALICE, 3, "after"),
    "tuned, not written": Kill("mos_client.federation.join:announce", ALICE),
}
LATE = {
    "round asked for": Kill("mos_server.network.superlink:SuperLink.start_run", SERVER, when="after"),
    "round's process begins": Kill("mos_common.base_model:load_base", ROUND),
    "asked": Kill(f"{ROUNDS}.set_activity", ROUND, when="after"),
    "concept asked for": Kill("mos_client.federation.app:_session", ALICE),
    "upload begins": Kill("mos_client.federation.executor:Executor._reply", ALICE, when="after"),
    "upload half-way, sender": Kill(f"{INFLATABLE}:push_object_contents_from_iterable", SUPERNODE),
    "upload half-way, server": Kill("flwr.superlink.servicer.fleet.fleet_handlers:push_object", SERVER, 2),
    "spooling": Kill(f"{ARTEFACTS}.put_concept", ROUND),
    "spooled, not journalled": Kill(f"{ARTEFACTS}.put_concept", ROUND, when="after"),
    "journalled": Kill(f"{UPLOADS}.add", ROUND, when="after"),
    "second is spooled": Kill(f"{ARTEFACTS}.put_concept", ROUND, 2, "after"),
    "fusing": Kill("mos_server.fusion.fuse:fuse", ROUND),
    "recording, first": Kill("mos_server.fusion.moments:write_moments", ROUND),
    "recording, third": Kill("mos_server.fusion.moments:write_moments", ROUND, 3, "after"),
    "solving": Kill("mos_server.fusion.solve:refactored", ROUND),
    "solving, late": Kill("mos_server.fusion.solve:refactored", ROUND, 20),
    "candidate not written": Kill("mos_server.models.publish:write_fused", ROUND),
    "candidate written": Kill("mos_server.models.publish:write_fused", ROUND, when="after"),
    "scoring, client": Kill("mos_client.federation.app:score", ALICE),
    "scored, not sent": Kill("mos_client.federation.app:score", ALICE, when="after"),
    "scores not journalled": Kill(f"{UPLOADS}.set_identity", ROUND),
    "first scores journalled": Kill(f"{UPLOADS}.set_identity", ROUND, when="after"),
    "publishing": Kill("mos_server.models.publish:publish_candidate", ROUND),
    "between rename and journal": Kill("mos_server.models.publish:publish_candidate", ROUND, when="after"),
    "in the journal's transaction": Kill(f"{ROUNDS}.publish", ROUND, when="after"),
    "download half-way": Kill("mos_client.federation.download:_fetch", ALICE, 3),
    "downloaded, not in place": Kill("mos_client.federation.download:_check", ALICE),
    "model asked for": Kill("mos_server.state.published:published_model", SERVER, when="after"),
}
# The short form: one round in which five processes die.
AT_ONCE = (
    "upload half-way, sender",
    "upload half-way, server",
    "spooled, not journalled",
    "between rename and journal",
    "download half-way",
)


@pytest.fixture(scope="module")
def federation(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Dying:
    return warm(tmp_path_factory.mktemp("dying"), tuned)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    check_nothing_left()


@dataclass(frozen=True)
class Outcome:
    """What is left of a round: its manifest, its notes, and how many kills it went through."""

    manifest: bytes
    notes: list[str]
    kills: int


@pytest.fixture(scope="module")
def killed(federation: Dying) -> Outcome:
    """One round in which five processes die."""
    manifest = federation.run(*(LATE[name] for name in AT_ONCE))
    return Outcome(manifest, federation.notes(), federation.happened())


def test_a_round_in_which_five_processes_are_killed_publishes_the_model_of_an_undisturbed_one(killed, undisturbed):
    assert killed.kills == len(AT_ONCE), killed.notes
    assert killed.manifest == undisturbed


def test_complaint_1_a_node_that_stops_comes_back(killed):
    """flower #4844, OpenFL #454 and #455: alice's client and a SuperNode died, and she is in it."""
    assert {concept["token"] for concept in json.loads(killed.manifest)["concepts"]} == {
        "<alice/coral>",
        "<bob/ginger>",
    }


def test_complaint_3_a_server_that_dies_loses_no_round_and_does_not_die_silently(killed):
    """NVFlare #242, OpenFL #1619: it resumes, and a process of its own that died has a line."""
    assert len([note for note in killed.notes if note.startswith("starting on")]) >= 3
    assert any("the round's process ended with code -9" in note for note in killed.notes)
    assert len([note for note in killed.notes if note.startswith("fusing ")]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", LATE)
def test_killed_in_the_round_it_publishes_the_model_of_an_undisturbed_one(federation, undisturbed, name):
    assert federation.run(LATE[name]) == undisturbed
    assert federation.happened() == 1, federation.notes()


@pytest.mark.slow
@pytest.mark.parametrize("name", EARLY)
def test_killed_before_the_round_it_publishes_the_model_of_an_undisturbed_one(tmp_path, tuned, undisturbed, name):
    """From the first kit on: the same pictures and seeds give the same concepts."""
    federation = Dying(tmp_path)
    federation.create(tuned)
    shutil.rmtree(federation.participants[0].state)
    with Processes(federation.environment(EARLY[name])) as processes:
        federation.invite(processes)
        federation.start(processes)
        federation.ask(processes)
        federation.finish(processes)
    assert federation.published() == undisturbed
    assert federation.happened() == 1, federation.notes()
