"""`mos-server serve`: the ports of participants, and on request those of the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_common.errors import RequestError
from mos_common.options import Device, Dtype
from mos_common.shell import say
from mos_server.cli.settings import StateFolder


def register(app: typer.Typer) -> None:
    """Add the command to `mos-server`."""
    app.command(epilog="Example: mos-server serve federation --page")(serve)


def serve(
    state: StateFolder,
    device: Device = None,
    dtype: Dtype = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            min=0,
            max=65535,
            help="Loopback port for Prometheus metrics, health and readiness; 0: any free one.",
            show_default="none",
        ),
    ] = None,
    page: Annotated[
        bool, typer.Option("--page", help="Serve the operator's page on loopback, and print its addresses.")
    ] = False,
    page_port: Annotated[
        int,
        typer.Option("--page-port", min=0, max=65535, help="Port of the page.", show_default="any free one"),
    ] = 0,
    page_secret: Annotated[
        Path | None,
        typer.Option(
            "--page-secret",
            help="File with the secret that your proxy sends as X-Mos-Secret for those who may act.",
            show_default="addresses with tokens",
        ),
    ] = None,
    page_look_secret: Annotated[
        Path | None,
        typer.Option(
            "--page-look-secret",
            help="File with the secret that your proxy sends for those who may only look.",
            show_default="nobody only looks",
        ),
    ] = None,
    page_host: Annotated[
        list[str] | None,
        typer.Option(
            "--page-host",
            help="Host header under which your proxy is asked for the page; repeat it.",
            show_default="the loopback address",
        ),
    ] = None,
) -> None:
    """Serve participants and run rounds until Ctrl-C or SIGTERM.

    A round that was interrupted resumes at the next start.
    """
    from mos_server.page.opening import PageOptions
    from mos_server.serve import serve as serve_state
    from mos_server.state.folder import open_state
    from mos_server.state.rotation import warnings_of

    if not page and (page_port or page_secret or page_look_secret or page_host):
        raise RequestError("--page-port, --page-secret, --page-look-secret and --page-host say how --page is served")
    opened = open_state(state)
    config = opened.config

    for line in warnings_of(opened):
        say(line)

    def listening() -> None:
        say(f"serving {state} at {config.host}, ports {config.fleet_port} and {config.mos_port}; Ctrl-C stops it")

    serve_state(
        opened,
        listening,
        device=device,
        dtype=dtype,
        metrics_port=metrics_port,
        page=PageOptions.read(page_port, page_secret, page_look_secret, page_host or []) if page else None,
        announce=say,
    )
    say("stopped")
