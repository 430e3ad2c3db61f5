"""HTTP/1.1 for strangers: uvicorn's protocol, with bounded headers and one request at a time."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mos_server.network.gate import INTERIM

# Flower's headers are a key, a time, a signature and versions: about 1 kB.
_HEADER_BYTES_AT_MOST = 16 << 10
_HEADERS_AT_MOST = 64


class StrictHttpProtocol(HttpToolsProtocol):
    """One connection. A request that breaks a bound is answered with 400 and the connection ends.

    uvicorn bounds neither the size of headers nor how many requests are queued in one connection.
    llhttp, which parses, refuses a second Content-Length and Content-Length beside chunks.
    """

    _unfinished: int | None = None  # bytes of a request whose headers are incomplete

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived; end the connection if the headers do not end."""
        super().data_received(data)
        if self._unfinished is not None and not self.transport.is_closing():
            self._unfinished += len(data)
            if self._unfinished > _HEADER_BYTES_AT_MOST:
                self.send_400_response("The headers are too large.")

    def on_message_begin(self) -> None:
        """Begin a request, unless the one before it is still being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            raise ValueError("a request was sent before the answer to the one before it")
        self._unfinished = 0
        super().on_message_begin()
        self.scope["state"][INTERIM] = self._send_interim

    def _send_interim(self) -> None:
        """Tell the other side that the request is being worked on (RFC 2518, 10.1)."""
        if not self.cycle.response_started and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 102 Processing\r\n\r\n")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header."""
        if len(self.headers) >= _HEADERS_AT_MOST or len(name) + len(value) > _HEADER_BYTES_AT_MOST:
            raise ValueError("too many or too large headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        super().on_headers_complete()
        self._unfinished = None


def http_protocol(application: Any) -> Any:
    """Return a function that makes the protocol of one connection to an ASGI application."""
    import uvicorn
    from uvicorn.server import ServerState

    config = uvicorn.Config(
        application,
        interface="asgi3",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        # The door closes idle connections.
        timeout_keep_alive=3600,
    )
    config.load()
    state = ServerState()
    return lambda connection: StrictHttpProtocol(config=config, server_state=state, app_state={})
