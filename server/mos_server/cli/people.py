"""The operator's commands for people: invite a name, bar a name or one of its keys."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from mos_common.commands import command_line
from mos_common.errors import RequestError
from mos_common.shell import say
from mos_server.cli.settings import StateFolder
from mos_server.round.asking import duration_s


def register(app: typer.Typer) -> None:
    """Add the commands to `mos-server`."""
    app.command(epilog="Example: mos-server invite federation alice --out alice.kit")(invite)
    app.command(epilog="Example: mos-server bar federation alice")(bar)


def invite(
    state: StateFolder,
    name: Annotated[str, typer.Argument(help="The participant's name; part of their concepts' tokens: <NAME/cat>.")],
    out: Annotated[
        Path, typer.Option("--out", help="The kit file to send to the participant, over a channel you trust.")
    ],
    valid: Annotated[str, typer.Option("--valid", help="How long the kit may be used: 12h, 7d.")] = "7d",
    again: Annotated[
        bool, typer.Option("--again", help="Invite a name that was barred: the kit lets it back in.")
    ] = False,
) -> None:
    """Create a kit with which one participant can join, once.

    A name that has joined already gets one key more: a kit adds one key to its name.
    """
    from mos_common.kit import write_kit
    from mos_server.state.folder import open_state
    from mos_server.state.inviting import check_name, new_kit
    from mos_server.state.journal import Journal

    check_name(name)
    opened, valid_s = open_state(state), duration_s(valid, "--valid")
    if out.exists():
        raise RequestError(f"{out} already exists: choose another --out")
    with closing(Journal(opened.database)) as journal:
        kit = new_kit(opened, journal, name, valid_s=valid_s, again=again)
        keys = [each for each in journal.participants.all() if each.name == name and each.revoked is None]
    write_kit(kit, out)
    if again:
        say(f"{name} was barred, and may join again with this kit; the barred keys stay barred")
    elif keys:
        say(f"{name} has {count(len(keys), 'key')} already: in a new state folder this kit adds another to the name")
    joined_by = command_line("mos-client", "join", out, "PICTURES", "--concept", "<cat>", "--class", "cat")
    say(f"{out}: for {name}, once, until {kit.expires:%Y-%m-%d %H:%M} UTC: {joined_by}")


def bar(
    state: StateFolder,
    name: Annotated[str, typer.Argument(help="The participant, as in mos-server status.")],
    key: Annotated[
        str | None,
        typer.Option(
            "--key", help="Revoke this key alone: its digest, or how it begins.", show_default="all keys of the name"
        ),
    ] = None,
) -> None:
    """Revoke a participant's access at once. Their concepts stay until they are withdrawn."""
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal

    with closing(Journal(open_state(state).database)) as journal:
        barred = journal.participants.bar(name, key)
        kept = sorted({upload.token for upload in journal.uploads.kept() if upload.participant == name})
    if key is None:
        void = f"; {count(barred.kits, 'unused kit')} of that name {'is' if barred.kits == 1 else 'are'} void"
        say(f"{name}: barred, {count(barred.keys, 'key')}{void if barred.kits else ''}")
        invited = command_line("mos-server", "invite", state, name, "--again", "--out", f"{name}.kit")
        say(f"no kit lets {name} back in, unless you invite the name again: {invited}")
    else:
        rest = f"{name} has {count(barred.left, 'key')} left"
        say(f"{name}: key {key[:12]} is barred; {rest if barred.left else f'it was the last one: {name} is barred'}")
        if barred.kits:
            say(
                f"{count(barred.kits, 'unused kit')} of {name} can still be used: mos-server bar without --key voids it"
            )
    for token in kept:
        withdraw = command_line("mos-server", "concepts", state, "withdraw", token)
        say(f"{token} is still kept: {withdraw} keeps it out of future rounds")


def count(number: int, thing: str) -> str:
    """Return a number of things in words, such as "2 keys"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
