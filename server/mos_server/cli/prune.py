"""`mos-server prune`: remove what nobody needs any more."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from mos_common.shell import say
from mos_server.cli.settings import StateFolder


def register(app: typer.Typer) -> None:
    """Add the command to `mos-server`."""
    app.command(epilog="Example: mos-server prune federation --keep 5 --dry-run")(prune)


def prune(
    state: StateFolder,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", min=1, help="Remove published models too, but for this many of the newest.", show_default="all"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove what nobody needs: old candidates, moments without a concept, leftovers, old models.

    It is safe while a server runs. Flower's files are removed only while none does; the server
    makes them again.
    """
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal
    from mos_server.upkeep.prune import empty_flower, remove, superfluous

    opened = open_state(state)
    with closing(Journal(opened.database)) as journal:
        items = superfluous(opened, journal, keep=keep)
        for item in items:
            say(f"{item.path}: {_megabytes(item.size)}, {item.why}")
        size = sum(item.size for item in items) if dry_run else remove(opened, journal, items)
    flower = empty_flower(opened, dry_run=dry_run)
    if flower is None:
        say("flower: left as it is, since a server is running")
    elif flower:
        say(f"flower: {_megabytes(flower)}, Flower's files, which the server makes again")
    say(f"{'would free' if dry_run else 'freed'} {_megabytes(size + (flower or 0))}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB ({size:,} bytes)"
