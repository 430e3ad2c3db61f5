"""`mos-server forget`: erase a person."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from mos_common.commands import command_line
from mos_common.shell import say
from mos_server.cli.settings import StateFolder


def register(app: typer.Typer) -> None:
    """Add the command to `mos-server`."""
    app.command(epilog="Example: mos-server forget federation alice")(forget)


def forget(
    state: StateFolder,
    name: Annotated[str, typer.Argument(help="The participant, as in mos-server status.")],
    models: Annotated[
        bool, typer.Option("--models", help="Also remove the published models that contain their concepts.")
    ] = False,
) -> None:
    """Erase a person: keys, invitations, concepts, moments, scores, and their name wherever it is.

    Stop the server first. The audit keeps what happened, under a pseudonym that nobody can resolve.
    """
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal
    from mos_server.upkeep.forget import forget as forget_person

    opened = open_state(state)
    with closing(Journal(opened.database)) as journal:
        done = forget_person(opened, journal, name, models=models)
    for path in done.erased:
        say(f"{path}: erased" if path.parts[0] != "log" else f"{path}: the name was blotted out")
    say(f"{name}: forgotten, with {done.keys} keys and {done.uploads} uploads")
    if done.models_left:
        say(
            f"still in {', '.join(done.models_left)}: {command_line('mos-server', 'round', state)} publishes one without"
        )
        say("and `mos-server prune --keep 1` then removes those before it; participants keep what they downloaded")
    if done.models_removed:
        say("participants keep the models that they downloaded")
    say("backups, and kits that were written for them, are not in this folder: delete those yourself")
