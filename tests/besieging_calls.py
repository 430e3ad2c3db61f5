"""Besiege port 9093 with calls: `python besieging_calls.py PORT CA KEY SECONDS HALF_OPEN UNREAD`.

It holds calls whose request never comes, and downloads that nobody reads, on connections of
sixteen calls each, and begins each again when it ends. KEY is an admitted participant's.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc

from mos_common import mos_pb2, mos_pb2_grpc
from mos_common.node_key import load_node_key, sign_call
from mos_common.release import release_metadata

PER_CONNECTION = 16
FILE = "adapter.safetensors"


class Never:
    """A request that does not come. Each has a thread of gRPC's, which ends with its call."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.over.wait()
        raise StopIteration


class Besieger:
    def __init__(self, port: str, authority: Path, key: Path) -> None:
        self._address = f"127.0.0.1:{port}"
        self._credentials = grpc.ssl_channel_credentials(authority.read_bytes())
        self._key = load_node_key(key)

    def channel(self) -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(self._address, self._credentials, options=options)

    def half_open(self, channel: grpc.Channel) -> grpc.Future:
        request = Never()
        call = channel.stream_unary("/mos.v1.Mos/Enrol").future(request)
        call.add_done_callback(lambda _: request.over.set())
        return call

    def unread(self, channel: grpc.Channel) -> grpc.Future:
        request = mos_pb2.FetchRequest(model="round-001", file=FILE)
        metadata = (*sign_call(self._key, "Fetch", request), *release_metadata())
        return mos_pb2_grpc.MosStub(channel).Fetch(request, metadata=metadata)

    def hold(self, seconds: float, half_open: int, unread: int) -> None:
        kinds = [self.half_open] * half_open + [self.unread] * unread
        held = []
        for number, kind in enumerate(kinds):
            if number % PER_CONNECTION == 0:
                channel = self.channel()
            held.append([kind, channel, kind(channel)])
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for each in held:
                if each[2].done():
                    with suppress(grpc.RpcError, ValueError):
                        each[2] = each[0](each[1])
            time.sleep(0.2)


if __name__ == "__main__":
    port, authority, key, seconds, half_open, unread = sys.argv[1:]
    Besieger(port, Path(authority), Path(key)).hold(float(seconds), int(half_open), int(unread))
