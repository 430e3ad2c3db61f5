"""The front door of a public port: who may hold a connection, and for how long.

A connection costs memory whatever it says, so the door limits connections in time and in number
before anything behind it reads a byte. It accepts TCP, does the TLS handshake, and hands the
decrypted connection to a protocol behind it. What is behind it tells the door when a connection
has proved a key, with `call`. The rules:

- a connection that proves no key within `proof_s` is closed, whatever it does meanwhile
- an address holds few connections that have proved nothing; the oldest makes room for a newcomer,
  so that a newcomer always gets in
- a connection that has proved a key counts for that key, and no longer for its address
- between two calls it may be idle for `idle_s`; while a call lasts, the call has its own deadline
- what is sent to the other side must be read at a least rate
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from mos_server.network.connection import Connection, Inside, Threshold, Tls

log = logging.getLogger(__name__)

_SWEEP_EVERY_S = 0.5
# What lies in the kernel's buffer counts as read: keep it small beside what a slow line reads
# in `idle_s`.
_KERNEL_BUFFER_BYTES = 128 << 10
_OUT_OF_SOCKETS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True)
class Limits:
    """The limits of one door, in seconds and connections.

    proof_s: from accepting a connection to its first call with a proven key.
    idle_s: between two calls of a connection that has proved a key.
    unproven, unproven_per_address: connections at most that have proved no key. Connections that
        have not finished the TLS handshake and those that have are counted each by themselves.
    unproven_per_member: so many more for each admitted key: all participants may be behind one
        address, and connect at the same moment when a server was started again. A SuperNode opens
        two connections at a time.
    per_key: connections at most that have proved one key.
    """

    proof_s: float = 10.0
    idle_s: float = 60.0
    unproven: int = 256
    unproven_per_address: int = 64
    unproven_per_member: int = 2
    per_key: int = 8


class Door:
    """The connections of one public port. All methods belong to the event loop's thread."""

    def __init__(
        self,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        members: Callable[[], int] = lambda: 0,
    ) -> None:
        """`members` returns how many keys are admitted."""
        self._limits = limits or Limits()
        self._clock = clock
        self._members = members
        # In the order of arrival: the first is the oldest.
        self._connections: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._connections)

    @contextmanager
    def call(self, name: Hashable, key: str) -> Iterator[None]:
        """Answer a call that has proved `key`, on the connection with this name.

        The name is the other side's (address, port), unless the protocol behind the door renamed
        the connection.
        """
        connection = next((each for each in self._connections if each.name == name), None)
        if connection is None:  # it has just been closed: nobody will read the answer
            yield
            return
        if connection.key not in (None, key):  # a connection belongs to one key
            self._close([connection])
            yield
            return
        connection.key = key
        connection.calls += 1
        try:
            self._make_room(connection)
            yield
        finally:
            connection.calls -= 1
            connection.until = self._clock() + self._limits.idle_s

    def bar(self, key: str) -> None:
        """Close every connection that has proved this key."""
        self._close(each for each in self._connections if each.key == key)

    @asynccontextmanager
    async def listening(self, listener: socket.socket, tls: Tls, inside: Inside) -> AsyncIterator[None]:
        """Accept connections on a listening socket; close them all at the end.

        `tls` is asked for the settings of each new connection.
        """
        listener.setblocking(False)
        tasks = [asyncio.create_task(self._accept(listener, tls, inside)), asyncio.create_task(self._sweep())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._close(self._connections)

    async def _accept(self, listener: socket.socket, tls: Tls, inside: Inside) -> None:
        loop = asyncio.get_running_loop()
        welcoming: set[asyncio.Task[None]] = set()
        while True:
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _OUT_OF_SOCKETS:
                    log.error("no connection can be accepted (%s): closing the oldest one", error.strerror)
                    self._close(list(self._connections)[:1])
                    await asyncio.sleep(0.1)
                continue
            task = asyncio.create_task(self._welcome(accepted, address, tls, inside))
            welcoming.add(task)
            task.add_done_callback(welcoming.discard)
            # Let the others get on: those of a flood end by themselves before they count.
            await asyncio.sleep(0)

    async def _welcome(self, accepted: socket.socket, address: tuple[Any, ...], tls: Tls, inside: Inside) -> None:
        """Count a connection, do the TLS handshake, and hand it to the protocol behind the door."""
        loop = asyncio.get_running_loop()
        with suppress(OSError):  # it may be gone already
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BUFFER_BYTES)
        raw, _ = await loop.connect_accepted_socket(asyncio.Protocol, accepted)
        connection = Connection(raw, address, self._clock() + self._limits.proof_s)
        self._connections[connection] = None
        self._make_room(connection)
        threshold = Threshold(connection, self._connections)
        try:
            app = await loop.start_tls(
                raw, threshold, tls(), server_side=True, ssl_handshake_timeout=self._limits.proof_s
            )
        except OSError:  # no TLS, or none in time
            app = None
        if app is None or raw.is_closing():
            self._connections.pop(connection, None)
            return
        connection.greet(app)
        self._make_room(connection)
        threshold.lead_to(inside(connection), app)

    def _make_room(self, newcomer: Connection) -> None:
        """Close the oldest of those counted with a newcomer if they are too many."""
        limits = self._limits
        more = limits.unproven_per_member * self._members()
        others = [each for each in self._connections if each is not newcomer and each.group == newcomer.group]
        allowed = limits.per_key if newcomer.key else limits.unproven_per_address + more
        self._close(others[: max(0, len(others) + 1 - allowed)])
        alike = [each for each in self._connections if not each.key and each.greeted == newcomer.greeted]
        if not newcomer.key and len(alike) > limits.unproven + more:  # whoever holds most gives way
            [(most, _)] = Counter(each.origin for each in alike).most_common(1)
            self._close([each for each in alike if each.origin == most and each is not newcomer][:1])

    def _close(self, connections: Iterable[Connection]) -> None:
        for each in list(connections):
            self._connections.pop(each, None)
            each.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            now = self._clock()
            self._close([each for each in self._connections if each.overstays(now)])
