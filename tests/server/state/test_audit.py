"""Every change of the journal has one line in the audit, and no line can change unseen."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mos_common.errors import StateError, TrustError
from mos_common.identity_scores import Identity
from mos_common.node_key import create_node_key, key_digest, public_pem
from mos_server.state import audit as audit_file
from mos_server.state.journal import Journal
from mos_server.state.records import CANCELLED, FUSING, RoundSettings, Upload
from postgresql import change


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def journal(place):
    with closing(Journal(place)) as opened:
        yield opened


def enrolled(journal: Journal, name: str, folder: Path) -> str:
    pem = public_pem(create_node_key(folder / f"key-{name}"))
    token, _ = journal.participants.invite(name, valid_s=60)
    journal.participants.enrol(token, key_digest(pem), pem)
    return key_digest(pem)


def upload(round_id: str | None, key: str, name: str, digest: str, **changes: object) -> Upload:
    fields = {"concept": "<cat>", "bytes": 7, "received": 1.0, "refused": None, "identity": None} | changes
    return Upload(id=0, round=round_id, key=key, participant=name, digest=digest, **fields)


def told(journal: Journal) -> list[tuple[str, str | None]]:
    return [(entry["what"], entry.get("who")) for entry in journal.audit.entries()]


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_change_of_the_journal_has_its_line(journal, tmp_path):
    alice = enrolled(journal, "alice", tmp_path)
    round_id = journal.rounds.ask(RoundSettings()).id
    cat = journal.uploads.add(upload(round_id, alice, "alice", "ab" * 32))
    journal.uploads.add(upload(round_id, alice, "alice", "", concept="?", refused="not finite"))
    late = journal.uploads.add(upload(None, alice, "alice", "cd" * 32, concept="<dog>"))
    journal.uploads.adopt_late(round_id)
    journal.uploads.set_identity(cat.id, Identity(0.1, 0.2, 0.3, 0.4))
    journal.uploads.refuse(late.id, "it cannot be fused")
    journal.uploads.withdraw("<cat>")
    journal.rounds.advance(round_id, FUSING)
    journal.rounds.advance(round_id, FUSING)  # no change, so no line
    journal.rounds.cancel()
    journal.participants.invite("alice", valid_s=60)
    journal.participants.bar("alice")
    assert told(journal) == [
        ("invited", "alice"),
        ("enrolled", "alice"),
        ("round asked", None),
        ("uploaded", "alice"),
        ("refused", "alice"),
        ("uploaded", "alice"),
        ("taken into round", "alice"),
        ("scored", "alice"),
        ("refused", "alice"),
        ("withdrawn", "alice"),
        (f"round {FUSING}", None),
        (f"round {CANCELLED}", None),
        ("invited", "alice"),
        ("barred", "alice"),
        ("kit void", "alice"),
    ]


def test_a_change_that_is_taken_back_has_no_line(journal, tmp_path):
    before = len(journal.audit.rows())
    with pytest.raises(ZeroDivisionError), journal._database.writing():
        journal.participants.invite("alice", valid_s=60)
        raise ZeroDivisionError
    assert len(journal.audit.rows()) == before


def test_a_change_made_by_another_program_has_its_line_too(journal, tmp_path, place):
    enrolled(journal, "alice", tmp_path)
    change(place, "UPDATE participants SET revoked = 1")
    journal.rounds.ask(RoundSettings())
    assert [what for what, _ in told(journal)][-2:] == ["barred", "round asked"]


def test_each_line_has_the_sha256_of_itself_and_of_the_line_before(journal, tmp_path, file):
    """Computed by the standard library from the bytes in the file alone."""
    enrolled(journal, "alice", tmp_path)
    previous = "0" * 64
    for number, entry in enumerate(lines(file), 1):
        claimed = entry.pop("hash")
        text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(text.encode()).hexdigest() == claimed
        assert (entry["sequence"], entry["previous"]) == (number, previous)
        previous = claimed


def test_nobody_is_named_in_the_file(journal, tmp_path, file):
    key = enrolled(journal, "alice", tmp_path)
    round_id = journal.rounds.ask(RoundSettings(fusion={"weights": {"<alice/cat>": 2.0}})).id
    journal.uploads.add(upload(round_id, key, "alice", "ab" * 32, refused="bob has the same contents"))
    text = file.read_text()
    for secret in ("alice", "bob", key, key[:12], "ab" * 6, "cat"):
        assert secret not in text
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_same_person_has_the_same_seal_and_two_journals_have_two(journal, tmp_path, file):
    enrolled(journal, "alice", tmp_path)
    (seal,) = {entry["who"] for entry in lines(file)}
    (tmp_path / "other").mkdir()
    with closing(Journal(tmp_path / "other" / "server.db")) as other:
        other.participants.invite("alice", valid_s=60)
    (another,) = {entry["who"] for entry in lines(tmp_path / "other" / "audit.jsonl")}
    assert seal != another


def cut_tail(text: list[str]) -> list[str]:
    return text[:-1]


def cut_middle(text: list[str]) -> list[str]:
    return text[:1] + text[2:]


def swap(text: list[str]) -> list[str]:
    return [text[0], text[2], text[1], *text[3:]]


def edit(text: list[str]) -> list[str]:
    return [text[0].replace("invited", "barredd"), *text[1:]]


def repeat(text: list[str]) -> list[str]:
    return [*text, text[-1]]


def half(text: list[str]) -> list[str]:
    return [*text[:-1], text[-1][:20]]


def spaced(text: list[str]) -> list[str]:
    return [text[0].replace(":", ": ", 1), *text[1:]]


def garbage(text: list[str]) -> list[str]:
    return [text[0], "[[[[", *text[2:]]


def nothing(text: list[str]) -> list[str]:
    return []


def rewritten(text: list[str]) -> list[str]:
    """A whole chain with right hashes, in which the first event is another."""
    previous, chain = "0" * 64, []
    for line in text:
        entry = json.loads(line) | {"previous": previous}
        entry["what"] = "barred" if not chain else entry["what"]
        del entry["hash"]
        dumped = json.dumps(entry, sort_keys=True, separators=(",", ":"))
        previous = entry["hash"] = hashlib.sha256(dumped.encode()).hexdigest()
        chain.append(json.dumps(entry, sort_keys=True, separators=(",", ":")))
    return chain


@pytest.mark.parametrize(
    "tampered", [cut_tail, cut_middle, swap, edit, repeat, half, spaced, garbage, nothing, rewritten]
)
def test_what_was_done_to_the_file_is_seen_now_and_after_more_events(
    journal, tmp_path, file, tampered: Callable[[list[str]], list[str]]
):
    enrolled(journal, "alice", tmp_path)
    enrolled(journal, "bob", tmp_path)
    journal.audit.check()
    file.write_text("".join(f"{line}\n" for line in tampered(file.read_text().splitlines())))
    with pytest.raises(TrustError, match="does not hold"):
        journal.audit.check()
    journal.participants.invite("carol", valid_s=60)
    with pytest.raises(TrustError, match="does not hold"):
        journal.audit.check()


def test_triggers_that_somebody_removed_are_there_again_at_the_next_opening(journal, place):
    statement = "DROP TRIGGER audit_asked"
    change(place, statement if isinstance(place, Path) else f"{statement} ON rounds")
    with closing(Journal(place)) as again:
        again.rounds.ask(RoundSettings())
        assert told(again) == [("round asked", None)]


def test_a_removed_file_is_not_quietly_written_again(journal, tmp_path, file, place):
    enrolled(journal, "alice", tmp_path)
    file.unlink()
    with closing(Journal(place)) as again, pytest.raises(TrustError, match="lines 1 to 2 are missing"):
        again.audit.check()


def test_lines_changed_in_the_journal_and_values_behind_seals_are_seen(journal, tmp_path, place):
    enrolled(journal, "alice", tmp_path)
    change(place, "UPDATE audit_seals SET value = 'bob' WHERE value = 'alice'")
    with pytest.raises(TrustError, match="stands for another value"):
        journal.audit.check()
    change(place, "UPDATE audit_seals SET value = 'alice' WHERE value = 'bob'")
    change(place, "DELETE FROM audit WHERE sequence = 2")
    with pytest.raises(TrustError, match="unknown to the journal"):
        journal.audit.check()


@pytest.mark.parametrize("written", [0, 1, 60, 10**6], ids=["nothing", "a byte", "half a line", "all of it"])
def test_a_process_killed_while_it_appends_leaves_each_line_once(place, file, monkeypatch, written):
    """The change is committed, `written` bytes are in the file; the next process completes it."""

    def killed(path: Path, rows: list) -> None:
        data = "".join(f"{row.line}\n" for row in rows).encode()[:written]
        with path.open("ab") as out:
            out.write(data)
        raise KeyboardInterrupt

    with closing(Journal(place)) as journal:
        journal.participants.invite("alice", valid_s=60)
        with monkeypatch.context() as patch:
            patch.setattr("mos_server.state.journal.audit.append_rows", killed)
            with pytest.raises(KeyboardInterrupt):
                journal.participants.invite("bob", valid_s=60)
    with closing(Journal(place)) as journal:
        journal.audit.check()
        assert [entry["sequence"] for entry in lines(file)] == [1, 2]
        journal.participants.invite("carol", valid_s=60)
        journal.audit.check()


def test_a_disk_without_room_holds_no_change_up_and_the_lines_follow(journal, tmp_path, file, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(audit_file.os, "fsync", full)
        journal.participants.invite("alice", valid_s=60)
        journal.participants.invite("bob", valid_s=60)
    assert caplog.text.count("in the journal alone") == 1
    journal.participants.invite("carol", valid_s=60)
    assert len(lines(file)) == 3
    journal.audit.check()


def test_two_processes_that_write_at_once_make_one_chain(place, file):
    def write(name: str) -> None:
        with closing(Journal(place)) as own:
            for i in range(15):
                own.participants.invite(f"{name}{i}", valid_s=60)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with closing(Journal(place)) as journal:
        journal.audit.check()
        assert len(lines(file)) == 45


def test_strangers_cannot_fill_the_audit(journal):
    for i in range(2000):
        journal.audit.add_once("enrolment refused", f"reason {i // 4}")
    assert len(journal.audit.rows()) == 256


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_audit_that_cannot_be_read_says_so(journal, file):
    journal.participants.invite("alice", valid_s=60)
    file.chmod(0)
    with pytest.raises(StateError, match="cannot be read"):
        journal.audit.check()
