"""The journal: invitations are used once, rounds go one way, and what is withdrawn is gone."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text

from mos_common.errors import RequestError, StateError, TrustError
from mos_common.identity_scores import Identity
from mos_server.state.concepts import withdraw
from mos_server.state.folder import ServerConfig, State, create_state
from mos_server.state.journal import Journal
from mos_server.state.journal.database import Database
from mos_server.state.journal.embedded import Embedded
from mos_server.state.journal.postgresql import PostgreSQL
from mos_server.state.journal.tables import notes
from mos_server.state.records import CANCELLED, COLLECTING, FAILED, FUSING, PUBLISHED, RoundSettings, Upload

WEEK = 7 * 86400.0
SCORES = Identity(class_word=0.1, single=0.6, fused=0.5, ceiling=0.8)


Place = Path | PostgreSQL


@pytest.fixture
def journal(place: Place) -> Iterator[Journal]:
    journal = Journal(place)
    yield journal
    journal.close()


def upload(round_id: str | None, participant: str, concept: str = "<cat>", digest: str = "d1", **changes) -> Upload:
    fields = {"key": f"key of {participant}", "bytes": 3, "received": time.time(), "refused": None, "identity": None}
    return Upload(id=0, round=round_id, participant=participant, concept=concept, digest=digest, **(fields | changes))


def admit(journal: Journal, *names: str) -> None:
    for name in names:
        token, _ = journal.participants.invite(name, valid_s=WEEK)
        journal.participants.enrol(token, f"key of {name}", b"pem")


def test_a_token_lets_one_key_in(journal: Journal):
    token, _ = journal.participants.invite("alice", valid_s=WEEK)
    assert journal.participants.enrol(token, "k1", b"pem") == "alice"
    assert journal.participants.is_admitted("k1")
    assert not journal.participants.is_admitted("k2")
    with pytest.raises(TrustError, match="used already"):
        journal.participants.enrol(token, "k2", b"pem")


def test_a_key_whose_reply_was_lost_may_enrol_again(journal: Journal):
    token, _ = journal.participants.invite("alice", valid_s=WEEK)
    assert [journal.participants.enrol(token, "k1", b"pem") for _ in range(2)] == ["alice", "alice"]
    assert len(journal.participants.all()) == 1


def test_barring_a_participant_revokes_every_key_and_every_unused_kit_at_once(journal: Journal):
    admit(journal, "alice", "bob")
    second, _ = journal.participants.invite("alice", valid_s=WEEK)
    journal.participants.enrol(second, "another key of alice", b"pem")
    unused, _ = journal.participants.invite("alice", valid_s=WEEK)
    assert journal.participants.bar("alice").keys == 2
    assert [
        journal.participants.is_admitted(key) for key in ("key of alice", "another key of alice", "key of bob")
    ] == [
        False,
        False,
        True,
    ]
    with pytest.raises(TrustError):
        journal.participants.enrol(unused, "a third key", b"pem")


def test_only_an_admitted_participant_can_be_barred(journal: Journal):
    admit(journal, "bob")
    with pytest.raises(RequestError, match="unknown participant 'alice'; known: bob"):
        journal.participants.bar("alice")


def test_expired_and_foreign_tokens_are_told_apart(journal: Journal):
    token, _ = journal.participants.invite("alice", valid_s=-1)
    with pytest.raises(TrustError, match="expired"):
        journal.participants.enrol(token, "k1", b"pem")
    with pytest.raises(TrustError, match="not of this server"):
        journal.participants.enrol("made up", "k1", b"pem")
    assert journal.participants.all() == []


def test_a_token_is_not_kept(tmp_path: Path):
    with closing(Journal(tmp_path / "server.db")) as journal:
        token, _ = journal.participants.invite("alice", valid_s=WEEK)
    assert all(token.encode() not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_key_belongs_to_one_name_and_a_name_may_have_two_keys(journal: Journal):
    admit(journal, "alice")
    token, _ = journal.participants.invite("bob", valid_s=WEEK)
    with pytest.raises(TrustError, match="already belongs to 'alice'"):
        journal.participants.enrol(token, "key of alice", b"pem")
    token, _ = journal.participants.invite("alice", valid_s=WEEK)
    assert journal.participants.enrol(token, "her other key", b"pem") == "alice"


def test_a_revoked_key_stays_out(journal: Journal):
    token, _ = journal.participants.invite("alice", valid_s=WEEK)
    journal.participants.enrol(token, "k1", b"pem")
    journal.participants.revoke("k1")
    assert not journal.participants.is_admitted("k1")
    with pytest.raises(TrustError):
        journal.participants.enrol(token, "k1", b"pem")


def test_rounds_go_one_at_a_time_and_one_way(journal: Journal):
    first = journal.rounds.ask(RoundSettings(wait=2, min_identity=0.3))
    assert (first.id, first.unfinished, first.settings.wait) == ("round-001", True, 2)
    with pytest.raises(RequestError, match="round-001 is asked"):
        journal.rounds.ask(RoundSettings())
    for status in (COLLECTING, FUSING, CANCELLED, PUBLISHED, FAILED):
        journal.rounds.advance(first.id, status)
    assert journal.rounds.get(first.id).status == CANCELLED
    assert journal.rounds.latest_published() is None
    assert journal.rounds.ask(RoundSettings()).id == "round-002"


@pytest.mark.parametrize("settings", [{"wait": 0}, {"deadline_s": 0}, {"min_identity": 2.0}, {"flag_loss": -0.1}])
def test_settings_out_of_range_are_refused(settings: dict):
    with pytest.raises(RequestError, match="--"):
        RoundSettings(**settings)


def test_a_participant_uses_a_name_once_in_a_round_and_two_participants_may_share_one(journal: Journal):
    journal.uploads.add(upload("round-001", "alice"))
    journal.uploads.add(upload("round-001", "bob"))
    journal.uploads.add(upload("round-002", "alice"))
    with pytest.raises(RequestError, match="alice already has a concept <cat> in round-001"):
        journal.uploads.add(upload("round-001", "alice", digest="d2"))
    assert [each.token for each in journal.uploads.admitted("round-001")] == ["<alice/cat>", "<bob/cat>"]


def test_a_refused_upload_is_remembered_but_not_fused(journal: Journal):
    journal.uploads.add(upload("round-001", "alice", refused="NaN in unet"))
    assert journal.uploads.admitted("round-001") == []
    assert [each.refused for each in journal.uploads.of("round-001")] == ["NaN in unet"]


def test_late_uploads_are_for_the_next_round_the_newest_of_a_name_counts(journal: Journal):
    admit(journal, "alice", "bob")
    for digest in ("old", "new"):
        journal.uploads.add(upload(None, "alice", digest=digest))
    journal.uploads.add(upload(None, "bob", digest="gone"))
    journal.participants.revoke("key of bob")
    assert [each.digest for each in journal.uploads.adopt_late("round-002")] == ["new"]
    assert journal.uploads.adopt_late("round-003") == []


def test_notes_are_read_on_from_where_one_was(journal: Journal):
    journal.notes.add("round-001", "one")
    journal.notes.add("round-001", "two")
    (first, _, _), _ = journal.notes.of("round-001")
    assert [text for _, _, text in journal.notes.of("round-001", first)] == ["two"]


def test_what_was_journalled_survives_the_process(journal: Journal, place: Place):
    admit(journal, "alice")
    journal.rounds.ask(RoundSettings())
    stored = journal.uploads.add(upload("round-001", "alice"))
    journal.uploads.set_identity(stored.id, SCORES)
    other = Journal(place)  # the first was never closed, like one that was killed
    assert other.uploads.admitted("round-001")[0].identity == SCORES
    assert other.rounds.unfinished() == journal.rounds.unfinished()
    other.close()


@pytest.fixture
def state(tmp_path: Path, place: Place) -> State:
    url = place.url if isinstance(place, PostgreSQL) else ""
    return create_state(tmp_path / "state", ServerConfig(base="tiny", base_fingerprint="ab" * 32, journal=url))


def test_withdrawing_erases_the_file_and_what_was_computed_from_it(state: State):
    journal = Journal(state.database)
    for name, digest in (("alice", "a" * 64), ("bob", "b" * 64)):
        state.artefacts.put_concept(digest, b"concept of " + name.encode())
        (state.artefacts.moments / f"{digest}-text.safetensors").write_bytes(b"moments")
        journal.uploads.add(upload("round-001", name, digest=digest))
    with pytest.raises(RequestError, match="choose one of <alice/cat>, <bob/cat>"):
        withdraw(state, journal, "<cat>")
    assert [each.token for each in withdraw(state, journal, "<alice/cat>")] == ["<alice/cat>"]
    assert [path.name[0] for path in state.artefacts.moments.iterdir()] == ["b"]
    assert state.artefacts.concepts() == ["b" * 64]
    assert [each.token for each in journal.uploads.kept()] == ["<bob/cat>"]
    with pytest.raises(RequestError, match="unknown concept <dog>; known: <bob/cat>"):
        withdraw(state, journal, "<dog>")
    journal.close()


def test_contents_that_somebody_else_brought_too_are_kept_for_them(state: State):
    journal = Journal(state.database)
    state.artefacts.put_concept("a" * 64, b"concept")
    for name in ("alice", "bob"):
        journal.uploads.add(upload("round-001", name, digest="a" * 64))
    withdraw(state, journal, "<alice/cat>")
    assert "a" * 64 in state.artefacts.concepts()
    journal.close()


def test_a_journal_that_cannot_be_opened_says_so(tmp_path: Path):
    (tmp_path / "server.db").write_bytes(b"this is not a database, it is a letter" * 100)
    with pytest.raises(StateError, match=r"server\.db cannot be used"):
        Journal(tmp_path / "server.db")


def test_a_journal_is_its_owners_alone(journal: Journal, tmp_path: Path):
    journal.participants.invite("alice", valid_s=WEEK)
    files = list(tmp_path.iterdir())
    embedded = {"server.db", "server.db-wal"} if isinstance(journal._database.place, Embedded) else set()
    assert {path.name for path in files} >= {"audit.jsonl"} | embedded
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_what_is_journalled_is_on_the_disk_and_what_is_erased_is_overwritten(tmp_path: Path):
    """SQLite has these settings for each connection, and each thread has its own."""
    with closing(Database(tmp_path / "server.db")) as database:

        def settings() -> dict[str, int | str]:
            names = ("journal_mode", "synchronous", "secure_delete")
            return {name: next(iter(database.rows(text(f"PRAGMA {name}"))[0].values())) for name in names}

        with database.writing(), ThreadPoolExecutor(1) as pool:
            assert pool.submit(settings).result() == settings()
        assert settings() == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}


def test_a_call_is_journalled_whole_or_not_at_all(place: Place):
    """The second statement of a transaction fails: the first has not happened, for nobody."""
    with closing(Database(place)) as database:
        with pytest.raises(ZeroDivisionError), database.writing() as db:
            db.execute(insert(notes).values(round="round-001", at=0.0, text="begun"))
            assert len(database.rows(select(notes))) == 1
            _ = 1 / 0
        assert database.rows(select(notes)) == []


def test_a_refused_statement_does_not_end_the_transaction_around_it(journal: Journal):
    with journal.decision():
        journal.uploads.add(upload("round-001", "alice"))
        with pytest.raises(RequestError, match="already has a concept"):
            journal.uploads.add(upload("round-001", "alice", digest="d2"))
        journal.notes.add("round-001", "going on")
    assert [each.digest for each in journal.uploads.of("round-001")] == ["d1"]
    assert len(journal.notes.of("round-001")) == 1


def test_a_text_of_strangers_may_have_any_character(journal: Journal):
    for character in map(chr, [*range(32), 0x7F, 0xFFFF, 0x10FFFF]):
        journal.notes.add("round-001", f"<{character}>")
        journal.uploads.add(upload("round-001", "alice", refused=f"'{character}' %s %(a)s :b"))
    journal.rounds.ask(RoundSettings(fusion={"settings": {"contexts": ["V\0"]}}))
    texts = [text for _, _, text in journal.notes.of("round-001")]
    assert len(texts) == 35
    assert all(text in (f"<{chr(i)}>", "<\N{REPLACEMENT CHARACTER}>") for i, text in enumerate(texts[:32]))
    assert journal.rounds.get("round-001").settings.fusion["settings"]["contexts"] == ["V\0"]
    journal.audit.check()


def test_threads_share_a_journal(journal: Journal):
    def journalled(number: int) -> int:
        journal.rounds.set_activity("round-001", "key of alice", "tuning", attempts=1)
        journal.notes.add("round-001", str(number))
        return len(journal.notes.of("round-001"))

    admit(journal, "alice")
    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(journalled, range(40))) == 40
    assert sorted(int(text) for _, _, text in journal.notes.of("round-001")) == list(range(40))
    assert [member.attempts for member in journal.rounds.members("round-001")] == [40]


def test_a_missing_folder_is_reported(tmp_path: Path, place: Place):
    missing = tmp_path / "no such folder"
    moved = replace(place, folder=missing) if isinstance(place, PostgreSQL) else missing / "server.db"
    with pytest.raises(StateError, match=r"cannot be used.*Nothing that was journalled before is lost"):
        Journal(moved)


def test_what_is_forgotten_is_in_no_file_of_the_journal(journal: Journal, tmp_path: Path):
    """SQLite's file is searched; PostgreSQL says that the table has no dead row left."""
    admit(journal, "zacharias")
    journal.forget("zacharias", ["key of zacharias"], lambda text: False, lambda text: text, lambda value: value)
    journal.compact()
    if isinstance(place := journal._database.place, PostgreSQL):
        rows = journal._database.rows(text("SELECT pg_relation_size('participants') AS bytes"))
        assert rows[0]["bytes"] == 0
        assert place.url
    else:
        assert all(b"zacharias" not in path.read_bytes() for path in tmp_path.iterdir())
