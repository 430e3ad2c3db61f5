"""Commands, flags, settings, imports, files and anchors on every page are real."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from importlib import import_module

import pytest

from docs.commands import (
    SETTABLE,
    TOP,
    all_flags,
    blocks,
    check_command,
    check_settings,
    commands_in,
    inline_code,
    is_python,
    programs,
    setting_names,
    settings_in,
    shell_lines,
)

DOCS = TOP / "docs"
PAGES = [
    TOP / "README.md",
    TOP / "CONTRIBUTING.md",
    *sorted((TOP / "deploy").rglob("*.md")),
    *sorted(DOCS.rglob("*.md")),
]
# Flags of other programs that pages mention without their command.
FOREIGN_FLAGS = {"--userns", "--gpus", "--network"}
on_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))


@on_every_page
def test_every_command_in_a_block_is_one_that_the_program_takes(page):
    """Names, flags, arguments and settings: as copied from the page."""
    for command in (command for words in shell_lines(page) for command in commands_in(words)):
        check_command(command)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "deploy/README.md", "docs/operating.md", "docs/participating.md"]
)
def test_pages_that_people_type_from_have_commands_that_were_found(page):
    assert [command for words in shell_lines(TOP / page) for command in commands_in(words)]


@on_every_page
def test_every_command_within_a_sentence_is_one_that_the_program_takes(page):
    """With arguments it must parse as it stands; a bare name must exist."""
    for code in inline_code(page):
        if not code.startswith((*(f"{program} " for program in programs()), "make ", "python ")):
            continue
        for command in commands_in(shlex.split(code)):
            if len(command) == 2 and command[0] in programs() and not command[1].startswith("-"):
                check_command([*command, "--help"]) if command[1] != "COMMAND" else None
            elif "COMMAND" not in command and "…" not in code:
                check_command(command)


@on_every_page
def test_every_flag_within_a_sentence_is_a_flag_of_some_command(page):
    for code in inline_code(page):
        words = code.split()
        if words[0].startswith("--") and words[0] not in FOREIGN_FLAGS:
            flag = words[0].partition("=")[0]
            assert all(each in all_flags() for each in flag.split("/")), f"{page.name}: {code}"
            if flag == "--set" and words[1:] not in ([], ["NAME=VALUE"]):
                check_settings(words[1:], sorted(set(SETTABLE.values())))


@pytest.mark.parametrize(("page", "package"), [("fusion.md", "mos_server.fusion"), ("tuning.md", "mos_client.tuning")])
def test_every_setting_has_its_row_and_every_row_its_setting(page, package):
    """The table whose first column is the setting, of gradient fusion or of tuning."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| setting \| (?:meaning|what it does) \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)
    names = {name for row in table.splitlines() for name in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    known = [setting_names(kind) for kind in settings_in(package)]
    assert any(names == settings for settings in known), [sorted(names ^ settings) for settings in known]


def test_every_method_has_its_row_with_its_settings():
    """The table of methods other than the default."""
    from mos_server.fusion.methods import METHODS, method_named

    text = (DOCS / "fusion.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| `--method` \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)
    rows = {name: set(re.findall(r"`(\w+)`", row)) for name, row in re.findall(r"^\| `([\w-]+)` \|(.*)$", table, re.M)}
    assert rows == {name: setting_names(method_named(name).settings) for name in METHODS[1:]}


@on_every_page
def test_every_python_block_compiles_and_its_imports_are_there(page):
    for block in blocks(page.read_text(encoding="utf-8")):
        if not is_python(block):
            continue
        for statement in ast.walk(ast.parse(block)):
            if isinstance(statement, ast.ImportFrom):
                module = import_module(statement.module)
                assert all(hasattr(module, name.name) for name in statement.names), ast.unparse(statement)


@on_every_page
def test_every_file_that_a_page_links_or_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    tops = "deploy|docs|common|client|server|tests"
    for path in re.findall(rf"(?<![\w/.-])((?:{tops})/[\w./@-]+\w)(?![\w*])", text):
        assert "NAME" in path or (TOP / path).exists(), path


@on_every_page
def test_every_anchor_on_a_page_is_a_heading(page):
    for file, anchor in re.findall(r"\]\(([\w./]*)#([\w-]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / file if file else page).read_text(encoding="utf-8")
        slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)}
        assert anchor in slugs, f"{page.name}: #{anchor}"


@on_every_page
def test_no_line_is_over_120_columns_outside_tables(page):
    """Pages that `mos-bench` writes are exempt: each of their paragraphs is one line."""
    if page.is_relative_to(DOCS / "results"):
        return
    long = [line for line in page.read_text(encoding="utf-8").splitlines() if len(line) > 120 and line[:1] != "|"]
    assert not long


@pytest.mark.parametrize("page", ["operating.md", "participating.md"])
def test_every_message_under_troubleshooting_is_one_that_the_code_says(page):
    """Word for word between the ellipses."""
    sources = [file for side in ("client", "server", "common") for file in sorted((TOP / side).rglob("*.py"))]
    said = "\n".join(file.read_text(encoding="utf-8") for file in sources)
    said = re.sub(r'"\s*\n\s*f?"', "", said)  # literals that continue on the next line
    rows = (DOCS / page).read_text(encoding="utf-8").split("\n## Troubleshooting\n")[1]
    first_cells = re.findall(r"^\| ([^|]*`[^|]*) \|", rows, re.M)
    assert len(first_cells) > 8
    for message in re.findall(r"`([^`]+)`", " ".join(first_cells)):
        for part in message.split("…"):
            # Numbers are formatted into the message.
            for words in re.split(r"\d+", part):
                assert words.strip() in said, message


def test_the_tree_outside_the_embedded_model_is_under_ten_megabytes():
    """A clone is small: generated files exist once."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, capture_output=True, text=True, timeout=60, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = [TOP / name for name in listed.stdout.split("\0") if name and not name.startswith("common/mos_tiny/")]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 10e6
