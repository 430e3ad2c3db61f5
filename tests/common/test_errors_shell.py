"""Errors and their exit codes, and what every command has in common."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from mos_common import errors
from mos_common.shell import counting, run

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MosError)]


def exit_code(command, arguments: list[str] | None = None, monkeypatch=None) -> int:
    app = typer.Typer()
    app.command()(command)
    monkeypatch.setattr("sys.argv", ["mos-test", *(arguments or [])])
    with pytest.raises(SystemExit) as stop:
        run(app)
    return stop.value.code or 0


def test_exit_codes_are_the_ones_the_documentation_lists():
    listed = dict(re.findall(r"(\w+Error) +(\d+) ", errors.__doc__))
    assert {kind.__name__: str(kind.exit_code) for kind in KINDS} == listed
    assert len(set(listed.values())) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreseen_error_is_one_line_and_its_exit_code(kind, monkeypatch, capsys):
    def command() -> None:
        raise kind("no pictures at x: give another folder")

    assert exit_code(command, monkeypatch=monkeypatch) == kind.exit_code
    printed = capsys.readouterr()
    assert printed.err == "error: no pictures at x: give another folder\n"
    assert not printed.out


def test_an_unforeseen_error_keeps_its_traceback(monkeypatch):
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_code(command, monkeypatch=monkeypatch)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, typer.Abort])
def test_an_interruption_is_130(interruption, monkeypatch, capsys):
    def command() -> None:
        raise interruption

    assert exit_code(command, monkeypatch=monkeypatch) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_an_unknown_flag_is_2(monkeypatch, capsys):
    def command(size: int = 1) -> None:
        pytest.fail("ran")

    assert exit_code(command, ["--nonsense"], monkeypatch) == 2
    assert "--nonsense" in capsys.readouterr().err
    assert exit_code(command, ["--size", "many"], monkeypatch) == 2


def test_a_command_may_choose_its_exit_code(monkeypatch):
    def command() -> None:
        raise typer.Exit(7)

    assert exit_code(command, monkeypatch=monkeypatch) == 7


def test_progress_in_a_log_is_lines_now_and_then_and_always_the_last(capsys, monkeypatch):
    now = iter([100.0, 101.0, 106.0, 107.0, 108.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with counting("tuning") as count:
        for done in range(1, 6):
            count(done, 5, f"loss {done}")
    assert capsys.readouterr().err.splitlines() == ["tuning 1/5 loss 1", "tuning 3/5 loss 3", "tuning 5/5 loss 5"]


SAYS = """
from mos_common.shell import run, say
import typer
app = typer.Typer()
@app.command()
def command() -> None:
    say("caf\u00e9 \u732b.png")
    say("\u2717 no", error=True)
    open("done", "w").close()
run(app)
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_a_console_cannot_show_is_escaped(encoding, tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", SAYS], capture_output=True, cwd=tmp_path, env=environment, check=True)
    assert done.stdout.decode(encoding).strip() == "caf\u00e9 \u732b.png".encode(encoding, "backslashreplace").decode(
        encoding
    )
    assert done.stderr.decode(encoding).strip() == "\u2717 no".encode(encoding, "backslashreplace").decode(encoding)


@pytest.mark.parametrize("stdout", ["/dev/full", "closed pipe", "none"])
def test_work_goes_on_when_nobody_can_read_what_is_said(stdout, tmp_path):
    command = [sys.executable, "-c", SAYS]
    if stdout == "/dev/full":
        with Path(stdout).open("w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    elif stdout == "none":
        shell = ["sh", "-c", 'exec "$@" >&- ', "sh", *command]
        done = subprocess.run(shell, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
        os.close(writer)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "done").exists()
