"""One connection at the door, and what stands between it and the protocol behind the door."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable, Hashable
from typing import Any

from mos_server.network.pace import Pace

# For the last answer to be read.
_GOODBYE_S = 1.0


class Connection:
    """One connection at the door."""

    def __init__(self, raw: asyncio.Transport, address: tuple[Any, ...], until: float) -> None:
        self.name: Hashable = address[:2]
        self.origin = origin(address[0])
        self.until = until
        self.key: str | None = None
        self.greeted = False  # the TLS handshake is done
        self.calls = 0
        self.written = 0
        self._raw = raw
        self._app: asyncio.Transport | None = None
        self._pace = Pace()
        self._hung_up = False
        self._until_cut: float | None = None

    @property
    def group(self) -> Hashable:
        """What this connection is counted with."""
        return ("key", self.key) if self.key else (self.origin, self.greeted)

    def greet(self, app: asyncio.Transport) -> None:
        """Record that the TLS handshake is done."""
        self.greeted, self._app = True, app

    def close(self) -> None:
        """Cut the connection at once, whatever waits to be sent."""
        self._raw.abort()

    def hang_up(self) -> None:
        """Read nothing more of a stranger: the protocol behind the door has closed the connection.

        TLS would go on reading until the other side says goodbye.
        """
        if not self.key:
            self._hung_up = True
            self._raw.pause_reading()

    def overstays(self, now: float) -> bool:
        """Return whether the connection has to be closed now."""
        if self._hung_up:
            self._until_cut = self._until_cut or now + _GOODBYE_S
            return now > self._until_cut
        unread = self._raw.get_write_buffer_size() + (self._app.get_write_buffer_size() if self._app else 0)
        too_slow = self._pace.too_slow(self.written - unread, idle=unread == 0, now=now)
        if self.key and unread and not self.calls:
            self.until = max(self.until, now + 1)  # the answer is still being read
        return too_slow or (self.calls == 0 and now > self.until)


# Make the protocol that speaks with a decrypted connection.
Inside = Callable[[Connection], asyncio.Protocol]
Tls = Callable[[], ssl.SSLContext]


class Threshold(asyncio.Protocol):
    """Between the door and the protocol behind it, which is made after the handshake."""

    def __init__(self, connection: Connection, connections: dict[Connection, None]) -> None:
        self._connection = connection
        self._connections = connections
        self._inside: asyncio.Protocol | None = None
        self._early = bytearray()
        self._lost: list[Exception | None] = []

    def lead_to(self, inside: asyncio.Protocol, app: asyncio.Transport) -> None:
        """Connect the protocol behind the door, and hand on what has come before."""
        inside.connection_made(_CountingTransport(app, self._connection))
        self._inside, early = inside, bytes(self._early)
        if early:
            inside.data_received(early)
        for lost in self._lost:
            inside.connection_lost(lost)

    def data_received(self, data: bytes) -> None:
        """Hand on what came, or keep it until there is somebody."""
        if self._inside:
            self._inside.data_received(data)
        else:
            self._early += data

    def eof_received(self) -> bool | None:
        """Hand on that no more comes."""
        return self._inside.eof_received() if self._inside else None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and hand on its end."""
        self._connections.pop(self._connection, None)
        if self._inside:
            self._inside.connection_lost(exc)
        else:
            self._lost.append(exc)

    def pause_writing(self) -> None:
        """Hand on that the other side reads slowly."""
        if self._inside:
            self._inside.pause_writing()

    def resume_writing(self) -> None:
        """Hand on that it reads again."""
        if self._inside:
            self._inside.resume_writing()


class _CountingTransport(asyncio.Transport):
    """A transport that counts what is written to it."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        super().__init__()
        self._transport = transport
        self._connection = connection

    def write(self, data: Any) -> None:
        self._connection.written += len(data)
        self._transport.write(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()
        self._connection.hang_up()

    def abort(self) -> None:
        self._transport.abort()

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()


def origin(address: str) -> str:
    """Return whom an address is counted with: itself, or the /64 of an IPv6 address.

    One subscriber has a whole /64, and an IPv4 address may come as IPv6.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, 64), strict=False))
