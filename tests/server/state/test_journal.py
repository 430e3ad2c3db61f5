"""The journal: invitations are used once, rounds go one way, and what is withdrawn is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mos_common.errors import RequestError, StateError, TrustError
from mos_common.identity_scores import Identity
from mos_server.state.concepts import spool, spool_path, withdraw
from mos_server.state.folder import ServerConfig, State, create_state
from mos_server.state.journal import Store
from mos_server.state.records import CANCELLED, COLLECTING, FAILED, FUSING, PUBLISHED, RoundSettings, Upload

WEEK = 7 * 86400.0
SCORES = Identity(class_word=0.1, single=0.6, fused=0.5, ceiling=0.8)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "server.db")
    yield store
    store.close()


def upload(round_id: str | None, participant: str, concept: str = "<cat>", digest: str = "d1", **changes) -> Upload:
    fields = {"key": f"key of {participant}", "bytes": 3, "received": time.time(), "refused": None, "identity": None}
    return Upload(id=0, round=round_id, participant=participant, concept=concept, digest=digest, **(fields | changes))


def admit(store: Store, *names: str) -> None:
    for name in names:
        token, _ = store.invite(name, valid_s=WEEK)
        store.enrol(token, f"key of {name}", b"pem")


def test_a_token_lets_one_key_in(store: Store):
    token, _ = store.invite("alice", valid_s=WEEK)
    assert store.enrol(token, "k1", b"pem") == "alice"
    assert store.is_admitted("k1")
    assert not store.is_admitted("k2")
    with pytest.raises(TrustError, match="used already"):
        store.enrol(token, "k2", b"pem")


def test_a_key_whose_reply_was_lost_may_enrol_again(store: Store):
    token, _ = store.invite("alice", valid_s=WEEK)
    assert [store.enrol(token, "k1", b"pem") for _ in range(2)] == ["alice", "alice"]
    assert len(store.participants()) == 1


def test_who_is_barred_is_out_at_once_with_every_key_and_every_unused_kit(store: Store):
    admit(store, "alice", "bob")
    second, _ = store.invite("alice", valid_s=WEEK)
    store.enrol(second, "another key of alice", b"pem")
    unused, _ = store.invite("alice", valid_s=WEEK)
    assert store.bar("alice") == 2
    assert [store.is_admitted(key) for key in ("key of alice", "another key of alice", "key of bob")] == [
        False,
        False,
        True,
    ]
    with pytest.raises(TrustError):
        store.enrol(unused, "a third key", b"pem")


def test_only_who_is_in_can_be_barred(store: Store):
    admit(store, "bob")
    with pytest.raises(RequestError, match="there is bob"):
        store.bar("alice")


def test_expired_and_foreign_tokens_are_told_apart(store: Store):
    token, _ = store.invite("alice", valid_s=-1)
    with pytest.raises(TrustError, match="expired"):
        store.enrol(token, "k1", b"pem")
    with pytest.raises(TrustError, match="not of this server"):
        store.enrol("made up", "k1", b"pem")
    assert store.participants() == []


def test_a_token_is_not_kept(store: Store, tmp_path: Path):
    token, _ = store.invite("alice", valid_s=WEEK)
    store.close()
    assert all(token.encode() not in path.read_bytes() for path in tmp_path.iterdir())
    store._connection = Store(tmp_path / "server.db")._connection


def test_a_key_belongs_to_one_name_and_a_name_may_have_two_keys(store: Store):
    admit(store, "alice")
    token, _ = store.invite("bob", valid_s=WEEK)
    with pytest.raises(TrustError, match="belongs to 'alice' already"):
        store.enrol(token, "key of alice", b"pem")
    token, _ = store.invite("alice", valid_s=WEEK)
    assert store.enrol(token, "her other key", b"pem") == "alice"


def test_a_revoked_key_stays_out(store: Store):
    token, _ = store.invite("alice", valid_s=WEEK)
    store.enrol(token, "k1", b"pem")
    store.revoke("k1")
    assert not store.is_admitted("k1")
    with pytest.raises(TrustError):
        store.enrol(token, "k1", b"pem")


def test_rounds_go_one_at_a_time_and_one_way(store: Store):
    first = store.ask_round(RoundSettings(wait=2, min_identity=0.3))
    assert (first.id, first.unfinished, first.settings.wait) == ("round-001", True, 2)
    with pytest.raises(RequestError, match="round-001 is asked"):
        store.ask_round(RoundSettings())
    for status in (COLLECTING, FUSING, CANCELLED, PUBLISHED, FAILED):
        store.advance(first.id, status)
    assert store.round(first.id).status == CANCELLED
    assert store.latest_published() is None
    assert store.ask_round(RoundSettings()).id == "round-002"


@pytest.mark.parametrize("settings", [{"wait": 0}, {"deadline_s": 0}, {"min_identity": 2.0}, {"flag_loss": -0.1}])
def test_nonsense_is_not_a_round(settings: dict):
    with pytest.raises(RequestError, match="--"):
        RoundSettings(**settings)


def test_a_participant_uses_a_name_once_in_a_round_and_two_participants_may_share_one(store: Store):
    store.add_upload(upload("round-001", "alice"))
    store.add_upload(upload("round-001", "bob"))
    store.add_upload(upload("round-002", "alice"))
    with pytest.raises(RequestError, match="alice has a concept <cat> in round-001 already"):
        store.add_upload(upload("round-001", "alice", digest="d2"))
    assert [each.token for each in store.admitted("round-001")] == ["<alice/cat>", "<bob/cat>"]


def test_a_refused_upload_is_remembered_but_not_fused(store: Store):
    store.add_upload(upload("round-001", "alice", refused="NaN in unet"))
    assert store.admitted("round-001") == []
    assert [each.refused for each in store.uploads("round-001")] == ["NaN in unet"]


def test_late_uploads_are_for_the_next_round_the_newest_of_a_name_counts(store: Store):
    admit(store, "alice", "bob")
    for digest in ("old", "new"):
        store.add_upload(upload(None, "alice", digest=digest))
    store.add_upload(upload(None, "bob", digest="gone"))
    store.revoke("key of bob")
    assert [each.digest for each in store.adopt_late_uploads("round-002")] == ["new"]
    assert store.adopt_late_uploads("round-003") == []


def test_notes_are_read_on_from_where_one_was(store: Store):
    store.note("round-001", "one")
    store.note("round-001", "two")
    (first, _, _), _ = store.notes("round-001")
    assert [text for _, _, text in store.notes("round-001", first)] == ["two"]


def test_what_was_journalled_survives_the_process(store: Store, tmp_path: Path):
    admit(store, "alice")
    store.ask_round(RoundSettings())
    stored = store.add_upload(upload("round-001", "alice"))
    store.set_identity(stored.id, SCORES)
    other = Store(tmp_path / "server.db")  # the first was never closed, like one that was killed
    assert other.admitted("round-001")[0].identity == SCORES
    assert other.unfinished_round() == store.unfinished_round()
    other.close()


@pytest.fixture
def state(tmp_path: Path) -> State:
    return create_state(tmp_path / "state", ServerConfig(base="tiny", base_fingerprint="ab" * 32))


def test_withdrawing_erases_the_file_and_what_was_computed_from_it(state: State):
    store = Store(state.database)
    for name, digest in (("alice", "a" * 64), ("bob", "b" * 64)):
        spool(state, digest, b"concept of " + name.encode())
        (state.moments / f"{digest}-text.safetensors").write_bytes(b"moments")
        store.add_upload(upload("round-001", name, digest=digest))
    with pytest.raises(RequestError, match="choose one of <alice/cat>, <bob/cat>"):
        withdraw(state, store, "<cat>")
    assert [each.token for each in withdraw(state, store, "<alice/cat>")] == ["<alice/cat>"]
    assert [path.name[0] for path in (*state.concepts.iterdir(), *state.moments.iterdir())] == ["b", "b"]
    assert [each.token for each in store.concepts()] == ["<bob/cat>"]
    with pytest.raises(RequestError, match="no concept <dog>"):
        withdraw(state, store, "<dog>")
    store.close()


def test_contents_that_somebody_else_brought_too_are_kept_for_them(state: State):
    store = Store(state.database)
    spool(state, "a" * 64, b"concept")
    for name in ("alice", "bob"):
        store.add_upload(upload("round-001", name, digest="a" * 64))
    withdraw(state, store, "<alice/cat>")
    assert spool_path(state, "a" * 64).is_file()
    store.close()


def test_a_journal_that_cannot_be_opened_says_so(tmp_path: Path):
    (tmp_path / "server.db").write_bytes(b"this is not a database, it is a letter" * 100)
    with pytest.raises(StateError, match="cannot be used"):
        Store(tmp_path / "server.db")
