"""An admitted participant sends random changes, and the others' model is what it is without them.

Two honest participants run a round. Then mallory comes, who has an
admitted key and a concept file made by hand: changes of three tenths of every layer's norm.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import MessageType

from end_to_end.federation import QUICK, Federation, processes, tuned_people
from end_to_end.fleet import Answer, FleetClient, honest_answer
from mos_bench.influence.measuring import random_changes
from mos_common import messages
from mos_common.base_model import load_base
from mos_common.concept_file import concept_to_bytes
from mos_common.digests import digest_of_file
from mos_server.cli.people import invite
from mos_server.state.records import PUBLISHED

HONEST = ("alice", "bob")
TOKEN = "<mallory/x>"
LITTLE = 0.05  # of what the honest ones keep without the attacker


@dataclass(frozen=True)
class Outcome:
    """What a round left: its manifest, the digest of its changes, notes, reasons and `status`."""

    manifest: dict[str, Any]
    adapter: str
    notes: list[str]
    refused: dict[str, str | None]
    status: str

    @property
    def kept(self) -> dict[tuple[str, str], float]:
        """The energy that each concept keeps in each group of layers."""
        return {
            (concept["token"], group): survival["energy_kept"]
            for concept in self.manifest["concepts"]
            for group, survival in concept["survival"].items()
        }


def run_round(federation: Federation, count: int) -> Outcome:
    """Run a round of so many concepts to its end."""
    newest = federation.round("--wait", str(count), beside=HONEST, timeout_s=1200)
    assert newest.status == PUBLISHED
    status = [str(Path(sys.executable).parent / "mos-server"), "status", str(federation.server)]
    shown = subprocess.run(status, capture_output=True, text=True, timeout=300, check=True).stdout
    refused = {upload.participant: upload.refused for upload in federation.uploads(newest.id)}
    model = federation.state.artefacts.model(newest.id)
    manifest, adapter = (
        json.loads((model / "manifest.json").read_bytes()),
        digest_of_file(model / "adapter.safetensors"),
    )
    return Outcome(manifest, adapter, federation.notes(newest.id), refused, " ".join(shown.split()))


def poisoned(question: Any) -> Answer | None:
    """Answer the question for a concept with random changes, and every other with silence."""
    if question.metadata.message_type != MessageType.TRAIN:
        return None
    concept = random_changes(load_base("tiny", device="cpu"), 0.3, rank=4, seed=0).concept
    return honest_answer(question, messages.upload_content(messages.Upload(concept_to_bytes(concept), 1.0)))


@pytest.fixture(scope="module")
def rounds(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Outcome, Outcome]]:
    """The round of the honest two, and the next one, with mallory."""
    out = tmp_path_factory.mktemp("poison")
    with processes() as running:
        federation = Federation(out, running, tuned_people(tuned, out, scoring=())[: len(HONEST)])
        federation.create(sets=QUICK)
        invite(federation.server, "mallory", out / "mallory.kit")
        federation.serve()
        federation.join(*federation.participants, rounds=None)
        alone = run_round(federation, len(HONEST))
        mallory = FleetClient(out / "mallory.kit", out / "mallory")
        with mallory.answering(poisoned):
            beside = run_round(federation, len(HONEST) + 1)
        mallory.close()
    yield alone, beside


def test_the_poisoned_concept_is_left_out_and_the_honest_keep_what_they_keep_without_it(rounds):
    """To five percent is the promise; left out, it changes nothing at all."""
    alone, beside = rounds
    assert len(alone.kept) == len(HONEST) * 3 and TOKEN not in {token for token, _ in beside.kept}
    for key, expected in alone.kept.items():
        assert beside.kept[key] == pytest.approx(expected, rel=LITTLE), key
    assert beside.adapter == alone.adapter


def test_manifest_journal_and_status_name_it_with_the_numbers(rounds):
    alone, beside = rounds
    (excluded,) = beside.manifest["excluded"]
    assert excluded["token"] == TOKEN and len(re.findall(r"\b\d+\.\d+\b", excluded["reason"])) >= 2
    assert alone.manifest["excluded"] == [] and set(alone.refused.values()) == {None}
    assert beside.refused.keys() == {*HONEST, "mallory"}
    assert excluded["reason"] in str(beside.refused["mallory"])
    assert [note for note in beside.notes if TOKEN in note and excluded["reason"] in note]
    assert f"mallory <x>: not in it: {beside.refused['mallory']}" in beside.status
