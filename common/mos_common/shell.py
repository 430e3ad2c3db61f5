"""Shared code of all commands: errors, exit codes, progress, `--version`, settings in `--help`."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typer.core import TyperCommand

from mos_common.errors import MosError, RequestError
from mos_common.release import RELEASE
from mos_common.settings import describe_settings

INTERRUPTED = 130
PLAIN_EVERY_S = 5.0
_SHOWN = 80
OnCount = Callable[[int, int, str], None]


def run(app: typer.Typer) -> None:
    """Run a command line; exit codes: `mos_common.errors`, 130 after Ctrl-C, 2 for bad flags."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console of another encoding must not end finished work
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("mos_common").setLevel(logging.INFO)
    logging.getLogger("mos_client").setLevel(logging.INFO)
    logging.getLogger("mos_server").setLevel(logging.INFO)
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # Threads that spin while they wait slow every step down on a shared machine, and threads that
    # sleep at once slow small layers down on a quiet one. GNU OpenMP can do a little of the first.
    quiet |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    for name, value in {"TOKENIZERS_PARALLELISM": "false", **quiet}.items():
        os.environ.setdefault(name, value)
    try:
        code = app(standalone_mode=False)  # typer returns the code of typer.Exit and Ctrl-C
    except MosError as error:
        say(f"error: {error}", error=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        from click import ClickException

        if isinstance(error, ClickException):
            error.show()
            sys.exit(error.exit_code)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            shown = str(error.filename)[:_SHOWN]
            say(f"error: {shown}... is too long for the name of a file: give a shorter one", error=True)
            sys.exit(RequestError.exit_code)
        raise
    if code == INTERRUPTED:
        say("interrupted", error=True)
    if code:
        sys.exit(code)


def add_version(app: typer.Typer) -> None:
    """Add `--version` to a command line: it prints name and version, then exits."""

    def root(asked: _Version = False) -> None:
        """Parse the flags before the command."""

    app.callback()(root)


def lists_settings(kind: Callable[[], type]) -> type[TyperCommand]:
    """Return the class of a command whose `--help` ends with every setting of a dataclass.

    `kind` is called only for `--help`, so it may import heavy libraries.
    """

    class WithSettings(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            example = self.epilog
            lines = ["Settings for --set, with their defaults:", *map(escape, describe_settings(kind()))]
            self.epilog = "\n\n".join([*lines, "", example or ""])
            try:
                super().format_help(ctx, formatter)
            finally:
                self.epilog = example

    return WithSettings


def _show_version(ctx: typer.Context, asked: bool) -> None:
    if asked:
        say(f"{ctx.find_root().command.name} {RELEASE}")
        raise typer.Exit


_Version = Annotated[
    bool,
    typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
]


def say(text: str, *, error: bool = False) -> None:
    """Print one line, to stderr if it is an error.

    Nobody may be reading: the terminal closed, `| head` has seen enough, the disk of a log is full.
    That never ends the work that the line speaks of.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # a process without a console
        return
    try:
        stream.write(text + "\n")
        stream.flush()
    except OSError:
        # Python flushes once more when it ends, and would fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def counting(what: str) -> Iterator[OnCount]:
    """Yield a callback (done, total, note): a progress bar on a terminal, else occasional lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(what)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[note]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=1, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def _plain_lines(what: str) -> OnCount:
    last = 0.0

    def line(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= PLAIN_EVERY_S:
            last = now
            say(f"{what} {done}/{total} {note}", error=True)

    return line
