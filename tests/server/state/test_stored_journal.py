"""The journal of an earlier release is opened, brought up to date, and holds what it held."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from mos_common.errors import StateError
from mos_server.state.folder import open_state
from mos_server.state.journal import Journal
from mos_server.state.journal.database import MIGRATIONS
from mos_server.state.journal.tables import REVISION, metadata
from mos_server.state.records import COLLECTING, PUBLISHED, RoundSettings
from stored import unpack_0_1_0

TOKENS = ["<bob/ginger>", "<alice/coral>"]


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_0_1_0(tmp_path_factory.mktemp("stored")).server


@pytest.fixture
def stored(unpacked: Path, tmp_path: Path) -> Path:
    shutil.copy(unpacked / "server.db", tmp_path / "server.db")
    return tmp_path / "server.db"


def revision_of(file: Path) -> str:
    with closing(sqlite3.connect(file)) as database:
        return str(database.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def test_a_journal_of_0_1_0_holds_what_it_held(stored: Path):
    with closing(sqlite3.connect(stored)) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert "alembic_version" not in names
    with closing(Journal(stored)) as journal:
        first, second = journal.rounds.all()
        assert (first.id, first.status, first.settings) == ("round-001", PUBLISHED, RoundSettings(2, 480.0))
        assert (second.id, second.status, second.settings.wait) == ("round-002", COLLECTING, 2)
        assert journal.rounds.unfinished() == second
        kept = second.settings.fusion["settings"]  # it is recorded as that release would have recorded it
        assert (len(kept["contexts"]), kept["steps"], kept["guidance"]) == (16, 20, None)
        assert [each.name for each in journal.participants.all()] == ["bob", "alice"]
        assert all(journal.participants.is_admitted(each.key) for each in journal.participants.all())
        assert [used is not None for _, _, used in journal.participants.invitations()] == [True, True]
        assert [each.token for each in journal.uploads.admitted("round-001")] == TOKENS
        assert [each.token for each in journal.uploads.admitted("round-002")] == TOKENS[1:]
        assert {member.name: member.attempts for member in journal.rounds.members("round-002")} == {
            "alice": 2,
            "bob": 1,
        }
        assert len(journal.notes.of("round-001")) == 24
    assert revision_of(stored) == REVISION


def test_the_scores_of_a_stored_journal_are_those_of_the_signed_manifest(stored: Path, unpacked: Path):
    """The other road: what the earlier release signed when it published the round."""
    manifest = json.loads((unpacked / "models" / "round-001" / "manifest.json").read_bytes())
    signed = {concept["name"]: concept["identity"] for concept in manifest["concepts"]}
    with closing(Journal(stored)) as journal:
        scores = {upload.concept: asdict(upload.identity) for upload in journal.uploads.of("round-001")}
    assert scores == signed


def test_every_upload_of_a_stored_journal_has_its_file(unpacked: Path, tmp_path: Path):
    shutil.copytree(unpacked, tmp_path / "server")
    state = open_state(tmp_path / "server")
    with closing(Journal(state.database)) as journal:
        digests = {upload.digest for upload in journal.uploads.kept()}
    assert digests == set(state.artefacts.concepts())
    assert state.artefacts.model("round-001").is_dir()


@pytest.mark.parametrize("made", ["anew", "by 0.1.0"])
def test_the_migrations_make_the_tables_that_the_code_reads(stored: Path, tmp_path: Path, made: str):
    file = stored if made == "by 0.1.0" else tmp_path / "new.db"
    Journal(file).close()
    engine = create_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        compared = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": False}), metadata)
    engine.dispose()
    # SQLite let the text keys of 0.1.0 be NULL, as no other database does; none ever is.
    keys = {(table.name, column.name) for table in metadata.tables.values() for column in table.primary_key}
    differences = [each[0] if isinstance(each, list) else each for each in compared]
    assert [each for each in differences if each[0] != "modify_nullable" or (each[2], each[3]) not in keys] == []


def test_the_newest_migration_is_the_revision_that_the_code_reads():
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == REVISION


def test_what_is_journalled_after_the_upgrade_is_there_at_the_next_opening(stored: Path):
    with closing(Journal(stored)) as journal:
        journal.notes.add("round-002", "going on")
    with closing(Journal(stored)) as journal:
        assert journal.notes.of("round-002")[-1][2] == "going on"


@pytest.mark.parametrize("made", ["anew", "by 0.1.0"])
def test_several_processes_may_open_it_at_once(stored: Path, tmp_path: Path, made: str):
    """As a server and a command do after an upgrade: one migrates it, and all can use it."""
    file = stored if made == "by 0.1.0" else tmp_path / "new.db"
    opens = (
        "import sys; from pathlib import Path; from mos_server.state.journal import Journal; import alembic.command\n"
        "sys.stdin.readline(); journal = Journal(Path(sys.argv[1]))\n"
        "journal.notes.add('round-009', 'here'); journal.close()"
    )
    several = [
        subprocess.Popen([sys.executable, "-c", opens, file], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for each in several:
        assert each.stdin is not None
        each.stdin.write(b"\n")
        each.stdin.flush()
    assert [each.communicate()[1] for each in several] == [b""] * 4
    with closing(Journal(file)) as journal:
        assert len(journal.notes.of("round-009")) == 4
    assert revision_of(file) == REVISION


def change(file: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute(statement, values)
        database.commit()


def test_a_journal_of_a_newer_release_is_refused_and_left_alone(stored: Path):
    Journal(stored).close()
    change(stored, "UPDATE alembic_version SET version_num = '9999'")
    before = stored.read_bytes()
    with pytest.raises(StateError, match=r"newer release.*9999"):
        Journal(stored)
    assert stored.read_bytes() == before


def test_a_setting_that_this_release_does_not_know_is_not_passed_over(stored: Path):
    change(stored, "UPDATE rounds SET settings = ? WHERE id = 'round-001'", '{"wait": 2, "warp": 9}')
    with closing(Journal(stored)) as journal, pytest.raises(StateError, match="round-001 was asked for with warp"):
        _ = journal.rounds.get("round-001").settings


def test_a_setting_of_another_type_or_out_of_range_is_not_believed(stored: Path):
    for settings in ('{"wait": "many"}', '{"wait": 0}', "[2]", '{"fusion": {"settings": [1]}}'):
        change(stored, "UPDATE rounds SET settings = ? WHERE id = 'round-001'", settings)
        with (
            closing(Journal(stored)) as journal,
            pytest.raises(StateError, match="settings of round-001 cannot be used"),
        ):
            _ = journal.rounds.get("round-001").settings


def test_a_setting_that_an_earlier_release_did_not_have_is_at_its_default(stored: Path):
    change(stored, "UPDATE rounds SET settings = ? WHERE id = 'round-001'", '{"wait": 2}')
    with closing(Journal(stored)) as journal:
        assert journal.rounds.get("round-001").settings == RoundSettings(wait=2)
