"""The `mos-bench` commands: each parses its flags, calls one function, prints one result."""

from __future__ import annotations

import typer

from mos_bench.cli import identity, influence, product, study
from mos_common.shell import add_version, run

app = typer.Typer(
    name="mos-bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run the whole product once, or measure it.",
)
add_version(app)
product.register(app)
identity.register(app)
influence.register(app)
study.register(app)


def main() -> None:
    """Run the `mos-bench` command."""
    run(app)
