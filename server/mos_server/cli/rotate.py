"""`mos-server rotate`: replace keys and certificates without losing a participant."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from mos_common.commands import command_line
from mos_common.errors import RequestError
from mos_common.shell import say
from mos_server.cli.settings import StateFolder

if TYPE_CHECKING:
    from mos_server.state.folder import State

_AUTHORITY = {False: "authority, announced", True: "authority, in force"}


def register(app: typer.Typer) -> None:
    """Add the command to `mos-server`."""
    app.command(epilog="Example: mos-server rotate federation --signing-key")(rotate)


def rotate(
    state: StateFolder,
    certificate: Annotated[
        bool, typer.Option("--certificate", help="Renew the server's key and certificate, for all names it has.")
    ] = False,
    authority: Annotated[
        bool, typer.Option("--authority", help="Announce a new authority; with --finish, put it into force.")
    ] = False,
    signing_key: Annotated[
        bool, typer.Option("--signing-key", help="Sign models with a new P-256 key from now on.")
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="With --authority: drop the former authority and use the announced one.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option("--host", help="With --certificate: move the server to this name.", show_default="where it is"),
    ] = None,
    also_name: Annotated[
        list[str] | None,
        typer.Option(
            "--also-name", help="With --certificate: one more name for the certificate.", show_default="no more"
        ),
    ] = None,
) -> None:
    """Replace the server's certificate, the authority, or the key that signs models.

    Participants who are joined learn of it within seconds. Those who were away join with a new kit.
    """
    from mos_server.state.folder import open_state
    from mos_server.state.rotation import announce_authority, finish_authority, rotate_certificate, rotate_signing_key

    if certificate + authority + signing_key != 1:
        raise RequestError("choose one of --certificate, --authority and --signing-key: one thing is rotated at a time")
    if finish and not authority:
        raise RequestError("--finish goes with --authority: the other two are in force at once")
    if (host or also_name) and not certificate:
        raise RequestError("--host and --also-name go with --certificate: they are names in it")
    opened = open_state(state)
    if certificate:
        opened = rotate_certificate(opened, host, also_name or ())
        say(f"the server has a new certificate, for {', '.join(opened.config.hosts)}")
        if host:
            say(
                f"participants who are joined learn that the server moves to {host}; keep it reachable under its former "
                f"name until they have. Others join with a new kit ({_new_kit(opened)})"
            )
        _say_when(opened)
    elif signing_key:
        rotate_signing_key(opened)
        say("models are signed with a new P-256 key from now on; those signed before stay verifiable")
        say(f"participants who are joined learn of it by themselves; others join with a new kit ({_new_kit(opened)})")
    elif finish:
        announced = opened.pki.statements()[-1].time.timestamp() if opened.pki.statements() else 0.0
        finish_authority(opened)
        say("the new authority is in force, and the former one is no longer trusted")
        _say_away(opened, announced)
        _say_when(opened)
    else:
        announce_authority(opened)
        say("a new authority is announced: participants and new kits accept both from now on")
        finishing = command_line("mos-server", "rotate", state, "--authority", "--finish")
        say(f"once everybody has been here (mos-server status says when), put it into force: {finishing}")
    _audit(opened, "certificate" if certificate else "signing key" if signing_key else _AUTHORITY[finish])


def _audit(state: State, what: str) -> None:
    from mos_server.state.journal import Journal

    with closing(Journal(state.database)) as journal:
        journal.audit.add("rotated", details={"what": what})


def _say_when(state: State) -> None:
    from mos_server.state.folder import is_served

    if is_served(state) is not False:
        say("a running server presents it to new connections within a second; open ones go on")


def _say_away(state: State, since: float) -> None:
    """Name the participants who have not been here since an announcement."""
    from mos_server.state.journal import Journal

    with closing(Journal(state.database)) as journal:
        for each in journal.participants.all():
            if each.revoked is None and (each.seen or 0.0) < since:
                seen = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.seen)) if each.seen else "never"
                say(
                    f"{each.name} (key {each.key[:12]}) has not been here since the announcement (last here: {seen}): "
                    f"send a new kit ({_new_kit(state, each.name)})"
                )


def _new_kit(state: State, name: str = "NAME") -> str:
    return command_line("mos-server", "invite", state.path, name, "--out", f"{name}.kit")
