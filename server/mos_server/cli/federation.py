"""The operator's commands for a federation: init, invite, serve, round, status, concepts, bar."""

from __future__ import annotations

import datetime as dt
import re
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from mos_common.commands import command_line
from mos_common.errors import RequestError, StateError
from mos_common.flags import FiniteType
from mos_common.options import Base, Device, Dtype
from mos_common.shell import say
from mos_server.cli.settings import (
    ListsSettings,
    MethodName,
    Preserve,
    Ridge,
    Sets,
    StateFolder,
    Weights,
    Workers,
    changed_fusion,
    settings,
)

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_RUNNING = {
    True: "running",
    False: "not running (start it: {serve})",
    None: "may be running: its lock, {state}/lock, belongs to another user",
}
LONGEST_S = 3650 * 86400.0  # a calendar ends somewhere
_PARTICIPANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


def register(app: typer.Typer) -> None:
    """Add the commands to `mos-server`."""
    app.command(cls=ListsSettings, epilog="Example: mos-server init federation --host fuse.example.org")(init)
    app.command(epilog="Example: mos-server invite federation alice --out alice.kit")(invite)
    app.command(epilog="Example: mos-server serve federation")(serve)
    app.command("round", cls=ListsSettings, epilog="Example: mos-server round federation --wait 3 --deadline 2h")(
        round_
    )
    app.command(cls=ListsSettings, epilog="Example: mos-server settings federation --set preserve=3")(settings)
    app.command(epilog="Example: mos-server status federation")(status)
    app.command(epilog='Example: mos-server concepts federation withdraw "<alice/cat>"')(concepts)
    app.command(epilog="Example: mos-server bar federation alice")(bar)


def init(
    state: StateFolder,
    base: Base = "tiny",
    host: Annotated[
        str, typer.Option("--host", help="Name or address at which participants reach this machine.")
    ] = "127.0.0.1",
    fleet_port: Annotated[
        int, typer.Option("--fleet-port", min=1, max=65535, help="Port for the rounds (Flower).")
    ] = 9092,
    mos_port: Annotated[
        int, typer.Option("--mos-port", min=1, max=65535, help="Port for enrolment and downloads.")
    ] = 9093,
    method: MethodName = None,
    sets: Sets = None,
    workers: Workers = None,
) -> None:
    """Create a federation: keys, certificates, an empty journal.

    --method, --set and --workers say how its rounds are fused. `mos-server settings` lists these
    settings and changes them later.
    """
    from mos_common.base_model import fingerprint_of
    from mos_common.base_names import absolute_name
    from mos_server.state.folder import ServerConfig, check_can_create, create_state

    fusion = changed_fusion({}, method=method, sets=sets, workers=workers)
    check_can_create(state)
    base = absolute_name(base)  # `serve` may be started from elsewhere
    config = ServerConfig(
        base=base,
        base_fingerprint=fingerprint_of(base),
        host=host,
        fleet_port=fleet_port,
        mos_port=mos_port,
        fusion=fusion,
    )
    create_state(state, config)
    say(f"{state}: a federation on {base} ({config.base_fingerprint[:12]})")
    say(f"participants reach it at {host}, ports {fleet_port} and {mos_port}: open these two to them, and no others")
    invite_someone = command_line("mos-server", "invite", state, "NAME", "--out", "NAME.kit")
    say(f"next: {invite_someone}, and {command_line('mos-server', 'serve', state)}")


def invite(
    state: StateFolder,
    name: Annotated[str, typer.Argument(help="The participant's name; part of their concepts' tokens: <NAME/cat>.")],
    out: Annotated[
        Path, typer.Option("--out", help="The kit file to send to the participant, over a channel you trust.")
    ],
    valid: Annotated[str, typer.Option("--valid", help="How long the kit may be used: 12h, 7d.")] = "7d",
) -> None:
    """Create a kit with which one participant can join, once."""
    from mos_common.base_names import short_name
    from mos_common.kit import Kit, write_kit
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal

    if not _PARTICIPANT.fullmatch(name):
        raise RequestError(f"participant name {name!r}: use at most 32 characters: lower-case letters, digits, - and _")
    opened, valid_s = open_state(state), duration_s(valid, "--valid")
    if out.exists():
        raise RequestError(f"{out} already exists: choose another --out")
    config = opened.config
    with closing(Journal(opened.database)) as journal:
        token, expires = journal.participants.invite(name, valid_s=valid_s)
    address = f"[{config.host}]" if ":" in config.host else config.host
    kit = Kit(
        server_id=config.server_id,
        name=name,
        fleet=f"{address}:{config.fleet_port}",
        mos=f"{address}:{config.mos_port}",
        ca=opened.pki.authority_pem(),
        token=token,
        expires=dt.datetime.fromtimestamp(int(expires), dt.UTC),
        base=config.base_fingerprint,
        # The path of a local folder is the operator's business: kits carry only its name.
        base_name=short_name(config.base),
        signing_key=opened.pki.signing_key_pem(),
    )
    write_kit(kit, out)
    joined_by = command_line("mos-client", "join", out, "PICTURES", "--concept", "<cat>", "--class", "cat")
    say(f"{out}: for {name}, once, until {kit.expires:%Y-%m-%d %H:%M} UTC: {joined_by}")


