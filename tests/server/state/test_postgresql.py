"""A journal in PostgreSQL: its address, its migrations, and a server that goes away."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from mos_common.errors import RequestError, StateError
from mos_server.cli.init import init
from mos_server.state.folder import CONFIG, DATABASE, open_state
from mos_server.state.journal import Journal
from mos_server.state.journal.postgresql import PostgreSQL, check_unused, checked_address
from mos_server.state.journal.tables import REVISION, metadata
from mos_server.state.reading import reading_journal
from mos_server.state.records import RoundSettings
from postgresql import Cluster, change

WEEK = 7 * 86400.0


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path) -> PostgreSQL:
    return PostgreSQL(cluster.new_database(), tmp_path)


def test_the_migrations_make_the_tables_that_the_code_reads(place):
    Journal(place).close()
    engine = create_engine(place.url)
    with engine.connect() as connection:
        compared = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": False}), metadata)
    engine.dispose()
    assert compared == []


def test_several_processes_may_open_a_new_one_at_once(place):
    opens = (
        "import sys; from pathlib import Path; import alembic.command; from mos_server.state.journal import Journal\n"
        "from mos_server.state.journal.postgresql import PostgreSQL\n"
        "sys.stdin.readline(); journal = Journal(PostgreSQL(sys.argv[1], Path(sys.argv[2])))\n"
        "journal.notes.add('round-009', 'here'); journal.close()"
    )
    command = [sys.executable, "-c", opens, place.url, place.folder]
    several = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    for each in several:
        assert each.stdin is not None
        each.stdin.write(b"\n")
        each.stdin.flush()
    assert [each.communicate()[1] for each in several] == [b""] * 4
    with closing(Journal(place)) as journal:
        assert len(journal.notes.of("round-009")) == 4
        (row,) = journal._database.rows(text("SELECT version_num FROM alembic_version"))
        assert row["version_num"] == REVISION


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql+psycopg://mos:secret@db/mos", "has a password in it"),
        ("postgresql+psycopg://mos@db/mos?password=secret", "has a password in it"),
        ("mysql://mos:secret@db/mos", "has a password in it"),
        ("postgresql://mos@db/mos", "expected postgresql"),
        ("sqlite:///server.db", "expected postgresql"),
        ("postgresql+psycopg://mos@db", "expected postgresql"),
        ("postgresql+psycopg://mos@db:none/secret", "no address of a database"),
        ("not an address", "no address of a database"),
        ("", "no address of a database"),
    ],
)
def test_an_address_that_cannot_be_kept_is_refused_and_its_password_not_repeated(address, said):
    with pytest.raises(RequestError, match=said) as caught:
        checked_address(address)
    assert "secret" not in str(caught.value)


def test_a_federation_is_made_with_it_and_nothing_is_embedded(cluster, tmp_path, capsys):
    url = cluster.new_database()
    init(tmp_path / "federation", journal=url)
    state = open_state(tmp_path / "federation")
    with closing(Journal(state.database)) as journal:
        journal.participants.invite("alice", valid_s=WEEK)
    with reading_journal(open_state(tmp_path / "federation", only_read=True)) as journal:
        assert [name for name, *_ in journal.participants.invitations()] == ["alice"]
    assert not (state.path / DATABASE).exists()
    assert os.environ["PGPASSWORD"] not in capsys.readouterr().out + (state.path / CONFIG).read_text()


def test_a_second_federation_gets_no_database_that_has_one(cluster, tmp_path):
    url = cluster.new_database()
    init(tmp_path / "first", journal=url)
    Journal(open_state(tmp_path / "first").database).close()
    with pytest.raises(StateError, match="a database of its own"):
        init(tmp_path / "second", journal=url)
    assert not (tmp_path / "second").exists()


def test_a_database_of_another_encoding_is_refused(cluster):
    with pytest.raises(StateError, match="ENCODING 'UTF8'"):
        check_unused(cluster.new_database("SQL_ASCII"))


def test_a_lost_configuration_does_not_begin_an_empty_journal(cluster, tmp_path):
    init(tmp_path / "federation", journal=cluster.new_database())
    (tmp_path / "federation" / CONFIG).write_text("{")
    with pytest.raises(StateError, match=r"config\.json cannot be used"):
        _ = open_state(tmp_path / "federation").database
    assert not (tmp_path / "federation" / DATABASE).exists()


def test_a_wrong_password_and_a_missing_server_say_so_in_one_line(place, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "a wrong one")
    with pytest.raises(StateError, match="password authentication failed") as caught:
        Journal(place)
    assert "\n" not in str(caught.value)
    assert "a wrong one" not in str(caught.value)
    with pytest.raises(StateError, match=r"cannot be used.*does PostgreSQL run"):
        Journal(PostgreSQL("postgresql+psycopg://mos@127.0.0.1:9/mos", place.folder))


def test_the_library_that_is_not_installed_is_named(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StateError, match=r"pip install 'federated-mix-of-show\[postgresql\]'"):
        Journal(place)


def test_a_server_that_is_restarted_costs_the_calls_of_that_time_alone(cluster, place):
    with closing(Journal(place)) as journal:
        journal.participants.invite("alice", valid_s=WEEK)
        cluster.stop()
        with pytest.raises(StateError, match="cannot be used"):
            journal.participants.invite("bob", valid_s=WEEK)
        cluster.start()
        journal.participants.invite("carol", valid_s=WEEK)
        assert [name for name, *_ in journal.participants.invitations()] == ["alice", "carol"]
        journal.audit.check()


def test_a_transaction_that_its_server_ends_leaves_nothing(place):
    with closing(Journal(place)) as journal:
        ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = "
        with pytest.raises(StateError, match="cannot be used"), journal.decision():
            journal.notes.add("round-001", "half")
            change(place, f"{ends} current_database()")
            journal.notes.add("round-001", "the other half")
        assert journal.notes.of("round-001") == []


def test_a_writer_sees_what_the_one_before_it_committed_while_it_waited(place):
    """Otherwise two rounds could begin at once: a default of the database may be `serializable`."""
    name = place.url.rpartition("/")[2]
    change(place, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    with closing(Journal(place)) as one, closing(Journal(place)) as other:
        asked = []

        def ask() -> None:
            try:
                asked.append(other.rounds.ask(RoundSettings()).id)
            except RequestError as error:
                asked.append(str(error))

        with one.decision():
            thread = threading.Thread(target=ask)
            thread.start()
            one.rounds.ask(RoundSettings())
        thread.join()
        assert len(one.rounds.all()) == 1
        assert "round-001 is asked" in asked[0]
