"""The flags that set fusion, the same on every command, and `mos-server settings`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from mos_common.files import canonical_json
from mos_common.flags import FiniteType
from mos_common.settings import describe_settings
from mos_common.shell import say
from mos_server.fusion.methods import METHODS
from mos_server.round.asking import changed_fusion

if TYPE_CHECKING:
    from click import Context, HelpFormatter

    from mos_server.fusion.settings import FusionSettings


class Published(StrEnum):
    """What is published of the concepts."""

    FUSED = "fused"
    OWN = "own"


StateFolder = Annotated[Path, typer.Argument(metavar="STATE", help="The server's state folder.")]
_RIVALS = ", ".join(METHODS[1:])
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help=f"How to merge: {METHODS[0]}, or one to compare with: {_RIVALS}.",
        show_default="the federation's, else gradient",
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a setting listed below; repeatable.",
        show_default="the federation's, else those listed",
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        metavar="TOKEN=NUMBER",
        help="How much a concept counts, such as '<alice/cat>=2'; repeatable.",
        show_default="1 each",
    ),
]
Workers = Annotated[
    str | None,
    typer.Option(
        "--workers",
        help="Record on: auto (every GPU here), N local workers, a Ray cluster (ray://host:10001), or here.",
        show_default="here",
    ),
]
KeepAll = Annotated[
    bool,
    typer.Option("--keep-all", help="Leave nobody out who ruins other concepts, is a copy, or is far louder."),
]
Ridge = Annotated[
    float | None,
    typer.Option("--ridge", click_type=FiniteType(), help="Short for --set ridge=NUMBER.", show_default="as --set"),
]
Preserve = Annotated[
    float | None,
    typer.Option(
        "--preserve", click_type=FiniteType(), help="Short for --set preserve=NUMBER.", show_default="as --set"
    ),
]


class ListsSettings(TyperCommand):
    """A command whose `--help` ends with every setting of every method."""

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the help. The settings are imported only now, since that takes a second."""
        self.epilog = "\n\n".join([*describe_methods(), *([self.epilog] if self.epilog else [])])
        super().format_help(ctx, formatter)


def describe_methods() -> Iterator[str]:
    """Yield a line for each method, and one for each of its settings."""
    from mos_server.fusion.methods import method_named

    yield "Settings (--set NAME=VALUE), with their defaults:"
    for name in METHODS:
        method = method_named(name)
        yield f"--method {name}: {method.help}"
        yield from (f"- {line}" for line in describe_settings(method.settings))


def settings(
    state: StateFolder,
    method: MethodName = None,
    sets: Sets = None,
    weight: Weights = None,
    workers: Workers = None,
) -> None:
    """List how this federation's rounds are fused, or change it for future rounds.

    Setting a value to its default, or a weight to 1, removes it from what is kept. A new --method
    starts from its own defaults.
    """
    from mos_server.fusion.settings import FusionSettings
    from mos_server.state.folder import keep_fusion, open_state
    from mos_server.state.journal import Journal
    from mos_server.state.records import describe_fusion

    opened = open_state(state)
    fusion = changed_fusion(opened.config.fusion, method=method, sets=sets, weights=weight, workers=workers)
    if fusion != dict(opened.config.fusion):
        keep_fusion(opened, fusion)
        with closing(Journal(opened.database)) as journal:
            journal.audit.add("settings changed", sealed={"settings": canonical_json(fusion).decode()})
        say(f"{state}: from now on rounds are fused with {describe_fusion(fusion)}")
        return
    for line in describe_kept(FusionSettings.from_json(fusion)):
        say(line)


def describe_kept(fusion: FusionSettings) -> Iterator[str]:
    """Yield a line for the method, each of its settings, each weight, and the workers."""
    yield f"method={fusion.of_method.method}"
    yield from describe_settings(fusion.of_method)
    for token, weight in fusion.weights.items():
        yield f"weight {token}={weight:g}"
    yield f"workers={fusion.workers or 'here'}"
    if fusion.keep_all:
        yield "keep_all=true"
