"""The front door, with real sockets: time and number of connections, whoever holds them."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mos_server.network.connection import Connection, Inside, origin
from mos_server.network.door import Door, Limits
from mos_server.network.forwarding import forward_to
from mos_server.network.pace import Pace
from mos_server.network.tls import ServerTls
from mos_server.state.pki import Pki, create_pki

QUICK = Limits(proof_s=1.0, idle_s=1.0, unproven=6, unproven_per_address=4, per_key=3)


class Echo(asyncio.Protocol):
    """Prove the key that is named in what arrives, and answer with as many bytes as it asks for."""

    def __init__(self, door: Door, connection: Connection) -> None:
        self.door, self.name = door, connection.name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        key, size = data.decode().split()
        with self.door.call(self.name, key):
            self.transport.write(b"x" * int(size))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder = tmp_path_factory.mktemp("pki")
    return create_pki(folder, "127.0.0.1")


class Visitors:
    """Connections to one door."""

    def __init__(self, door: Door, port: int, pki: Pki) -> None:
        self.door, self.port = door, port
        self.tls = ssl.create_default_context(cafile=str(pki.authority))
        self.writers: list[asyncio.StreamWriter] = []

    async def tcp(self, source: str = "127.0.0.1") -> asyncio.StreamReader:
        """Connect and say nothing, not even TLS."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
        self.writers.append(writer)
        return reader

    async def greeted(self, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect and do the TLS handshake."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.tls, server_hostname="127.0.0.1", local_addr=(source, 0)
        )
        self.writers.append(writer)
        return reader, writer

    def leave(self) -> None:
        """Drop every connection."""
        for writer in self.writers:
            writer.transport.abort()

    async def proven(self, key: str, size: int = 1) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, prove a key and ask for `size` bytes; the first of them has come."""
        reader, writer = await self.greeted()
        writer.write(f"{key} {size}".encode())
        assert await reader.readexactly(1) == b"x"
        return reader, writer


def visit(pki: Pki, limits: Limits, act: Callable[[Visitors], Awaitable[None]], members: int = 0) -> None:
    async def run() -> None:
        door = Door(limits, members=lambda: members)
        async with listening(door, pki, lambda connection: Echo(door, connection)) as port:
            visitors = Visitors(door, port, pki)
            try:
                await asyncio.wait_for(act(visitors), 60)
            finally:
                visitors.leave()

    asyncio.run(run())


@asynccontextmanager
async def listening(door: Door, pki: Pki, inside: Inside) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with door.listening(listener, ServerTls(pki, "http/1.1").latest, inside):
            yield listener.getsockname()[1]


async def ends(reader: asyncio.StreamReader, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            while await reader.read(1 << 16):
                pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def test_who_never_begins_tls_is_closed(pki: Pki):
    async def act(visitors: Visitors) -> None:
        reader = await visitors.tcp()
        assert not await ends(reader, 0.5)
        assert await ends(reader, 3)
        assert len(visitors.door) == 0

    visit(pki, QUICK, act)


def test_who_stops_in_the_middle_of_the_handshake_is_closed(pki: Pki):
    async def act(visitors: Visitors) -> None:
        reader = await visitors.tcp()
        visitors.writers[-1].write(b"\x16\x03\x01\x02\x00\x01")
        assert await ends(reader, 3)

    visit(pki, QUICK, act)


def test_who_says_nothing_after_the_handshake_is_closed(pki: Pki):
    async def act(visitors: Visitors) -> None:
        reader, _ = await visitors.greeted()
        assert await ends(reader, 3)

    visit(pki, QUICK, act)


def test_connections_that_are_reset_at_once_push_nobody_out(pki: Pki):
    """They come all at once, and are gone before the door looks at them."""

    async def act(visitors: Visitors) -> None:
        honest = socket.create_connection(("127.0.0.1", visitors.port))
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", visitors.port)) as flood:
                flood.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reader, writer = await asyncio.open_connection(sock=honest, ssl=visitors.tls, server_hostname="127.0.0.1")
        visitors.writers.append(writer)
        writer.write(b"alice 1")
        assert await reader.readexactly(1) == b"x"

    visit(pki, Limits(proof_s=30, unproven_per_address=16), act)


def test_a_newcomer_gets_in_while_its_address_holds_everything(pki: Pki):
    """The oldest of those that are as far as the newcomer makes room."""

    async def act(visitors: Visitors) -> None:
        idle = [await visitors.tcp() for _ in range(20)]
        silent = [await visitors.greeted() for _ in range(20)]
        await visitors.proven("alice")
        closed = [await ends(reader, 0.1) for reader in idle]
        assert closed[:16] == [True] * 16
        assert sum([await ends(reader, 0.1) for reader, _ in silent]) >= 16

    visit(pki, Limits(proof_s=30, unproven_per_address=4), act)


def test_another_address_keeps_its_connections(pki: Pki):
    async def act(visitors: Visitors) -> None:
        honest, _ = await visitors.greeted("127.0.0.2")
        crowd = [await visitors.greeted(f"127.0.0.{number}") for number in (3, 3, 3, 4, 4, 5, 5, 6)]
        assert not await ends(honest, 0.2)
        assert sum([await ends(reader, 0.1) for reader, _ in crowd]) == 3

    visit(pki, Limits(proof_s=30, unproven=6, unproven_per_address=4), act)


def test_a_proven_connection_is_not_counted_against_its_address(pki: Pki):
    async def act(visitors: Visitors) -> None:
        reader, writer = await visitors.proven("alice")
        for _ in range(20):
            await visitors.greeted()
        writer.write(b"alice 1")
        assert await reader.readexactly(1) == b"x"

    visit(pki, Limits(proof_s=30, unproven_per_address=4), act)


def test_all_members_may_come_from_one_address_at_the_same_moment(pki: Pki):
    """A server was started again: nobody has proved anything yet, each opens two connections."""

    async def act(visitors: Visitors) -> None:
        members = [await visitors.greeted() for _ in range(2 * 20)]
        for number, (reader, writer) in enumerate(members):
            writer.write(f"member-{number // 2} 1".encode())
            assert await reader.readexactly(1) == b"x"

    visit(pki, Limits(proof_s=30, unproven=6, unproven_per_address=4), act, members=20)


def test_a_key_holds_few_connections(pki: Pki):
    async def act(visitors: Visitors) -> None:
        first, *others = [await visitors.proven("alice") for _ in range(4)]
        bob, _ = await visitors.proven("bob")
        assert await ends(first[0], 1)
        assert [await ends(reader, 0.1) for reader, _ in others] == [False] * 3
        assert not await ends(bob, 0.1)

    visit(pki, Limits(idle_s=30, per_key=3), act)


def test_an_idle_connection_is_closed_after_its_call(pki: Pki):
    async def act(visitors: Visitors) -> None:
        reader, _ = await visitors.proven("alice")
        assert not await ends(reader, 0.5)
        assert await ends(reader, 3)

    visit(pki, QUICK, act)


def test_a_barred_key_loses_its_connections_at_once(pki: Pki):
    async def act(visitors: Visitors) -> None:
        alice, _ = await visitors.proven("alice")
        bob, _ = await visitors.proven("bob")
        visitors.door.bar("alice")
        assert await ends(alice, 1)
        assert not await ends(bob, 0.2)

    visit(pki, Limits(), act)


def test_a_connection_belongs_to_one_key(pki: Pki):
    async def act(visitors: Visitors) -> None:
        reader, writer = await visitors.proven("alice")
        writer.write(b"bob 1")
        assert await ends(reader, 1)

    visit(pki, Limits(), act)


def test_what_is_not_read_ends_the_connection(pki: Pki, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mos_server.network.connection.Pace", lambda: Pace(rate=1 << 20, grace_s=1.0))

    async def act(visitors: Visitors) -> None:
        await visitors.proven("alice", 64 << 20)
        async with asyncio.timeout(10):
            while len(visitors.door):
                await asyncio.sleep(0.1)

    visit(pki, Limits(idle_s=0.5), act)


def test_what_is_read_slowly_arrives_whole(pki: Pki, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mos_server.network.connection.Pace", lambda: Pace(rate=1 << 17, grace_s=1.0))

    async def act(visitors: Visitors) -> None:
        size = 4 << 20
        reader, _ = await visitors.proven("alice", size)
        for _ in range(size // (1 << 18)):
            await reader.read(1 << 18)
            await asyncio.sleep(0.15)
        assert len(visitors.door) == 1

    visit(pki, Limits(idle_s=5.0), act)


def test_forwarded_bytes_arrive_both_ways_under_a_name_of_their_own(pki: Pki, tmp_path_factory):
    async def run() -> None:
        folder = Path(tmp_path_factory.mktemp("s"))
        service, names = folder / "service", list[str]()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            name = f"unix:{writer.get_extra_info('peername')}"
            names.append(name)
            with door.call(name, "alice"):
                asked = await reader.readexactly(3 << 20)
                writer.write(asked[::-1])
                await writer.drain()
            writer.close()

        door = Door(Limits(proof_s=5))
        server = await asyncio.start_unix_server(answer, str(service))
        async with server, listening(door, pki, forward_to(service)) as port:
            visitors = Visitors(door, port, pki)
            reader, writer = await visitors.greeted()
            assert names == []  # the service hears of nobody who says nothing
            sent = bytes(range(256)) * (3 << 12)
            writer.write(sent)
            assert await reader.read(-1) == sent[::-1]
            assert names == [f"unix:{folder}/c0"]
            visitors.leave()

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize(
    ("address", "counted_as"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_subscriber_is_one_address(address: str, counted_as: str):
    assert origin(address) == counted_as


def test_a_pace_is_kept_in_every_stretch():
    pace = Pace(rate=10, grace_s=10)
    assert not pace.too_slow(0, idle=False, now=0)
    assert not pace.too_slow(99, idle=False, now=9)
    assert not pace.too_slow(100, idle=False, now=10)
    assert not pace.too_slow(150, idle=False, now=19)
    assert pace.too_slow(150, idle=False, now=21)


def test_who_has_nothing_to_move_is_not_slow():
    pace = Pace(rate=10, grace_s=10)
    assert not pace.too_slow(0, idle=False, now=0)
    assert not pace.too_slow(5, idle=True, now=50)
    assert not pace.too_slow(5, idle=False, now=60)
    assert pace.too_slow(5, idle=False, now=71)
