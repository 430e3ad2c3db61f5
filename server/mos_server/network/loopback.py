"""Applications for this machine alone, each in a thread of the server's process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from mos_common.errors import NetworkError
from mos_common.pages.serving import LOOPBACK, listen, server_of

_ENDS_WITHIN_S = 5.0


def at_home() -> Middleware:
    """Return the check that a request names this machine, and not what a stranger's DNS says."""
    return Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"], www_redirect=False)


def listen_on(port: int, flag: str) -> socket.socket:
    """Return a socket that listens on a loopback port; 0 is any free one.

    Raises:
        NetworkError: the port is in use; the message names the flag.

    """
    try:
        return listen(port)
    except NetworkError as error:
        reason = str(error).partition(": give another")[0]
        raise NetworkError(
            f"{reason}: stop what uses it (ss -ltnp 'sport = :{port}'), or give another {flag}"
        ) from error


@contextmanager
def serving(application: ASGIApp, listener: socket.socket) -> Iterator[None]:
    """Serve an application on a listening socket within the block, and close it."""
    server = server_of(application)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="loopback port", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_ENDS_WITHIN_S)
        listener.close()
