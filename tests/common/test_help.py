"""`--help` of every command: each argument and option shows its sentence and its default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields

import click
import pytest
import typer
from typer.testing import CliRunner

from mos_bench.cli import app as bench
from mos_client.cli.main import app as client
from mos_client.tuning.settings import TuningSettings
from mos_common.drawing import Drawing
from mos_common.release import RELEASE
from mos_server.cli.main import app as server

APPS = {"mos-client": client, "mos-server": server, "mos-bench": bench}

OTHER_MEANINGS = {
    ("check", "--class"),  # of the masks
    ("control", "--steps"),  # of denoising
    ("draw", "--steps"),  # ditto
    ("several", "--steps"),  # ditto
    ("export", "--dtype"),  # of the file that is written
    ("export", "--device"),  # to fit and draw on, the CPU by default
    ("teach", "--base"),  # of one world
    ("tuning", "--base"),
}


def commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*words, name))


ALL = [named for name, app in APPS.items() for named in commands(typer.main.get_command(app), (name,))]


def rendered(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the text of `--help` on a wide terminal, without colour, frames and line breaks."""
    for name, value in {"COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    shown = CliRunner().invoke(APPS[words[0]], [*words[1:], "--help"])
    assert shown.exit_code == 0, shown.output
    return flat(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", shown.output))


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def shown_default(parameter: click.Parameter) -> str:
    """Return the default in the help, or "" for required arguments and flags that are off."""
    if parameter.required or (
        isinstance(parameter, click.Option) and parameter.is_flag and not parameter.secondary_opts
    ):
        return ""
    if isinstance(parameter.show_default, str):
        return f"[default: ({parameter.show_default})]"
    if isinstance(parameter, click.Option) and parameter.is_flag:
        chosen = parameter.opts if parameter.default else parameter.secondary_opts
        return f"[default: {chosen[0].removeprefix('--')}]"
    default = getattr(parameter.default, "value", parameter.default)
    return f"[default: {default}]"


@pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_every_argument_and_option_shows_its_sentence_and_default(words, command, monkeypatch):
    text = rendered(words, monkeypatch)
    for parameter in command.params:
        if parameter.name == "help" or getattr(parameter, "hidden", False):
            continue
        name = parameter.opts[0]
        assert getattr(parameter, "help", None), f"{' '.join(words)} {name} has no help"
        row = text[text.index(flat(parameter.help)) :]
        default = shown_default(parameter)
        if default in ("[default: None]", "[default: ]"):
            assert "default: " in parameter.help, f"{' '.join(words)} {name} does not say its default: use show_default"
            continue
        assert row.removeprefix(flat(parameter.help)).lstrip().startswith(flat(default)), (name, row[:300])


def test_an_option_of_one_meaning_has_one_wording_on_all_commands():
    """Other wordings stand for other meanings, which are these."""
    wordings: dict[str, set[str]] = {}
    for words, command in ALL:
        for parameter in command.params:
            if (*words[1:], parameter.opts[0]) not in OTHER_MEANINGS:
                wordings.setdefault(parameter.opts[0], set()).add(flat(getattr(parameter, "help", None) or ""))
    for option in ("--base", "--device", "--dtype", "--seed", "--steps", "--class", "state"):
        assert len(wordings.get(option, {""})) == 1, (option, wordings[option])


@pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_every_command_says_what_it_does_and_shows_an_example(words, command, monkeypatch):
    text = rendered(words, monkeypatch)
    sentence = flat((command.help or "").split("\n\n")[0]).strip()
    assert sentence
    assert sentence in text
    if not isinstance(command, click.Group):
        assert f"Example: {' '.join(words)} " in text


@pytest.mark.parametrize(("words", "kind"), [("tune", TuningSettings), ("join", TuningSettings), ("draw", Drawing)])
def test_every_setting_is_listed_with_default_unit_and_meaning(words, kind, monkeypatch):
    text = rendered(("mos-client", words), monkeypatch)
    for field in fields(kind):
        meaning, unit = field.metadata["meaning"], field.metadata["unit"]
        assert re.search(rf"\b{field.name}(=\S+)?: {re.escape(meaning)}", text)
        assert not unit or f"{meaning} ({unit})" in text
    assert "rank=4: " in text or kind is Drawing


def test_the_default_that_a_flag_of_draw_shows_is_that_of_the_settings():
    (draw,) = [command for words, command in ALL if words == ("mos-client", "draw")]
    (steps,) = [parameter for parameter in draw.params if parameter.name == "steps"]
    assert steps.show_default == str(Drawing().steps)


@pytest.mark.parametrize("name", APPS)
def test_version_prints_the_name_and_the_version(name):
    shown = CliRunner().invoke(APPS[name], ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"{name} {RELEASE}\n")
