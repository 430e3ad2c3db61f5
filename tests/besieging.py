"""Hold as many connections to a port as an attacker can: `python besieging.py PORT SOURCE SECONDS`.

Every connection that the server ends is opened again after `PAUSE_S`. With `--key FOLDER` (a node
key that the server admits) some of them send bodies slowly, and call without reading the answers.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import time
from pathlib import Path

from strangers import Node, request

PAUSE_S = 3.0
IDLE, GREETED, HALF, SLOW, UNREAD = 200, 200, 200, 40, 50


class Besieger:
    """Connections from one address to one port."""

    def __init__(self, port: int, source: str, until: float, key: Path | None) -> None:
        self.port, self.source, self.until = port, source, until
        self.node = Node(key) if key else None
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE
        self.opened = self.ended = 0

    async def hold(self, say: bytes, *, tls: bool = True, then: bytes = b"", every_s: float = 1.0) -> None:
        """Connect, say something, go on with `then` and read nothing; begin again when it ends."""
        while time.time() < self.until:
            try:
                settings = {"ssl": self.tls, "server_hostname": "127.0.0.1"} if tls else {}
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self.port, local_addr=(self.source, 0), limit=1 << 10, **settings
                )
                self.opened += 1
                writer.write(say)
                while time.time() < self.until and not reader.at_eof() and not writer.is_closing():
                    await asyncio.sleep(every_s)
                    writer.write(then)
                writer.transport.abort()
            except OSError:
                pass
            self.ended += 1
            await asyncio.sleep(PAUSE_S)

    async def besiege(self) -> None:
        """Hold everything at once."""
        waiting = [self.hold(b"", tls=False) for _ in range(IDLE)] + [self.hold(b"") for _ in range(GREETED)]
        waiting += [
            self.hold(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\nx: ", then=b"y") for _ in range(HALF)
        ]
        if self.node:
            signed = request("push-object", self.node.headers(), length=5 << 20)
            waiting += [self.hold(signed, then=b"y") for _ in range(SLOW)]
            answered = request("pull-messages", self.node.headers())
            waiting += [self.hold(answered, then=answered) for _ in range(UNREAD)]
        await asyncio.gather(*waiting)


def main() -> None:
    """Besiege, and print how many connections were opened and how many ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("source")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--key", type=Path)
    given = parser.parse_args()
    besieger = Besieger(given.port, given.source, time.time() + given.seconds, given.key)
    asyncio.run(besieger.besiege())
    print(f"{besieger.opened} opened, {besieger.ended} ended", flush=True)


if __name__ == "__main__":
    main()
