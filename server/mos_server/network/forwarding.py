"""Forward decrypted connections to a service on a Unix socket, for services with their own loop.

The service sees each connection under a name of its own, by which it tells the door who calls.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from contextlib import suppress
from pathlib import Path

from mos_server.network.connection import Connection, Inside


def forward_to(service: Path) -> Inside:
    """Return the protocol that forwards each connection to the socket at `service`.

    A connection is named "unix:PATH", which gRPC calls the peer. Its folder must be private: who
    reaches the socket is past the door.
    """
    numbers = itertools.count()

    def inside(connection: Connection) -> asyncio.Protocol:
        name = service.with_name(f"c{next(numbers)}")
        connection.name = f"unix:{name}"
        return _Outer(service, name)

    return inside


class _Outer(asyncio.Protocol):
    """The stranger's side. The service hears of a connection when its first byte arrives."""

    def __init__(self, service: Path, name: Path) -> None:
        self._service = service
        self._name = name
        self._early = bytearray()
        self._dialling: asyncio.Task[None] | None = None
        self._inner: _Inner | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._inner:
            return self._inner.transport.write(data)
        self._early += data
        if self._dialling is None:
            self.transport.pause_reading()
            self._dialling = asyncio.create_task(self._dial())

    async def _dial(self) -> None:
        near = socket.socket(socket.AF_UNIX)
        near.setblocking(False)
        try:
            near.bind(str(self._name))
            await asyncio.get_running_loop().sock_connect(near, str(self._service))
            _, inner = await asyncio.get_running_loop().create_unix_connection(lambda: _Inner(self), sock=near)
        except OSError:  # the service has stopped
            near.close()
            return self.transport.abort()
        finally:
            with suppress(OSError):
                self._name.unlink()
        self._inner = inner
        inner.transport.write(bytes(self._early))
        self._early.clear()
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._inner:
            self._inner.transport.abort()
        elif self._dialling:
            self._dialling.cancel()

    def pause_writing(self) -> None:
        if self._inner:
            self._inner.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._inner:
            self._inner.transport.resume_reading()


class _Inner(asyncio.Protocol):
    """The service's side."""

    def __init__(self, outer: _Outer) -> None:
        self._outer = outer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._outer.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._outer.transport.close()

    def pause_writing(self) -> None:
        self._outer.transport.pause_reading()

    def resume_writing(self) -> None:
        self._outer.transport.resume_reading()
