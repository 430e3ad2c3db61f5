"""Kept concepts are fused outside of rounds: any subset, to the bit the same as from scratch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from mos_common.base_model import Base
from mos_common.concept_file import concept_to_bytes, write_concept
from mos_common.errors import FusionError, RequestError, StateError
from mos_common.fused_model import read_fused
from mos_common.node_key import create_node_key, key_digest, public_pem
from mos_server.cli.main import app
from mos_server.fusion import statistics
from mos_server.fusion.settings import FusionSettings
from mos_server.models import fuse_files as fuse_command
from mos_server.models.fuse_files import fuse_files, fuse_state
from mos_server.round import candidate
from mos_server.round.intake import take_upload
from mos_server.state.concepts import kept_uploads
from mos_server.state.folder import ServerConfig, State, create_state
from mos_server.state.journal import Journal
from mos_server.state.records import PUBLISHED, RoundSettings, Upload

FEW = {"settings": {"contexts": ["V"], "ordinary": [""], "steps": 1, "guidance": 1.0}}
FILES = ("adapter.safetensors", "embeddings.safetensors")


@dataclass
class Federation:
    """A state folder whose round-001 has a cat each of alice, bob and carol, and alice's dog."""

    state: State
    base: Base
    make_concept: Callable
    round: str

    def journal(self) -> closing[Journal]:
        return closing(Journal(self.state.database))

    def upload(self, journal: Journal, name: str, concept: str, seed: int, round_id: str | None) -> Upload:
        key = create_node_key(self.state.path / f"{name}-{concept[1:-1]}-{seed}")
        token, _ = journal.participants.invite(name, valid_s=60)
        journal.participants.enrol(token, key_digest(public_pem(key)), public_pem(key))
        someone = next(each for each in journal.participants.all() if each.key == key_digest(public_pem(key)))
        data = concept_to_bytes(self.make_concept(self.base, concept, seed=seed, strength=0.02))
        taken = take_upload(self.state, journal, self.base, someone, data, round_id)
        assert taken.refused is None
        return taken


@pytest.fixture
def federation(tmp_path: Path, tiny: Base, make_concept: Callable, monkeypatch) -> Iterator[Federation]:
    monkeypatch.setattr(fuse_command, "load_base", lambda *_, **__: tiny)
    state = create_state(tmp_path / "state", ServerConfig(base="tiny", base_fingerprint=tiny.fingerprint, fusion=FEW))
    made = Federation(state, tiny, make_concept, "")
    with made.journal() as journal:
        made.round = journal.rounds.ask(RoundSettings(fusion=FEW)).id
        for seed, (name, concept) in enumerate(
            [("alice", "<cat>"), ("bob", "<cat>"), ("carol", "<cat>"), ("alice", "<dog>")]
        ):
            made.upload(journal, name, concept, seed, made.round)
    return made


def tokens(folder: Path) -> list[str]:
    return sorted(concept.token for concept in read_fused(folder).manifest.concepts)


def assert_same_model(one: Path, other: Path) -> None:
    for file in FILES:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def from_scratch(federation: Federation, chosen: list[tuple[str, str, int]], out: Path) -> None:
    """The other road: an empty state of the same participants with these concepts alone."""
    state = create_state(
        out.with_suffix(".state"), ServerConfig(base="tiny", base_fingerprint=federation.base.fingerprint, fusion=FEW)
    )
    other = Federation(state, federation.base, federation.make_concept, "")
    with other.journal() as journal:
        round_id = journal.rounds.ask(RoundSettings(fusion=FEW)).id
        for name, concept, seed in chosen:
            other.upload(journal, name, concept, seed, round_id)
    fuse_state(state.path, out)


@pytest.mark.parametrize("only", ["alice/dog,bob/cat", "<alice/dog>,<bob/cat>", "dog, bob/cat"])
def test_any_subset_on_demand(federation, tmp_path, only):
    """Also after all were fused: the chosen ones' statistics add up to what they alone give."""
    fuse_state(federation.state.path, tmp_path / "all")
    assert len(tokens(tmp_path / "all")) == 4
    fuse_state(federation.state.path, tmp_path / "two", only=only.split(","))
    from_scratch(federation, [("bob", "<cat>", 1), ("alice", "<dog>", 3)], tmp_path / "scratch")
    assert_same_model(tmp_path / "two", tmp_path / "scratch")


@pytest.mark.parametrize(
    ("only", "problem"),
    [("cat", "could be any of <alice/cat>, <bob/cat>"), ("tree", "unknown concept tree; known: <alice")],
)
def test_a_choice_that_is_not_clear_lists_what_there_is(federation, tmp_path, only, problem):
    with pytest.raises(RequestError, match=problem):
        fuse_state(federation.state.path, tmp_path / "out", only=[only])


def test_the_newest_of_a_name_counts_unless_a_round_is_named(federation, tmp_path):
    with federation.journal() as journal:
        journal.rounds.advance(federation.round, PUBLISHED)
        newer = federation.upload(journal, "bob", "<cat>", 9, journal.rounds.ask(RoundSettings(fusion=FEW)).id)
        newest = {upload.token: upload.digest for upload in kept_uploads(journal)}
        before = {upload.token: upload.digest for upload in kept_uploads(journal, federation.round)}
    assert newest["<bob/cat>"] == newer.digest != before["<bob/cat>"]
    assert newest.keys() == before.keys()


