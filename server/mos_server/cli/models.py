"""The operator's commands for models: hold one back, publish one, look at its contact sheet."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from mos_common.commands import command_line
from mos_common.options import Device, Dtype
from mos_common.shell import say
from mos_server.cli.settings import StateFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from mos_common.base_model import Base
    from mos_server.state.folder import State


def register(app: typer.Typer) -> None:
    """Add the commands to `mos-server`."""
    app.command("hold-back", epilog="Example: mos-server hold-back federation")(hold_back)
    app.command(epilog="Example: mos-server publish federation round-003")(publish)
    app.command(epilog="Example: mos-server sheet federation round-003")(sheet)


def hold_back(state: StateFolder) -> None:
    """Hold the model of the running round back: it is made and scored, and you publish it."""
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal

    with closing(Journal(open_state(state).database)) as journal:
        held = journal.rounds.hold_back()
    publish_it = command_line("mos-server", "publish", state, held.id)
    say(f"{held.id}: its model will be held back. Publish it then: {publish_it}")


def publish(
    state: StateFolder,
    round_id: Annotated[
        str | None,
        typer.Argument(metavar="ROUND", help="The round, such as round-003.", show_default="the last one held back"),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Publish the model of a round that is held back."""
    from mos_server.round.holding import publish_held
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal

    opened = open_state(state)
    with closing(Journal(opened.database)) as journal:
        round_, folder = publish_held(opened, journal, round_id, _loading(opened, device, dtype))
    say(f"{round_.id}: published: {folder}")


def sheet(
    state: StateFolder,
    round_id: Annotated[
        str | None,
        typer.Argument(metavar="ROUND", help="The round, such as round-003.", show_default="the last one published"),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw what a round's model makes of each concept, beside the concept alone and the average.

    Pictures that are there already are kept. The operator's page shows the same sheet.
    """
    from mos_common.errors import RequestError
    from mos_server.models.sheet import draw_sheet
    from mos_server.state.folder import open_state
    from mos_server.state.journal import Journal

    opened = open_state(state)
    with closing(Journal(opened.database)) as journal:
        latest = journal.rounds.latest_published() if round_id is None else journal.rounds.get(round_id)
        if latest is None:
            raise RequestError("no round is published yet: name one whose candidate is there")
        drawn = draw_sheet(
            opened, journal, latest.id, _loading(opened, device, dtype), lambda line: say(line, error=True)
        )
    say(f"{drawn.folder}: the contact sheet of {latest.id}")


def _loading(state: State, device: str | None, dtype: str | None) -> Callable[[], Base]:
    def load() -> Base:
        from mos_common.base_model import load_base

        return load_base(state.config.base, device=device, dtype=dtype)

    return load
