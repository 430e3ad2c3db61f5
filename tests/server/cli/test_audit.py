"""`mos-server audit` lists, filters and checks."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mos_common.errors import RequestError, TrustError
from mos_server.cli.main import app
from mos_server.state.folder import ServerConfig, State, create_state
from mos_server.state.journal import Journal


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = create_state(tmp_path / "state", ServerConfig(base="tiny", base_fingerprint="ab" * 32))
    with closing(Journal(made.database)) as journal:
        journal.participants.invite("alice", valid_s=60)
        journal.audit.add("pruned", details={"bytes": 5})
    return made


def audit(state: State, *flags: str) -> tuple[str, BaseException | None]:
    done = CliRunner().invoke(app, ["audit", str(state.path), *flags])
    return done.output, done.exception


def test_it_lists_every_line_with_names_and_ends_with_the_head(state):
    said, error = audit(state)
    assert error is None
    first, second, last = said.splitlines()
    assert first.endswith("invited  alice")
    assert second.endswith("pruned  (bytes 5)")
    head = json.loads((state.path / "audit.jsonl").read_text().splitlines()[-1])["hash"]
    assert last == f"the audit holds: 2 lines, head {head}"
    assert audit(state, "--head", head)[1] is None


def test_json_has_an_object_for_each_line(state):
    entries = [json.loads(line) for line in audit(state, "--json")[0].splitlines()]
    assert [(entry["what"], entry.get("who"), entry["details"]) for entry in entries] == [
        ("invited", "alice", {}),
        ("pruned", None, {"bytes": 5}),
    ]


@pytest.mark.parametrize(("since", "count"), [("1h", 2), ("2001-01-31", 2), ("2999-01-31T12:00+02:00", 0)])
def test_since_takes_a_time_ago_or_a_date(state, since, count):
    assert len(audit(state, "--json", "--since", since)[0].splitlines()) == count


def test_a_moment_that_is_neither_is_refused(state):
    assert isinstance(audit(state, "--since", "yesterday")[1], RequestError)


def test_an_audit_written_anew_does_not_have_the_head_that_was_noted(state):
    error = audit(state, "--head", "0" * 64)[1]
    assert isinstance(error, TrustError)
    assert "written anew" in str(error)


def test_changed_settings_are_in_it(state):
    CliRunner().invoke(app, ["settings", str(state.path), "--set", "preserve=3"])
    *_, last = (json.loads(line) for line in audit(state, "--json")[0].splitlines())
    assert last["what"] == "settings changed"
    assert json.loads(last["details"]["settings"])["settings"] == {"preserve": 3.0}


def test_a_federation_without_events_holds(tmp_path):
    empty = create_state(tmp_path / "empty", ServerConfig(base="tiny", base_fingerprint="ab" * 32))
    assert audit(empty) == ("the audit holds: it has no line yet\n", None)
