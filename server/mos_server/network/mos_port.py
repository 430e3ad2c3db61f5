"""The public port of `mos.v1`: a gRPC server behind a front door.

The door takes care of connections (`door.py`), the calls of theirs (`calls.py`) and gRPC of what
lies between: streams, headers, frames. gRPC itself listens on a Unix socket in a private folder.
"""

from __future__ import annotations

import logging
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from mos_server.network.calls import CallLimits, Calls
from mos_server.network.door import Door
from mos_server.network.forwarding import forward_to
from mos_server.network.service import SERVICE, MosService
from mos_server.network.tls import ServerTls
from mos_server.state.pki import Pki

log = logging.getLogger(__name__)

_GRACE_S = 1.0
_OPTIONS = [
    # A request is a token, a key and a signature, or a name and a number.
    ("grpc.max_receive_message_length", 64 << 10),
    # A client makes one or two calls at a time; the others of a connection wait for their turn.
    ("grpc.max_concurrent_streams", 16),
    # A call is signed with a key of 300 bytes.
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.absolute_max_metadata_size", 8 << 10),
    # Nothing that we send or receive is compressed: a small message never becomes a large one.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.per_message_decompression", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # A client may ask every few seconds whether the line still holds.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]


@asynccontextmanager
async def mos_port(
    service: MosService, pki: Pki, listener: socket.socket, door: Door, limits: CallLimits | None = None
) -> AsyncIterator[None]:
    """Answer `mos.v1` on a listening socket within the block."""
    calls = Calls(service.methods, door, admitted=service.is_admitted, runs=service.runs, limits=limits or CallLimits())
    with tempfile.TemporaryDirectory(prefix="mos-") as folder:
        inside = Path(folder) / "mos.v1"
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((calls.handlers(SERVICE),))
        server.add_insecure_port(f"unix:{inside}")
        await server.start()
        try:
            async with door.listening(listener, ServerTls(pki, "h2").latest, forward_to(inside)):
                log.info("mos.v1 listens on port %d", listener.getsockname()[1])
                yield
        finally:
            await server.stop(_GRACE_S)
            calls.close()
