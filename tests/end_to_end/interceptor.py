"""A man in the middle with the federation's own certificate: it ends TLS and keeps every byte."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9


@dataclass(frozen=True)
class Request:
    """One HTTP/1.1 request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Call:
    """One gRPC call: its metadata and the messages that the client sent."""

    method: str
    metadata: dict[str, Any]
    messages: list[bytes] = field(default_factory=list)


@dataclass
class Relay:
    """What the clients of one federation sent, a buffer for each connection, and their calls."""

    pki: Path
    connections: dict[str, list[bytearray]] = field(default_factory=lambda: {"fleet": [], "mos": []})
    calls: list[Call] = field(default_factory=list)

    @contextmanager
    def between(self, *, fleet: tuple[int, int], mos: tuple[int, int]) -> Iterator[None]:
        """Relay both ports within the block; each is a pair of (port to listen on, real port)."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        behind, port = self._grpc_server(mos[1])
        servers = [
            asyncio.run_coroutine_threadsafe(self._listen(*pair), loop).result(10)
            for pair in (("fleet", fleet[0], fleet[1], self._trusting()), ("mos", mos[0], port, None))
        ]
        try:
            yield
        finally:
            for server in servers:
                loop.call_soon_threadsafe(server.close)
            behind.stop(0).wait()
            asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()

    async def _listen(self, name: str, port: int, real: int, trusting: ssl.SSLContext | None) -> asyncio.Server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pki / "server.crt", self.pki / "server.key")
        context.set_alpn_protocols(["h2"] if name == "mos" else ["http/1.1"])

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sent = bytearray()
            self.connections[name].append(sent)
            try:
                there = await asyncio.open_connection("127.0.0.1", real, ssl=trusting)
            except OSError:
                writer.close()
                return
            with suppress(asyncio.CancelledError):  # the relay has ended
                await asyncio.gather(_pump(reader, there[1], sent), _pump(there[0], writer, bytearray()))

        return await asyncio.start_server(connected, "127.0.0.1", port, ssl=context)

    def _trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.pki / "ca.crt"))

    def _grpc_server(self, real: int) -> tuple[grpc.Server, int]:
        """Start a server without TLS that writes every call down and passes it on."""
        credentials = grpc.ssl_channel_credentials((self.pki / "ca.crt").read_bytes())
        # A connection belongs to one key: each call goes on by a connection of its own.
        alone = [("grpc.use_local_subchannel_pool", 1)]

        class Everything(grpc.GenericRpcHandler):
            def service(inner, details: Any) -> Any:
                def pass_on(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
                    call = Call(details.method, dict(context.invocation_metadata()))
                    self.calls.append(call)
                    call.messages += requests  # whole before it goes on: a server that is away takes nothing
                    ours = [(key, value) for key, value in call.metadata.items() if key != "user-agent"]
                    with grpc.secure_channel(f"127.0.0.1:{real}", credentials, alone) as channel:
                        try:
                            sent = iter(call.messages)
                            answers = channel.stream_stream(details.method)(sent, metadata=ours, timeout=60)
                            context.send_initial_metadata(answers.initial_metadata())
                            yield from answers
                        except grpc.RpcError as error:
                            context.abort(error.code(), error.details())

                return grpc.stream_stream_rpc_method_handler(pass_on)

        server = grpc.server(futures.ThreadPoolExecutor(16), handlers=[Everything()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return server, port


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    try:
        while data := await reader.read(1 << 16):
            kept += data
            writer.write(data)
            await writer.drain()
    except (OSError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def http_requests(sent: bytes) -> Iterator[Request]:
    """Read a whole connection as HTTP/1.1; nothing of it may be left over."""
    while sent:
        head, rest = sent.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("ascii").split("\r\n")
        method, path, version = first.split(" ")
        assert (method, version) == ("POST", "HTTP/1.1")
        pairs = [line.split(": ", 1) for line in lines]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs)
        size = int(headers["content-length"])
        assert len(rest) >= size
        yield Request(path, headers, rest[:size])
        sent = rest[size:]


def http2_frames(sent: bytes) -> Iterator[tuple[int, bytes]]:
    """Read a whole connection as HTTP/2 frames; nothing of it may be left over."""
    assert sent.startswith(PREFACE)
    sent = sent[len(PREFACE) :]
    while sent:
        size, kind = int.from_bytes(sent[:3], "big"), sent[3]
        assert len(sent) >= 9 + size
        yield kind, sent[9 : 9 + size]
        sent = sent[9 + size :]
