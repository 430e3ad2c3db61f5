"""Files, folders and modules that pages, docstrings and comments name in backticks are there."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from docs.commands import TOP

TOPS = ("client", "common", "deploy", "docs", "server", "tests")
OURS = r"mos_(?:bench|client|common|server|tiny)"
# The last part of a dotted name may be a class or a function of the module before it.
MODULE = re.compile(rf"{OURS}(?:\.\w+)+")
PLACEHOLDER = re.compile(r"NAME|[*<>{}…]")
HISTORY = TOP / "CHANGELOG.md"  # earlier versions had other modules
TO_BE_WRITTEN = {"test_messages.py"}  # "make it if it is not there"


@cache
def sources() -> dict[str, list[Path]]:
    """Every file of the tree, by its suffix."""
    files = [path for top in TOPS for path in (TOP / top).rglob("*") if "__pycache__" not in path.parts]
    files += [path for path in TOP.iterdir() if path.is_file()]
    by_suffix: dict[str, list[Path]] = {}
    for file in files:
        by_suffix.setdefault(file.suffix, []).append(file)
    return by_suffix


@cache
def prose(file: Path) -> str:
    """The text of a page, or the docstrings and comments of a module."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return text
    comments = [t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]
    strings = [
        node.value.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return "\n".join([*comments, *strings])


def in_backticks(file: Path) -> Iterator[str]:
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(file)):
        if not PLACEHOLDER.search(code):
            yield code


@pytest.mark.parametrize("suffix", [".md", ".py"])
def test_every_path_that_starts_at_the_top_is_there(suffix):
    wrong = [
        f"{file.relative_to(TOP)}: {code}"
        for file in sources()[suffix]
        for code in in_backticks(file)
        if re.fullmatch(rf"(?:{'|'.join(TOPS)})/[\w./@-]*", code) and not (TOP / code).exists()
    ]
    assert not wrong


@pytest.mark.parametrize("suffix", [".md", ".py"])
def test_every_python_file_that_is_named_is_there(suffix):
    """`loop.py` is the name of some file; `tuning/loop.py` is the end of some file's path."""
    there = [f"/{file.relative_to(TOP)}" for file in sources()[".py"]]
    wrong = [
        f"{file.relative_to(TOP)}: {code}"
        for file in sources()[suffix]
        for code in in_backticks(file)
        if re.fullmatch(r"[\w./-]+\.py", code)
        and code not in TO_BE_WRITTEN
        and not any(path.endswith(f"/{code}") for path in there)
    ]
    assert not wrong


@pytest.mark.parametrize("suffix", [".md", ".py"])
def test_every_module_that_is_named_is_there(suffix):
    wrong = []
    for file in sources()[suffix]:
        if file == HISTORY:
            continue
        for code in in_backticks(file):
            if MODULE.fullmatch(code) and not _is_module_or_in_one(code):
                wrong.append(f"{file.relative_to(TOP)}: {code}")
    assert not wrong


def _is_module_or_in_one(name: str) -> bool:
    """True for a module, and for a name that the module before it has."""
    package, _, last = name.rpartition(".")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return False
    if spec.submodule_search_locations and find_spec(name) is not None:
        return True
    return re.search(rf"\b{last}\b", Path(spec.origin).read_text(encoding="utf-8")) is not None
