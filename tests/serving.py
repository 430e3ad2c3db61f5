"""`mos.v1` as `mos-server serve` answers it, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mos_server.network.calls import CallLimits
from mos_server.network.door import Door, Limits
from mos_server.network.mos_port import mos_port
from mos_server.network.service import MosService
from mos_server.network.superlink import bind_port
from mos_server.state.pki import Pki


@contextmanager
def serving(
    service: MosService,
    pki: Pki,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: CallLimits | None = None,
    door: Limits | None = None,
) -> Iterator[int]:
    """Serve on loopback within the block; yield the port."""
    listener = bind_port(host, port)
    loop, stop, up = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    async def serve() -> None:
        async with mos_port(service, pki, listener, Door(door), limits):
            up.set()
            await stop.wait()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run, name="mos.v1 of a test")
    thread.start()
    assert up.wait(30)
    try:
        yield listener.getsockname()[1]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        listener.close()
