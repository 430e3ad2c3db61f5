"""`--publish`: what a federation's kits say, and what its rounds may do."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mos_common.errors import RequestError
from mos_common.own.names import Publishes
from mos_server.cli.main import app
from mos_server.round import follow
from mos_server.state.folder import CONFIG, ServerConfig, State, create_state
from mos_server.state.journal import Journal


def federation(tmp_path: Path, publishes: Publishes) -> State:
    config = ServerConfig(base="tiny", base_fingerprint="ab" * 32, publishes=publishes)
    return create_state(tmp_path / publishes, config)


def test_only_the_config_of_a_federation_that_publishes_own_changes_says_so(tmp_path):
    """Release 0.1.0 refuses a config with a field that it does not know, and reads all others."""
    for publishes in ("fused", "own"):
        state = federation(tmp_path, publishes)
        assert ("publishes" in json.loads((state.path / CONFIG).read_text())) is (publishes == "own")
        assert State(state.path).config.publishes == publishes


def test_a_round_cannot_publish_what_the_kits_do_not_say(tmp_path):
    state = federation(tmp_path, "fused")
    done = CliRunner().invoke(app, ["round", str(state.path), "--publish", "own"])
    assert isinstance(done.exception, RequestError)
    assert "only fused models are published, so nobody agreed" in str(done.exception)


@pytest.mark.parametrize(("flags", "published"), [((), "own"), (("--publish", "fused"), "fused")])
def test_a_round_publishes_what_the_kits_say_or_less(tmp_path, monkeypatch, flags, published):
    state = federation(tmp_path, "own")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow, "follow_round", interrupted)
    CliRunner().invoke(app, ["round", str(state.path), *flags])
    with closing(Journal(state.database)) as journal:
        (round_,) = journal.rounds.all()
        assert round_.settings.publishes == published
