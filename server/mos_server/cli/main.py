"""`mos-server`: invite participants, run rounds, fuse, export."""

from __future__ import annotations

import typer

from mos_common.exporting import command
from mos_common.shell import add_version, run
from mos_server.cli import audit, federation, forget, fuse, models, people, prune, rotate, serving

app = typer.Typer(
    name="mos-server",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run rounds that fuse many people's concepts into one model.",
)
add_version(app)

fuse.register(app)
federation.register(app)
serving.register(app)
models.register(app)
people.register(app)
rotate.register(app)
audit.register(app)
prune.register(app)
forget.register(app)
command.register(app)


def main() -> None:
    """Run the `mos-server` command."""
    run(app)
