"""Flood a port: `python flooding.py KIND PORT CONNECTIONS [KEY]`, until the process is killed.

    connect    TCP connections that are reset at once
    greet      the first message of a TLS handshake, and then a reset
    records    an HTTP request in TLS records of one byte, which does not end
    reset      HTTP/2 streams that are opened and reset (rapid reset)
    ping       HTTP/2 pings, whose answers are not read
    settings   HTTP/2 settings, whose acknowledgements are not read

CONNECTIONS run at a time, each begun again when it ends. With KEY, a node key that the server
admits, an HTTP/2 connection proves it by a call before it floods.
"""

from __future__ import annotations

import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6
END_STREAM, END_HEADERS = 1, 4
PER_SECOND = 1000


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def headers(fields: dict[str, str]) -> bytes:
    """HPACK without tables: each field as it is."""

    def text(value: str) -> bytes:
        size = len(value)
        if size < 127:
            return bytes([size]) + value.encode()
        rest, size = [], size - 127
        while size >= 128:
            rest.append(size % 128 + 128)
            size //= 128
        return bytes([127, *rest, size]) + value.encode()

    return b"".join(b"\0" + text(name) + text(value) for name, value in fields.items())


def of_call(method: str, metadata: tuple[tuple[str, str | bytes], ...] = ()) -> bytes:
    import base64

    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": f"/mos.v1.Mos/{method}",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    for name, value in metadata:
        fields[name] = value if isinstance(value, str) else base64.b64encode(value).decode()
    return headers(fields)


def described(key: Path) -> bytes:
    """The frames of a call that proves a key, on stream 1."""
    from mos_common import mos_pb2
    from mos_common.node_key import load_node_key, sign_call
    from mos_common.release import release_metadata

    request = mos_pb2.DescribeRequest(model="latest")
    metadata = (*sign_call(load_node_key(key), "Describe", request), *release_metadata())
    body = request.SerializeToString()
    message = b"\0" + struct.pack(">I", len(body)) + body
    return frame(HEADERS, END_HEADERS, 1, of_call("Describe", metadata)) + frame(DATA, END_STREAM, 1, message)


class Flood:
    """Connections to one port, at most PER_SECOND new ones in a second."""

    def __init__(self, port: int, key: Path | None) -> None:
        self.port, self.key = port, key
        self.sent = 0

    def raw(self) -> socket.socket:
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
        return raw

    def tls(self, protocol: str) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols([protocol])
        return context.wrap_socket(self.raw())

    def connect(self) -> None:
        self.raw().close()
        self.sent += 1

    def greet(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
        with suppress(ssl.SSLWantReadError):
            context.wrap_bio(coming, going).do_handshake()
        with self.raw() as raw:
            raw.sendall(going.read())
            self.sent += 1

    def records(self) -> None:
        with self.tls("http/1.1") as line:
            line.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\nx: ")
            while True:
                line.send(b"y")
                self.sent += 1

    def frames(self, some: Callable[[int], bytes]) -> None:
        with self.tls("h2") as line:
            line.sendall(PREFACE + frame(SETTINGS, 0, 0))
            if self.key:
                line.sendall(described(self.key))
                time.sleep(1)
            for number in range(1, 1 << 24):
                line.sendall(some(number))
                self.sent += 100

    def reset(self) -> None:
        call = of_call("Describe")
        pair = lambda stream: frame(HEADERS, END_HEADERS, stream, call) + frame(RST_STREAM, 0, stream, bytes(4))  # noqa: E731
        self.frames(lambda number: b"".join(pair(200 * number + 2 * each + 1) for each in range(100)))

    def ping(self) -> None:
        self.frames(lambda number: 100 * frame(PING, 0, 0, bytes(8)))

    def settings(self) -> None:
        self.frames(lambda number: 100 * frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535 + number % 2)))


def main() -> None:
    kind, port, connections, *key = sys.argv[1:]
    flood = Flood(int(port), Path(key[0]) if key else None)

    def again() -> None:
        while True:
            began = time.monotonic()
            with suppress(OSError):
                getattr(flood, kind)()
            time.sleep(max(0.0, int(connections) / PER_SECOND - (time.monotonic() - began)))

    for _ in range(int(connections)):
        threading.Thread(target=again, daemon=True).start()
    while True:
        before = flood.sent
        time.sleep(2)
        print(f"{kind}: {(flood.sent - before) / 2:.0f}/s", flush=True)


if __name__ == "__main__":
    main()
