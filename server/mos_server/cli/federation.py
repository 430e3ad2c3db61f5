"""The operator's commands for a federation: round, status, concepts."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from mos_common.commands import command_line
from mos_common.errors import RequestError, StateError
from mos_common.flags import FiniteType
from mos_common.shell import say
from mos_server.cli.init import init
from mos_server.cli.settings import (
    KeepAll,
    ListsSettings,
    MethodName,
    Preserve,
    Published,
    Ridge,
    Sets,
    StateFolder,
    Weights,
    Workers,
    settings,
)

_RUNNING = {
    True: "running",
    False: "not running (start it: {serve})",
    None: "may be running: its lock, {state}/lock, belongs to another user",
}


def register(app: typer.Typer) -> None:
    """Add the commands to `mos-server`."""
    app.command(cls=ListsSettings, epilog="Example: mos-server init federation --host fuse.example.org")(init)
    app.command("round", cls=ListsSettings, epilog="Example: mos-server round federation --wait 3 --deadline 2h")(
        round_
    )
    app.command(cls=ListsSettings, epilog="Example: mos-server settings federation --set preserve=3")(settings)
    app.command(epilog="Example: mos-server status federation")(status)
    app.command(epilog='Example: mos-server concepts federation withdraw "<alice/cat>"')(concepts)


def round_(
    state: StateFolder,
    wait: Annotated[int, typer.Option("--wait", help="Wait for at least this many concepts.")] = 1,
    share: Annotated[
        float,
        typer.Option(
            "--share",
            click_type=FiniteType(0, 1),
            help="Of those who are asked, the share that must have answered before --grace counts.",
        ),
    ] = 0.5,
    grace: Annotated[
        str, typer.Option("--grace", help="Then go on once nobody has answered for this long: 10m, 1h.")
    ] = "1h",
    deadline: Annotated[
        str, typer.Option("--deadline", help="Stop waiting for uploads after this long: 30m, 2h.")
    ] = "2h",
    scoring: Annotated[
        str, typer.Option("--scoring", help="Give participants this long to score the candidate: 10m, 1h.")
    ] = "1h",
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
    keep_all: KeepAll = False,
    publish: Annotated[
        Published | None,
        typer.Option("--publish", help="`fused`: no own changes beside this model.", show_default="the federation's"),
    ] = None,
    review: Annotated[
        bool, typer.Option("--review", help="Hold the model back until you publish it: mos-server publish.")
    ] = False,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="Ask for the round and return at once; the server runs it.")
    ] = False,
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
    from mos_server.round.asking import asked_settings
    from mos_server.round.follow import describe_round, follow_round
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal
    from mos_server.state.records import RoundSettings

    def asked() -> RoundSettings:
        return asked_settings(
            opened.config,
            wait=wait,
            share=share,
            grace=grace,
            deadline=deadline,
            scoring=scoring,
            min_identity=min_identity,
            flag_loss=flag_loss,
            review=review,
            publish=None if publish is None else publish.value,
            method=method,
            sets=sets,
            weights=weight,
            workers=workers,
            ridge=ridge,
            preserve=preserve,
            keep_all=keep_all,
        )

    opened = open_state(state)
    with closing(Journal(opened.database)) as journal:
        if cancel:
            say(f"{journal.rounds.cancel().id}: cancelled; what was uploaded is kept")
            return
        if no_follow:
            say(f"{journal.rounds.ask(asked()).id}: asked for")
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
    from mos_server.round.follow import describe_influence, describe_round, model_trouble
    from mos_server.state.folder import is_served, open_state
    from mos_server.state.pause import pause_of
    from mos_server.state.people import describe_people
    from mos_server.state.reading import reading_journal
    from mos_server.state.records import PUBLISHED, describe_fusion
    from mos_server.state.rotation import warnings_of

    opened = open_state(state, only_read=True)
    running = _RUNNING[is_served(opened)].format(state=state, serve=command_line("mos-server", "serve", state))
    try:
        config = opened.config
    except StateError as error:
        say(f"server: {running}")
        say(str(error))
    else:
        say(f"server: {running}; {config.host}, ports {config.fleet_port} and {config.mos_port}")
        say(f"base model: {config.base} ({config.base_fingerprint[:12]})")
        for line in [*warnings_of(opened), *config.described()]:
            say(line)
        settings_of = command_line("mos-server", "settings", state)
        say(f"fusion of rounds to come: {describe_fusion(config.fusion)} ({settings_of})")
    if pause := pause_of(opened):
        say(f"paused: {pause}")
    with reading_journal(opened) as journal:
        for line in describe_people(journal):
            say(line)
        rounds = journal.rounds.all()
        if not rounds:
            say(f"rounds: none yet (start one: {command_line('mos-server', 'round', state)})")
        for each in rounds:
            for line in [*describe_round(journal, each), *describe_influence(opened, each)]:
                say(line)
            if each.status == PUBLISHED and (trouble := model_trouble(opened, journal, each)):
                say(f"  {trouble}")
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
        if any(upload.own for upload in withdrawn):
            say(
                "its own changes are served no more, in older models either; copies fetched before cannot be called back"
            )
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
