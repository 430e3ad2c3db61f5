"""Clients of a running SuperLink that say exactly what a test wants, byte for byte."""

from __future__ import annotations

import asyncio
import base64
import http.client
import socket
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import sign_message

from mos_common.node_key import create_node_key, key_digest, load_node_key, public_pem
from mos_server.network.superlink import SuperLink
from mos_server.state.folder import ServerConfig, State, create_state


class Running:
    """A SuperLink that listens, in a thread of its own."""

    def __init__(self, folder: Path, admitted: set[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.state: State = create_state(folder, ServerConfig(base="tiny", base_fingerprint="ab" * 32, fleet_port=port))
        self.admitted, self.seen, self.unstored = admitted, list[str](), list[str]()
        self.superlink = SuperLink(
            self.state,
            admitted=lambda key: key in self.admitted,
            saw=self.seen.append,
            unstored=self.unstored.append,
        )
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._listening.wait(30)

    async def _serve(self) -> None:
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        await self.superlink.serve(self._stop, self._listening.set)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def private_port(self) -> int:
        return int(self.superlink.private_address.rpartition(":")[2])

    def connect(self, port: int | None = None, source: str = "127.0.0.1") -> socket.socket:
        return tls(self.state.pki.authority, port or self.superlink.public_port, source)


def tls(authority: Path, port: int, source: str = "127.0.0.1") -> socket.socket:
    """Return a TLS connection that has said nothing yet."""
    context = ssl.create_default_context(cafile=str(authority))
    raw = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(source, 0))
    return context.wrap_socket(raw, server_hostname="127.0.0.1")


@dataclass
class Node:
    """A node key, and the requests that it signs."""

    folder: Path
    key: Any = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "node_key").exists():
            create_node_key(self.folder / "node_key")
        self.key = load_node_key(self.folder / "node_key")

    @property
    def pem(self) -> bytes:
        return public_pem(self.key)

    @property
    def digest(self) -> str:
        return key_digest(self.pem)

    def headers(self, **changes: str) -> list[tuple[str, str]]:
        """The headers of an honest call; `changes` replaces some ("" leaves one out)."""
        time = changes.pop("flwr_timestamp", now().isoformat())
        headers = {
            "host": "127.0.0.1",
            "content-type": "application/protobuf",
            "flwr-public-key": base64.b64encode(self.pem).decode(),
            "flwr-timestamp": time,
            "flwr-signature": base64.b64encode(sign_message(self.key, time.encode())).decode(),
        }
        headers |= {name.replace("_", "-"): value for name, value in changes.items()}
        return [(name, value) for name, value in headers.items() if value]


def request(call: str, headers: list[tuple[str, str]], body: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a request as bytes. `length` is what it says its body has; -1 leaves that out."""
    lines = [f"{name}: {value}" for name, value in headers]
    if length != -1:
        lines.append(f"content-length: {len(body) if length is None else length}")
    path = call if call.startswith("/") else f"/v1/fleet/{call}"
    return f"POST {path} HTTP/1.1\r\n".encode() + "\r\n".join([*lines, "", ""]).encode() + body


def status_of(connection: socket.socket) -> int | None:
    """Return the status of the next answer; None if the connection ended without one."""
    answer = http.client.HTTPResponse(connection)
    try:
        answer.begin()
        answer.read()
    except (ConnectionError, ssl.SSLError, http.client.HTTPException):
        return None
    return answer.status


def ended(connection: socket.socket, within_s: float) -> bool:
    """Return whether the other side ends the connection in time."""
    connection.settimeout(within_s)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True