def serve(
    state: StateFolder,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Serve participants and run rounds until Ctrl-C or SIGTERM.

    A round that was interrupted resumes at the next start.
    """
    from mos_server.serve import serve as serve_state
    from mos_server.state.folder import open_state

    opened = open_state(state)
    config = opened.config

    def listening() -> None:
        say(f"serving {state} at {config.host}, ports {config.fleet_port} and {config.mos_port}; Ctrl-C stops it")

    serve_state(opened, listening, device=device, dtype=dtype)
    say("stopped")


def round_(
    state: StateFolder,
    wait: Annotated[int, typer.Option("--wait", help="Wait for at least this many concepts.")] = 1,
    deadline: Annotated[
        str, typer.Option("--deadline", help="Stop waiting for uploads after this long: 30m, 2h.")
    ] = "2h",
    min_identity: Annotated[
        float | None,
        typer.Option(
            "--min-identity",
            click_type=FiniteType(-1, 1),
            help="Hold the model back if any concept's identity is below this.",
            show_default="never",
        ),
    ] = None,
    flag_loss: Annotated[
        float,
        typer.Option(
            "--flag-loss",
            click_type=FiniteType(0, 2),
            help="Flag a concept that loses more identity in fusion than this.",
        ),
    ] = 0.05,
    method: MethodName = None,
    sets: Sets = None,
    weight: Weights = None,
    workers: Workers = None,
    ridge: Ridge = None,
    preserve: Preserve = None,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Cancel the round that is running; no other flag is needed.")
    ] = False,
) -> None:
    """Run a round and follow it: collect concepts, fuse them, have them scored, publish.

    The round is fused with the settings that `mos-server settings` lists; flags of this command
    override them.

    Ctrl-C ends this command, not the round: the server goes on with it. The same command follows it
    again.
    """
    from mos_server.round.follow import describe_round, follow_round
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal
    from mos_server.state.records import RoundSettings

    def asked() -> RoundSettings:
        return RoundSettings(
            wait=wait,
            deadline_s=duration_s(deadline, "--deadline"),
            min_identity=min_identity,
            flag_loss=flag_loss,
            fusion=changed_fusion(
                opened.config.fusion,
                method=method,
                sets=sets,
                weights=weight,
                workers=workers,
                ridge=ridge,
                preserve=preserve,
            ),
        )

    opened = open_state(state)
    with closing(Journal(opened.database)) as journal:
        if cancel:
            say(f"{journal.rounds.cancel().id}: cancelled; what was uploaded is kept")
            return
        if (running := journal.rounds.unfinished()) is not None:
            say(f"{running.id} is already running, with its own settings: following it")
        followed = running or journal.rounds.ask(asked())
        say(f"{followed.id}: Ctrl-C leaves it running")
        try:
            ended = follow_round(opened, journal, followed.id)
        except KeyboardInterrupt:
            again = command_line("mos-server", "round", state)
            say(f"\n{followed.id} goes on in the server. Follow it again: {again}; end it: {again} --cancel")
            raise
        for line in describe_round(journal, ended):
            say(line)
        say(f"published: {opened.artefacts.model(ended.id)}")


def status(state: StateFolder) -> None:
    """Show the participants and the state of the rounds."""
    from mos_server.round.follow import describe_people, describe_round
    from mos_server.state.folder import is_served, open_state
    from mos_server.state.journal import Journal
    from mos_server.state.records import describe_fusion

    opened = open_state(state)
    running = _RUNNING[is_served(opened)].format(state=state, serve=command_line("mos-server", "serve", state))
    try:
        config = opened.config
    except StateError as error:
        say(f"server: {running}")
        say(str(error))
    else:
        say(f"server: {running}; {config.host}, ports {config.fleet_port} and {config.mos_port}")
        say(f"base model: {config.base} ({config.base_fingerprint[:12]})")
        settings_of = command_line("mos-server", "settings", state)
        say(f"fusion of rounds to come: {describe_fusion(config.fusion)} ({settings_of})")
    with closing(Journal(opened.database)) as journal:
        for line in describe_people(journal):
            say(line)
        rounds = journal.rounds.all()
        if not rounds:
            say(f"rounds: none yet (start one: {command_line('mos-server', 'round', state)})")
        for each in rounds:
            for line in describe_round(journal, each):
                say(line)
        if (latest := journal.rounds.latest_published()) is not None:
            say(f"latest model: {opened.artefacts.model(latest.id)}")


def concepts(
    state: StateFolder,
    action: Annotated[
        str | None, typer.Argument(help="`withdraw`; leave it out to list the concepts.", show_default="list them")
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            help='The concept: "<alice/cat>", or "<cat>" if only one participant has it.', show_default="all of them"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="With withdraw: fuse the model without the concept and write it here.", show_default="nowhere"
        ),
    ] = None,
) -> None:
    """List the concepts that are kept, or withdraw one.

    Withdrawing erases a concept's file and its statistics, and keeps it out of future rounds.
    """
    from mos_server.state.concepts import withdraw
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal
    from mos_server.state.records import PUBLISHED

    if action not in (None, "withdraw") or (action == "withdraw") != (name is not None):
        raise RequestError('expected: mos-server concepts STATE, or: mos-server concepts STATE withdraw "<alice/cat>"')
    if out is not None and (name is None or out.exists()):
        raise RequestError(f"--out {out}: it goes with withdraw, and must not exist yet")
    opened = open_state(state)
    with closing(Journal(opened.database)) as journal:
        if name is None:
            kept = journal.uploads.kept()
            for upload in kept:
                say(
                    f"{upload.token}  {upload.digest[:12]}  {upload.bytes / 1e6:.2f} MB  "
                    f"{upload.round or 'for the next round'}"
                )
            if not kept:
                say("no concepts are kept here")
            return
        withdrawn = withdraw(opened, journal, name)
        say(f"{withdrawn[0].token}: erased here, and left out of future rounds")
        published = [each.id for each in journal.rounds.all() if each.status == PUBLISHED]
        inside = sorted({upload.round for upload in withdrawn if upload.round in published})
        if inside:
            say(f"it is still in {', '.join(inside)}: run a new round to publish a model without it")
    if out is not None:
        from mos_server.models.fuse_files import fuse_state

        rest = fuse_state(
            state, out, round_id=inside[-1] if inside else None, progress=lambda line: say(line, error=True)
        )
        names = ", ".join(concept.token for concept in rest.manifest.concepts)
        say(f"{out}: {names}, as if {withdrawn[0].token} had never been there")


def bar(
    state: StateFolder, name: Annotated[str, typer.Argument(help="The participant, as in mos-server status.")]
) -> None:
    """Revoke a participant's access at once. Their concepts stay until they are withdrawn."""
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal

    with closing(Journal(open_state(state).database)) as journal:
        keys = journal.participants.bar(name)
        kept = sorted({upload.token for upload in journal.uploads.kept() if upload.participant == name})
    say(f"{name}: barred, {keys} key{'s' if keys > 1 else ''}; unused kits of that name are void")
    for token in kept:
        withdraw = command_line("mos-server", "concepts", state, "withdraw", token)
        say(f"{token} is still kept: {withdraw} keeps it out of future rounds")


def duration_s(text: str, flag: str) -> float:
    """Return the seconds of a duration such as 45s, 30m, 2h or 7d.

    Raises:
        RequestError: the text is not written like that, or it is longer than `LONGEST_S`.

    """
    parts = _DURATION.fullmatch(text)
    if parts is None or float(parts[1]) == 0:
        raise RequestError(f"{flag} {text!r}: expected a number and a unit, such as 45s, 30m, 2h or 7d")
    seconds = float(parts[1]) * _SECONDS[parts[2]]
    if seconds > LONGEST_S:
        raise RequestError(f"{flag} {text!r}: expected at most {LONGEST_S / 86400:.0f}d")
    return seconds
