"""The state folders of release 0.1.0 are opened, and their unfinished round is finished."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from end_to_end.federation import processes
from mos_bench.demo import free_ports, join_command
from mos_bench.participant import Participant
from mos_common.concept_file import content_digest, read_concept
from mos_common.digests import digest_of_bytes
from mos_common.fused_model import ADAPTER, EMBEDDINGS, read_fused
from mos_common.kit import read_kit
from mos_common.signing import verify_model
from mos_server.state.folder import open_state
from mos_server.state.journal import Journal
from mos_server.state.records import PUBLISHED
from stored import StoredFederation, unpack_0_1_0

Before = dict[Path, bytes]
STEPS = 3  # as they joined with: another number would be another concept, tuned anew
TOKENS = ["<alice/coral>", "<bob/ginger>"]


def never_changed(federation: StoredFederation) -> Before:
    """Return what an upgrade leaves as it is: kits, keys, and models of earlier rounds."""
    kept = ["participants/*/kit.json", "participants/*/state/node_key*", "server/pki/*"]
    models = ["server/models/round-001/*", "participants/*/state/models/round-001/*"]
    files = [path for pattern in (*kept, *models) for path in federation.folder.glob(pattern) if path.is_file()]
    return {path: path.read_bytes() for path in files}


def tuned(federation: StoredFederation) -> dict[str, str]:
    """Return the content digest of each participant's concept file: its header may change."""
    files = federation.folder.glob("participants/*/state/concepts/*.safetensors")
    return {file.parents[2].name: content_digest(read_concept(file)) for file in files}


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[StoredFederation, list[Participant], dict[str, str]]]:
    """The federation with round-002 published and downloaded, and what was tuned before that."""
    federation = unpack_0_1_0(tmp_path_factory.mktemp("stored"))
    federation.move_here(*free_ports(2))
    participants = [
        Participant("alice", "<coral>", "woman", federation.folder / "participants" / "alice"),
        Participant("bob", "<ginger>", "cat", federation.folder / "participants" / "bob"),
    ]
    before, files = tuned(federation), never_changed(federation)
    (federation.folder / "before.json").write_text(
        json.dumps({str(path): digest_of_bytes(data) for path, data in files.items()})
    )
    with processes() as running:
        running.start("server", ["mos-server", "serve", federation.server])
        for someone in participants:
            running.start(someone.name, join_command(someone, STEPS))
        for someone in participants:
            running.wait(someone.name, timeout_s=400, beside=["server"])
        yield federation, participants, before


def test_the_unfinished_round_is_published(finished):
    federation, _, _ = finished
    with closing(Journal(open_state(federation.server).database)) as journal:
        round_ = journal.rounds.get("round-002")
        uploads = journal.uploads.of("round-002")
    assert round_.status == PUBLISHED
    assert round_.ended <= time.time()
    assert sorted(upload.token for upload in uploads) == TOKENS
    assert all(upload.refused is None and upload.identity is not None for upload in uploads)


def test_both_have_its_model_and_still_the_one_before(finished):
    federation, participants, _ = finished
    published = open_state(federation.server).artefacts.model("round-002") / "manifest.json"
    for someone in participants:
        assert sorted(model.name for model in (someone.state / "models").iterdir()) == ["round-001", "round-002"]
        model = someone.state / "models" / "round-002"
        verify_model(model, read_kit(someone.kit).signing_key)
        assert (model / "manifest.json").read_bytes() == published.read_bytes()
    assert sorted(concept.token for concept in read_fused(published.parent).manifest.concepts) == TOKENS


def test_nobody_tuned_again(finished):
    federation, _, before = finished
    assert len(before) == 2
    assert tuned(federation) == before
    assert not list(federation.folder.glob("participants/*/state/tuning"))


def test_the_same_concepts_give_the_same_model_as_in_that_release(finished):
    """Round-001 was fused and signed by 0.1.0, round-002 by today's code."""
    federation, _, _ = finished
    before, now = (federation.server / "models" / name for name in ("round-001", "round-002"))
    for name in (ADAPTER, EMBEDDINGS):
        tensors, expected = load_file(now / name), load_file(before / name)
        assert tensors.keys() == expected.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-5)


def test_nobody_needed_a_new_kit_and_what_was_published_is_as_it_was(finished):
    """The keys by which people and server know each other are those of 0.1.0, and so are models."""
    federation, participants, _ = finished
    before = json.loads((federation.folder / "before.json").read_text())
    now = {str(path): digest_of_bytes(data) for path, data in never_changed(federation).items()}
    assert {path: now.get(path) for path in before} == before
    assert any("node_key" in path for path in before)
    assert sum("models/round-001/manifest.json" in path for path in before) == 1 + len(participants)
    with closing(Journal(open_state(federation.server).database)) as journal:
        assert [used is not None for _, _, used in journal.participants.invitations()] == [True, True]
        assert sorted(each.name for each in journal.participants.all()) == ["alice", "bob"]
        published = journal.audit.entries()
        assert "invited" not in {entry["what"] for entry in published}


def test_what_alice_had_uploaded_was_not_asked_for_again(finished):
    federation, _, _ = finished
    with closing(Journal(open_state(federation.server).database)) as journal:
        arrived = [text for _, _, text in journal.notes.of("round-002") if " arrived, " in text]
    assert [line.split(" ")[0] for line in arrived] == TOKENS
