"""A file name that is too long ends a command in one line, whatever it would do with it."""

from __future__ import annotations

import sys

import pytest

from mos_bench.cli import main as bench
from mos_client.cli.main import main as client
from mos_common.errors import RequestError
from mos_server.cli.main import main as server

LONG = "name" * 100


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (client, ["check", LONG]),
        (client, ["draw", LONG, "a cat", "--out", "x.png"]),
        (client, ["inspect", LONG]),
        (client, ["verify", LONG]),
        (client, ["export", LONG, "--out", "x"]),
        (client, ["import", LONG, "--class", "cat", "--concept", "<x>", "--out", "x"]),
        (client, ["tune", LONG, "--class", "cat", "--concept", "<x>", "--out", "x"]),
        (client, ["join", LONG, LONG, "--class", "cat", "--concept", "<x>"]),
        (server, ["status", LONG]),
        (server, ["fuse", LONG, "--out", "x"]),
        (bench, ["demo", "--out", LONG]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_name_that_is_too_long(main, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mos", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code not in (0, 1)
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith(("error: ", "\u2570"))


def test_its_exit_code_is_that_of_a_request(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mos-client", "inspect", LONG])
    with pytest.raises(SystemExit) as ended:
        client()
    assert ended.value.code == RequestError.exit_code
    assert "too long for the name of a file" in capsys.readouterr().err
