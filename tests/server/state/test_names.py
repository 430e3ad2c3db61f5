"""A name is the set of keys that were invited under it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mos_common.errors import RequestError, TrustError
from mos_server.state.journal import Journal
from mos_server.state.journal.participants import Barred
from mos_server.state.journal.postgresql import PostgreSQL
from mos_server.state.people import describe_people

WEEK = 7 * 86400.0


@pytest.fixture
def journal(place: Path | PostgreSQL) -> Iterator[Journal]:
    with closing(Journal(place)) as opened:
        yield opened


def admit(journal: Journal, name: str, *keys: str, again: bool = False) -> None:
    for key in keys:
        token, _ = journal.participants.invite(name, valid_s=WEEK, again=again)
        journal.participants.enrol(token, key, b"pem")


KEYS = ("a1" * 32, "a1" * 4 + "b2" * 28, "c3" * 32)


def admitted(journal: Journal) -> list[bool]:
    return [journal.participants.is_admitted(key) for key in KEYS]


def test_one_key_is_barred_and_the_others_stay(journal: Journal):
    admit(journal, "alice", *KEYS)
    assert journal.participants.bar("alice", KEYS[2][:8]) == Barred(1, 2, 0)
    assert admitted(journal) == [True, True, False]
    assert journal.participants.barred_since("alice") is None


@pytest.mark.parametrize(
    ("beginning", "said"),
    [("a1" * 4, "names 2 keys of alice"), ("ff" * 4, "names no keys of alice"), ("c3c3", "the first 8 characters")],
)
def test_a_key_must_be_named_so_that_it_is_one(journal: Journal, beginning: str, said: str):
    admit(journal, "alice", *KEYS)
    with pytest.raises(RequestError, match=said):
        journal.participants.bar("alice", beginning)
    assert admitted(journal) == [True, True, True]


def test_another_names_key_is_not_barred_with_it(journal: Journal):
    admit(journal, "alice", KEYS[0])
    admit(journal, "bob", KEYS[2])
    with pytest.raises(RequestError, match="names no keys of alice"):
        journal.participants.bar("alice", KEYS[2])


def test_a_name_that_lost_its_last_key_is_barred_and_invited_again_on_purpose_alone(journal: Journal):
    admit(journal, "alice", KEYS[0])
    journal.participants.bar("alice", KEYS[0])
    with pytest.raises(RequestError, match=r"alice was barred on .*say --again"):
        journal.participants.invite("alice", valid_s=WEEK)
    admit(journal, "alice", KEYS[2], again=True)
    assert admitted(journal) == [False, False, True]
    admit(journal, "alice", KEYS[1])  # it is back


def test_again_is_for_barred_names(journal: Journal):
    with pytest.raises(RequestError, match="alice is not barred"):
        journal.participants.invite("alice", valid_s=WEEK, again=True)


def test_a_barred_key_comes_back_with_no_kit(journal: Journal):
    used, _ = journal.participants.invite("alice", valid_s=WEEK)
    journal.participants.enrol(used, KEYS[0], b"pem")
    journal.participants.bar("alice")
    fresh, _ = journal.participants.invite("alice", valid_s=WEEK, again=True)
    for token in (used, fresh):
        with pytest.raises(TrustError, match="was barred by the operator"):
            journal.participants.enrol(token, KEYS[0], b"pem")


def test_who_was_only_invited_can_be_barred(journal: Journal):
    token, _ = journal.participants.invite("alice", valid_s=WEEK)
    assert journal.participants.bar("alice") == Barred(0, 0, 1)
    with pytest.raises(TrustError):
        journal.participants.enrol(token, KEYS[0], b"pem")


def test_barring_twice_says_so(journal: Journal):
    admit(journal, "alice", KEYS[0])
    journal.participants.bar("alice")
    with pytest.raises(RequestError, match="alice is barred already"):
        journal.participants.bar("alice")


def test_status_lists_the_keys_of_each_name_with_their_release(journal: Journal):
    admit(journal, "bob", KEYS[2])
    admit(journal, "alice", *KEYS[:2])
    journal.participants.saw(KEYS[0], "0.2.0")
    journal.participants.bar("alice", KEYS[1])
    first, alice, one, other, bob = list(describe_people(journal))
    assert first == "participants: 2, with 3 keys"
    assert alice == "  alice: 2 keys"
    assert one.startswith(f"    key {KEYS[0][:12]}, enrolled ")
    assert one.endswith(", release 0.2.0")
    assert other.endswith(", never here since, barred")
    assert bob.startswith(f"  bob: key {KEYS[2][:12]}, enrolled ")
