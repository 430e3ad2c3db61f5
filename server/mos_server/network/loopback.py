"""Applications on a loopback port, in a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from mos_server.network.superlink import bind_port

LOOPBACK = "127.0.0.1"
_ENDS_WITHIN_S = 5.0


def at_home() -> Middleware:
    """Return the check that a request names this machine, and not what a stranger's DNS says."""
    return Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"], www_redirect=False)


@contextmanager
def serving(application: Any, port: int) -> Iterator[int]:
    """Serve an ASGI application on a loopback port within the block, and yield the port's number.

    Port 0 is any free one.

    Raises:
        NetworkError: the port is in use.

    """
    listener = bind_port(LOOPBACK, port)
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="loopback port", daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(_ENDS_WITHIN_S)
        listener.close()