def test_a_withdrawn_concept_has_never_been_there(federation, tmp_path, monkeypatch, capsys):
    """File and statistics are erased; the model of the rest is to the bit the one without it."""
    fuse_state(federation.state.path, tmp_path / "all")
    with federation.journal() as journal:
        journal.rounds.advance(federation.round, PUBLISHED)
        digest = next(upload.digest for upload in journal.uploads.kept() if upload.token == "<bob/cat>")
    assert list(federation.state.path.rglob(f"*{digest}*"))
    out = tmp_path / "rest"
    app(
        ["concepts", str(federation.state.path), "withdraw", "<bob/cat>", "--out", str(out)],
        standalone_mode=False,
    )
    assert "as if <bob/cat> had never been there" in capsys.readouterr().out
    assert not list(federation.state.path.rglob(f"*{digest}*"))
    assert tokens(out) == ["<alice/cat>", "<alice/dog>", "<carol/cat>"]
    from_scratch(
        federation, [("alice", "<cat>", 0), ("carol", "<cat>", 2), ("alice", "<dog>", 3)], tmp_path / "scratch"
    )
    assert_same_model(out, tmp_path / "scratch")


def test_withdrawing_needs_a_free_place_before_anything_is_erased(federation, tmp_path):
    with pytest.raises(RequestError, match="must not exist"):
        app(
            ["concepts", str(federation.state.path), "withdraw", "<bob/cat>", "--out", str(tmp_path)],
            standalone_mode=False,
        )
    with federation.journal() as journal:
        assert len(journal.uploads.kept()) == 4


def test_the_command_fuses_a_state(federation, tmp_path, capsys):
    words = ["fuse", "--state", str(federation.state.path), "--only", "dog,bob/cat", "--weight", "<bob/cat>=2"]
    app([*words, "--out", str(tmp_path / "out")], standalone_mode=False)
    manifest = read_fused(tmp_path / "out").manifest
    assert {concept.token: concept.weight for concept in manifest.concepts} == {"<alice/dog>": 1.0, "<bob/cat>": 2.0}
    assert "drift of ordinary prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--state", "STATE", "file.safetensors"],
        ["--state", "STATE", "--base", "tiny"],
        ["--only", "cat"],
        [],
        ["file.safetensors", "--round", "round-001"],
        ["file.safetensors", "--weight", "heavy"],
    ],
)
def test_flags_that_contradict_each_other_are_refused(federation, tmp_path, words):
    words = [str(federation.state.path) if word == "STATE" else word for word in words]
    with pytest.raises(RequestError):
        app(["fuse", *words, "--out", str(tmp_path / "out")], standalone_mode=False)


def test_no_state_and_an_out_that_exists_are_errors(federation, tmp_path):
    with pytest.raises(StateError):
        fuse_state(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(StateError, match="already exists"):
        fuse_state(federation.state.path, tmp_path)


def test_a_concept_that_cannot_be_fused_is_refused_and_the_round_goes_on(federation, tmp_path, monkeypatch):
    """Bob's fails in the UNet: it is refused with the layer's name, and the others are fused."""
    real = statistics.record_group
    with federation.journal() as journal:
        bobs = next(upload for upload in journal.uploads.kept() if upload.token == "<bob/cat>")
        seed = int(bobs.digest[:12], 16)

        def breaking(group, base, layers, prompts, seeds, vocabulary, settings, sink):
            if seeds[0] == seed and group.name == "SPATIAL":
                raise FusionError("the activations of unet.mid_block are not finite")
            return real(group, base, layers, prompts, seeds, vocabulary, settings, sink)

        monkeypatch.setattr(statistics, "record_group", breaking)
        lines: list[str] = []
        folder = candidate.fuse_candidate(federation.state, journal, federation.round, federation.base, lines.append)
        uploads = journal.uploads.of(federation.round)
        assert candidate.is_current(folder, journal.uploads.admitted(federation.round), FEW, federation.round)
    assert tokens(folder) == ["<alice/cat>", "<alice/dog>", "<carol/cat>"]
    refused = {upload.token: upload.refused for upload in uploads if upload.refused}
    assert list(refused) == ["<bob/cat>"]
    assert "unet.mid_block" in refused["<bob/cat>"]
    assert any("<bob/cat> is left out" in line for line in lines)
    assert json.loads((folder / "manifest.json").read_bytes())["excluded"][0]["token"] == "<bob/cat>"


def test_files_and_state_give_the_same_model(federation, tmp_path):
    """But for the names: in a file nobody says whose concept it is."""
    concept = federation.make_concept(federation.base, "<dog>", seed=3, strength=0.02)
    write_concept(concept, tmp_path / "dog.safetensors")
    fuse_files([tmp_path / "dog.safetensors"], tmp_path / "file", settings=FusionSettings.from_json(FEW))
    fuse_state(federation.state.path, tmp_path / "state-model", only=["dog"])
    assert (tmp_path / "file" / FILES[0]).read_bytes() == (tmp_path / "state-model" / FILES[0]).read_bytes()
