"""A person who is forgotten is in no byte of the state folder but those that are documented."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mos_common.errors import MosError, RequestError, StateError
from mos_common.files import canonical_json
from mos_common.identity_scores import Identity
from mos_common.node_key import create_node_key, key_digest, public_pem
from mos_server.cli.main import app
from mos_server.state.folder import ServerConfig, State, create_state, locked
from mos_server.state.journal import Journal
from mos_server.state.journal.postgresql import PostgreSQL
from mos_server.state.records import PUBLISHED, RoundSettings, Upload
from mos_server.upkeep import forget as forgetting
from mos_server.upkeep.traces import Traces

ANNE, BEN, SAME = "a1" * 32, "b2" * 32, "c3" * 32
WEIGHTS = {"weights": {"<annemarie/my-face>": 2.0, "<ben/dog>": 3.0}}


@pytest.fixture
def state(tmp_path: Path, place: Path | PostgreSQL) -> State:
    """Annemarie and Ben in two rounds, with everything that a server writes about them."""
    url = place.url if isinstance(place, PostgreSQL) else ""
    config = ServerConfig(base="tiny", base_fingerprint="ab" * 32, fusion=WEIGHTS, journal=url)
    made = create_state(tmp_path / "state", config)
    with closing(Journal(made.database)) as journal:
        keys = {name: enrolled(journal, name, tmp_path) for name in ("annemarie", "ben")}
        journal.participants.invite("annemarie", valid_s=60)
        with pytest.raises(RequestError):
            journal.participants.bar("nobody")
        first = journal.rounds.ask(RoundSettings(fusion=WEIGHTS)).id
        for name, concept, digest in (
            ("annemarie", "<my-face>", ANNE),
            ("annemarie", "<cup>", SAME),
            ("ben", "<dog>", BEN),
        ):
            added = journal.uploads.add(row(first, keys[name], name, concept, digest))
            journal.uploads.set_identity(added.id, Identity(0.1, 0.2, 0.3, 0.4))
            journal.rounds.set_activity(first, keys[name], "uploaded", attempts=1)
            journal.notes.add(first, f"<{name}/{concept[1:]} arrived, 2.30 MB")
        journal.uploads.add(row(None, keys["ben"], "ben", "<cup>", SAME))
        refused = f"<annemarie/my-face> has the same contents as {ANNE[:12]}"
        journal.uploads.add(row(first, keys["ben"], "ben", "?", "", refused=refused))
        journal.rounds.advance(first, PUBLISHED)
        second = journal.rounds.ask(RoundSettings()).id
        journal.rounds.advance(second, "held back", "<annemarie/my-face> has identity 0.100")
    for digest in (ANNE, BEN, SAME):
        write(made.artefacts.concept_file(digest), b"concept")
        write(made.artefacts.moments / f"{digest}-{'0' * 64}.safetensors", b"moments")
        write(made.path / "sheets" / f"{digest}.png", b"a contact sheet")
    for folder in (made.artefacts.model(first), made.artefacts.candidate(second)):
        concepts = [{"token": "<annemarie/my-face>", "digest": ANNE}, {"token": "<ben/dog>", "digest": BEN}]
        write(folder / "manifest.json", canonical_json({"concepts": concepts}))
    write(made.artefacts.model(first) / "model.sig", b"signed")
    write(made.flower / "superlink.db", f"{keys['annemarie']} sent {ANNE}".encode())
    write(made.log / "serve.log", f"annemarie enrolled with key {keys['annemarie'][:12]}\nben is here\n".encode())
    write(made.log / "round-001.log", b"asked annemarie\n<annemarie/my-face> identity: 0.1\n\xff\n")
    return made


def row(round_id: str | None, key: str, name: str, concept: str, digest: str, refused: str | None = None) -> Upload:
    return Upload(0, round_id, key, name, concept, digest, 7, 1.0, refused, None)


def enrolled(journal: Journal, name: str, folder: Path) -> str:
    pem = public_pem(create_node_key(folder / f"key-{name}"))
    token, _ = journal.participants.invite(name, valid_s=60)
    journal.participants.enrol(token, key_digest(pem), pem)
    return key_digest(pem)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def forget(state: State, *words: str, error: type[MosError] | None = None) -> str:
    done = CliRunner().invoke(app, ["forget", str(state.path), *words])
    expected = type(None) if error is None else error
    assert isinstance(done.exception, expected), (done.output, done.exception)
    return done.output


def key_of(state: State, name: str) -> str:
    with closing(Journal(state.database)) as journal:
        return next(each.key for each in journal.participants.all() if each.name == name)


def naming(state: State, *secrets: str) -> set[str]:
    """The files whose name or bytes have one of the secrets, as raw bytes, free pages included."""
    return {
        path.relative_to(state.path).as_posix()
        for path in state.path.rglob("*")
        if path.is_file() and any(secret.encode() in path.read_bytes() or secret in path.name for secret in secrets)
    }


def test_only_the_published_model_still_names_a_forgotten_person(state):
    secrets = ("annemarie", "my-face", key_of(state, "annemarie")[:12], ANNE[:12])
    assert len(naming(state, *secrets)) > 8
    said = forget(state, "annemarie")
    assert naming(state, *secrets) == {"models/round-001/manifest.json"}
    assert "still in round-001" in said


def test_with_models_nothing_names_them(state):
    said = forget(state, "annemarie", "--models")
    assert naming(state, "annemarie", "my-face", ANNE[:12]) == set()
    assert "models/round-001: erased" in said


def test_the_others_keep_what_is_theirs(state):
    forget(state, "annemarie", "--models")
    with closing(Journal(state.database)) as journal:
        assert {upload.digest for upload in journal.uploads.kept()} == {BEN, SAME}
        assert [each.name for each in journal.participants.all()] == ["ben"]
        assert "<ben/dog> arrived, 2.30 MB" in [text for _, _, text in journal.notes.of("round-001")]
        assert journal.rounds.get("round-001").settings.fusion == {"weights": {"<ben/dog>": 3.0}}
        assert journal.rounds.get("round-002").reason == "(forgotten) has identity 0.100"
    assert State(state.path).config.fusion == {"weights": {"<ben/dog>": 3.0}}
    assert state.artefacts.concept_file(SAME).exists()  # Ben brought the same contents
    assert (state.log / "serve.log").read_text().endswith("\nben is here\n")
    assert (state.log / "round-001.log").read_bytes().endswith(b"\n\xff\n")


def test_the_audit_holds_and_tells_of_somebody(state):
    with closing(Journal(state.database)) as journal:
        told = zip(journal.audit.rows(), journal.audit.entries(), strict=True)
        whose = next(json.loads(row.line)["who"] for row, entry in told if entry.get("who") == "annemarie")
    forget(state, "annemarie")
    with closing(Journal(state.database)) as journal:
        journal.audit.check()
        told = list(journal.audit.entries())
    assert [each["what"] for each in told if each.get("who") == whose][:2] == ["invited", "enrolled"]
    assert told[-1]["what"] == "forgotten"
    assert told[-1]["who"] == whose
    assert "ben" in [each.get("who") for each in told]


def test_forgetting_can_be_interrupted_anywhere_and_said_again(state, monkeypatch):
    for step in ("remove_path", "empty_flower_files", "_blot_logs", "_blot_settings"):
        with monkeypatch.context() as patch:
            patch.setattr(forgetting, step, interrupted)
            with closing(Journal(state.database)) as journal, pytest.raises(KeyboardInterrupt):
                forgetting.forget(state, journal, "annemarie", models=True)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "compact", interrupted)
        with closing(Journal(state.database)) as journal, pytest.raises(KeyboardInterrupt):
            forgetting.forget(state, journal, "annemarie", models=True)
    forget(state, "annemarie", error=RequestError)  # nobody of that name is left
    assert naming(state, "annemarie", "my-face", ANNE[:12]) == set()


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_running_server_is_stopped_first(state):
    with locked(state):
        forget(state, "annemarie", error=StateError)
    assert state.artefacts.concept_file(ANNE).exists()


def test_an_unknown_name_is_told_who_is_known(state):
    assert "annemarie, ben" in str(CliRunner().invoke(app, ["forget", str(state.path), "carol"]).exception)


@pytest.mark.parametrize("name", ["settings", "published", "server", "round-001", "tiny", "weights", "cup"])
def test_a_person_whose_name_is_an_ordinary_word_takes_nothing_of_others_along(state, name):
    """Words of programs, another's concept, the name of a round: none of them is that person."""
    with closing(Journal(state.database)) as journal:
        enrolled(journal, name, state.path.parent)
        before = journal.rounds.all(), journal.uploads.everything()
    before_files = naming(state, "")
    forget(state, name)
    with closing(Journal(state.database)) as journal:
        assert (journal.rounds.all(), journal.uploads.everything()) == before
        journal.audit.check()
    assert before_files - naming(state, "") == {"flower/superlink.db"}
    assert State(state.path).config.fusion == WEIGHTS


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("asked ann", True),
        ("ann: uploaded", True),
        ("<ann/cat> arrived", True),
        ("weight <ann/cat>=2", True),
        ("this kit of 'ann' has expired", True),
        ("asked annemarie", False),
        ("asked joe-ann", False),
        ("<bob/ann> arrived", False),
        ("<ann> is a concept", False),
        (f"{ANNE[:12]}, 2.30 MB", True),
        (f"x{ANNE}", True),
    ],
)
def test_a_mention_is_the_name_as_a_word_or_a_number_of_theirs(text, named):
    traces = Traces("ann", frozenset({BEN}), frozenset(), frozenset({ANNE}))
    assert traces.mentioned_in(text) is named
    assert ("(forgotten)" in traces.blotted(text)) is named


def test_own_changes_are_erased_even_where_the_model_stays(state):
    """Those of others stay, unless their model goes."""
    beside = state.path / "models" / "round-001.own"
    write(beside / "annemarie.my-face" / "manifest.json", b'{"token": "<annemarie/my-face>"}')
    write(beside / "ben.dog" / "manifest.json", b'{"token": "<ben/dog>"}')
    forget(state, "annemarie")
    assert [path.name for path in beside.iterdir()] == ["ben.dog"]
    assert (state.path / "models" / "round-001").is_dir()


def test_with_the_model_go_all_own_changes_beside_it(state):
    write(state.path / "models" / "round-001.own" / "ben.dog" / "manifest.json", b'{"token": "<ben/dog>"}')
    forget(state, "annemarie", "--models")
    assert not (state.path / "models" / "round-001.own").exists()
