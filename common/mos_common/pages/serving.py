"""Serve a page on this machine alone."""

from __future__ import annotations

import logging
import socket
import webbrowser
from collections.abc import Callable
from threading import Thread

import uvicorn
from starlette.types import ASGIApp

from mos_common.errors import NetworkError

LOOPBACK = "127.0.0.1"
_IDLE_S = 30
_GRACE_S = 3


def listen(port: int = 0) -> socket.socket:
    """Return a socket that listens on loopback; port 0 takes a free one.

    Raises:
        NetworkError: the port is taken.

    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise NetworkError(f"port {port} cannot be used ({error.strerror}): give another --port") from error
    return listener


def hosts_of(listener: socket.socket) -> frozenset[str]:
    """Return the Host headers with which a browser of this machine asks for the page."""
    port = listener.getsockname()[1]
    return frozenset({f"{LOOPBACK}:{port}", f"localhost:{port}"})


def address_of(listener: socket.socket, token: str) -> str:
    """Return the address that opens the page."""
    return f"http://{LOOPBACK}:{listener.getsockname()[1]}/?token={token}"


def server_of(app: ASGIApp) -> uvicorn.Server:
    """Return a server for a page; `.run(sockets=[listener])` serves it until it is interrupted."""
    config = uvicorn.Config(
        app,
        log_level=logging.WARNING,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )
    return uvicorn.Server(config)


def open_browser(address: str, say: Callable[[str], None]) -> None:
    """Open the person's browser on an address, in a thread: some browsers do not return at once."""

    def opened() -> None:
        if not webbrowser.open(address):
            say("no browser could be opened: open the address by hand")

    Thread(target=opened, name="browser", daemon=True).start()
