"""A folder that exists proves nothing: what is published is what the journal says."""

from __future__ import annotations

import json
import shutil

import pytest

from mos_common.errors import StateError
from mos_common.fused_model import read_fused
from mos_common.signing import verify_model
from mos_server.round.engine import RoundCancelledError
from mos_server.state.concepts import withdraw
from mos_server.state.published import candidate_to_score, published_model
from mos_server.state.records import CANCELLED, PUBLISHED, SCORING
from mos_server.state.recovery import tidy


@pytest.fixture
def members(federation) -> dict:
    return {name: federation.machine(name) for name in ("alice", "bob", "carol")}


@pytest.fixture
def signed(federation, members):
    """Three concepts; the round was killed after the model's rename, before the journal had it."""
    with federation.killed_at(status=PUBLISHED):
        federation.run(*members.values(), wait=3)
    verify_model(federation.state.artefacts.model("round-001"), federation.state.pki.signing_key_pem())
    assert federation.status("round-001") == SCORING
    return federation


def go_on(federation, members, network) -> None:
    federation.go_on("round-001", network(*members.values()))


def served(federation, round_id: str = "round-001") -> list[str]:
    folder = published_model(federation.state, federation.journal, round_id)
    return sorted(concept.token for concept in read_fused(folder).manifest.concepts)


def test_what_is_signed_and_not_journalled_is_not_handed_out(signed):
    with pytest.raises(StateError, match="round-001 is scoring"):
        served(signed)


@pytest.mark.parametrize("gone", [["bob"], ["alice", "carol"]], ids=["one", "two"])
def test_a_concept_withdrawn_between_rename_and_journal_is_not_published(signed, members, network, gone):
    for name in gone:
        withdraw(signed.state, signed.journal, f"<{name}/{name}s-cat>")
    go_on(signed, members, network)
    rest = [f"<{name}/{name}s-cat>" for name in members if name not in gone]
    assert served(signed) == rest
    assert signed.status("round-001") == PUBLISHED
    assert [f.name for f in signed.state.artefacts.model("round-001").parent.iterdir()] == ["round-001"]


def test_a_round_cancelled_between_rename_and_journal_has_no_model(signed, members, network):
    signed.journal.rounds.cancel()
    tidy(signed.state, signed.journal)
    assert not signed.state.artefacts.model("round-001").exists()
    assert signed.status("round-001") == CANCELLED


def interfering(federation, what):
    """Do something when the model is in its place and the decision is about to be made."""
    real = federation.journal.decision

    def decision():
        if federation.state.artefacts.model("round-001").exists():
            federation.journal.decision = real
            what()
        return real()

    federation.journal.decision = decision


def test_cancelling_while_it_publishes_leaves_no_model(federation, members):
    interfering(federation, federation.journal.rounds.cancel)
    with pytest.raises(RoundCancelledError):
        federation.run(*members.values(), wait=3)
    assert federation.status("round-001") == CANCELLED
    assert list((federation.state.path / "models").iterdir()) == []


def test_withdrawing_while_it_publishes_keeps_the_concept_out(federation, members):
    interfering(federation, lambda: withdraw(federation.state, federation.journal, "<bob/bobs-cat>"))
    federation.run(*members.values(), wait=3)
    assert served(federation) == ["<alice/alices-cat>", "<carol/carols-cat>"]


def test_withdrawing_while_it_is_scored_ends_the_scoring_and_the_candidate_is_not_handed_out(federation, members):
    """Carol's machine never answers, so that only the withdrawal can end the scoring."""
    seen = []

    def late():
        withdraw(federation.state, federation.journal, "<bob/bobs-cat>")
        with pytest.raises(StateError, match="will be fused again"):
            candidate_to_score(federation.state, federation.journal, "round-001")
        seen.append(True)

    silent = [lambda: late() if not seen else None]
    members["carol"].scores = silent
    federation.run(*members.values(), wait=3, scoring_s=5.0)
    assert seen
    assert served(federation) == ["<alice/alices-cat>", "<carol/carols-cat>"]


def partial(folder):
    (folder / "adapter.safetensors").unlink()


def another(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "round": "round-007"}))


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("spoil", [partial, another, empty])
def test_a_foreign_or_partial_folder_in_a_model_s_place_is_set_aside(signed, members, network, spoil):
    spoil(signed.state.artefacts.model("round-001"))
    go_on(signed, members, network)
    assert len(served(signed)) == 3
    verify_model(signed.state.artefacts.model("round-001"), signed.state.pki.signing_key_pem())
    assert signed.state.artefacts.model("round-001-aside-1").is_dir()
    assert any("is not this round's model: it is round-001-aside-1 now" in note for note in signed.notes("round-001"))


@pytest.mark.parametrize("file", ["adapter.safetensors", "manifest.json"])
def test_a_candidate_with_a_damaged_file_is_fused_again(federation, members, network, file):
    with federation.killed_at(note="<alice/alices-cat> identity"):
        federation.run(*members.values(), wait=3)
    damaged = federation.state.artefacts.candidate("round-001") / file
    damaged.write_bytes(damaged.read_bytes()[:-100])
    go_on(federation, members, network)
    assert len(served(federation)) == 3
    assert len([note for note in federation.notes("round-001") if note.startswith("fusing ")]) == 2


def test_a_copy_of_a_model_under_another_round_s_name_is_not_handed_out(federation, members):
    federation.run(*members.values(), wait=3)
    other = federation.run(*members.values(), wait=3, min_identity=0.1)
    models = federation.state.artefacts
    shutil.rmtree(models.model(other))
    shutil.copytree(models.model("round-001"), models.model(other))
    with pytest.raises(StateError, match="not the model that round-002 published"):
        served(federation, other)
    assert len(served(federation)) == 3


@pytest.mark.parametrize("change", ["concepts", "settings", "round"])
def test_a_model_whose_manifest_was_exchanged_is_not_handed_out(federation, members, change):
    federation.run(*members.values(), wait=3)
    file = federation.state.artefacts.model("round-001") / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest[change] = {"concepts": manifest["concepts"][:2], "settings": {}, "round": "round-002"}[change]
    file.write_text(json.dumps(manifest))
    with pytest.raises(StateError, match="not the model that round-001 published"):
        served(federation)


def test_a_kept_concept_that_was_exchanged_is_not_fused(federation, members, network):
    """The file of one concept under the name of another: the round waits for the operator."""
    with federation.killed_at(note="fusing"):
        federation.run(*members.values(), wait=3)
    first, second, _ = federation.admitted("round-001")
    shutil.copy(
        federation.state.artefacts.concept_file(second.digest), federation.state.artefacts.concept_file(first.digest)
    )
    with pytest.raises(StateError, match=f"is not the concept that was admitted as {first.token}"):
        go_on(federation, members, network)
    federation.state.artefacts.put_concept(first.digest, members["alice"].concepts[0])
    go_on(federation, members, network)
    assert len(served(federation)) == 3


def test_tidying_erases_what_was_withdrawn_and_never_journalled_and_nothing_else(federation, members):
    federation.run(*members.values(), wait=3)
    bob = next(upload for upload in federation.admitted("round-001") if upload.participant == "bob")
    federation.journal.uploads.withdraw(bob.token)  # killed here: the file is not erased yet
    federation.state.artefacts.put_concept("ab" * 32, b"spooled, and killed before it was journalled")
    kept = {upload.digest for upload in federation.admitted("round-001")}
    tidy(federation.state, federation.journal)
    assert set(federation.state.artefacts.concepts()) == kept
    assert not list(federation.state.artefacts.moments.rglob(f"*{bob.digest}*"))
    assert len(served(federation)) == 3
