"""The actual commands of this repository, and the commands that a page shows."""

from __future__ import annotations

import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import typer

from mos_common.errors import RequestError
from mos_common.settings import parse_settings

TOP = Path(__file__).parents[2]
DISTRIBUTIONS = [TOP / "pyproject.toml", TOP / "tests" / "evaluation" / "pyproject.toml"]
RECIPE = TOP / "common" / "mos_tiny" / "recipe"
# The package whose settings `--set` takes, by program or by command.
SETTABLE = {
    "mos-server": "mos_server.fusion",
    "mos-client": "mos_client.tuning",
    "mos-client draw": "mos_common.drawing",
    "mos-bench": "mos_server.fusion",
}


def programs() -> dict[str, str]:
    """Return the module of each installed program: {"mos-client": "mos_client.cli.main", ...}."""
    found = {}
    for file in DISTRIBUTIONS:
        scripts = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["scripts"]
        found |= {name: entry.partition(":")[0] for name, entry in scripts.items()}
    return found


@cache
def click_command(module: str) -> Any:
    """Return the click command that a module's typer app becomes."""
    return typer.main.get_command(import_module(module).app)


@cache
def commands(program: str) -> dict[str, Any]:
    return dict(click_command(programs()[program]).commands)


def with_inner(command: Any) -> list[Any]:
    """Return a command and the commands within it, such as those of `mos-bench study`."""
    inner = getattr(command, "commands", {}).values()
    return [command, *(each for outer in inner for each in with_inner(outer))]


@cache
def make_targets() -> frozenset[str]:
    makefile = (TOP / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w.][\w. -]*):(?!=)", makefile, re.M)
    return frozenset(name for line in targets for name in line.split())


def make_variables() -> frozenset[str]:
    """Return the settings of a `make` command, such as TORCH=cpu."""
    makefile = (TOP / "Makefile").read_text(encoding="utf-8")
    return frozenset(f"{name}={value}" for value, name in re.findall(r"\$\(filter (\w+),\$\((\w+)\)\)", makefile))


@cache
def all_flags() -> frozenset[str]:
    """Return every flag of every command, including the recipe of `tiny`."""
    found = {"--help"}
    every = [command for module in programs().values() for command in with_inner(click_command(module))]
    recipe = [file for file in RECIPE.glob("*.py") if "typer.Typer(" in file.read_text(encoding="utf-8")]
    for command in [*every, *(click_command(f"mos_tiny.recipe.{file.stem}") for file in recipe)]:
        for parameter in command.params:
            found |= {*parameter.opts, *parameter.secondary_opts}
    return frozenset(found)


@cache
def settings_in(package: str) -> tuple[type, ...]:
    """Return the settings dataclasses that a module or package declares with `setting()`."""
    top = import_module(package)
    inside = [each.name for each in walk_packages(getattr(top, "__path__", []), f"{package}.")]
    declared = {
        value: None
        for module in [top, *map(import_module, inside)]
        for value in vars(module).values()
        if isinstance(value, type)
        and is_dataclass(value)
        and value.__module__.startswith(package)
        and any("meaning" in field.metadata for field in fields(value))
    }
    return tuple(declared)


def setting_names(kind: type) -> set[str]:
    return {field.name for field in fields(kind) if "meaning" in field.metadata}


def check_settings(texts: list[str], packages: list[str]) -> None:
    """Check that each NAME=VALUE is a setting of one of the packages, with a value of its type."""
    for text in texts:
        kinds = [kind for package in packages for kind in settings_in(package)]
        assert any(_takes(kind, text) for kind in kinds), (
            f"--set {text}: none of {[kind.__name__ for kind in kinds]} takes it"
        )


def _takes(kind: type, text: str) -> bool:
    try:
        parse_settings(kind, [text])
    except RequestError:
        return False
    return True


def check_command(words: list[str]) -> None:
    """Parse a command as the program would, without running it."""
    if words[0] == "make":
        assert set(words[1:]) <= make_targets() | make_variables(), words
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]) is not None, words
        if "--help" not in words:
            click_command(words[2]).make_context(words[2], words[3:])
    elif words[0] == "python":
        assert (TOP / words[1]).is_file(), words
    else:
        program, *rest = words
        if rest in (["--version"], ["--help"]):
            own = {flag for parameter in click_command(programs()[program]).params for flag in parameter.opts}
            assert rest[0] in own | {"--help"}, words
            return
        name, *arguments = rest
        assert name in commands(program), f"{shlex.join(words)}: known: {', '.join(commands(program))}"
        if arguments == ["--help"]:
            return
        command = commands(program)[name]
        while inner := getattr(command, "commands", None):
            name, *arguments = arguments
            assert name in inner, f"{shlex.join(words)}: known: {', '.join(inner)}"
            command = inner[name]
        context = command.make_context(name, arguments)
        where = SETTABLE.get(f"{program} {name}", SETTABLE.get(program, ""))
        check_settings(set_texts(context), [where])


def set_texts(context: Any) -> list[str]:
    """Return the values of `--set`."""
    named = [each.name for each in context.command.params if "--set" in each.opts]
    return [text for name in named for text in context.params[name] or ()]


def commands_in(words: list[str]) -> Iterator[list[str]]:
    """Yield our command in a line of shell: alone, after variables or sudo, or in a container."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words and words[0] == "sudo":
        words = words[3:] if words[1] == "-u" else words[1:]
    if words[:2] == ["docker", "compose"] and "server" in words:
        inside = words[words.index("server") + 1 :]
        words = ["mos-server", *inside] if "run" in words else inside
    if words[:2] == ["podman", "run"]:
        (image,) = (i for i, word in enumerate(words) if word.startswith("federated-mix-of-show-client"))
        words = ["mos-client", *words[image + 1 :]]
    if not words:
        return
    name = Path(words[0]).name
    ours_by_python = (words[1:2] == ["-m"] and words[2].startswith("mos_")) or (
        words[1:2] and words[1].startswith("tests/")
    )
    if name in programs() or name == "make" or (name == "python" and ours_by_python):
        yield [name, *words[1:]]


def blocks(text: str) -> Iterator[str]:
    """Yield the code blocks of a page, indented and fenced, without their indentation."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```$", text, re.M | re.S):
        yield block
    unfenced = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    for block in re.findall(r"(?:(?<=\n\n)|\A)((?: {4,}\S.*\n|\n(?= {4,}\S))+)", unfenced):
        yield textwrap.dedent(block)


def is_python(block: str) -> bool:
    return re.match(r"(?:from|import) ", block) is not None


def shell_lines(page: Path) -> Iterator[list[str]]:
    """Yield every line of the shell blocks of a page, as words."""
    for block in blocks(page.read_text(encoding="utf-8")):
        if is_python(block):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            try:
                yield shlex.split(line, comments=True)
            except ValueError:
                assert "mos-" not in line, f"{page.name}: {line}"


def inline_code(page: Path) -> list[str]:
    """Return the code within the sentences and tables of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = re.sub(r"(?:(?<=\n\n)|\A)((?: {4,}\S.*\n)+)", "", text)
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
