"""A TCP line on loopback that can be cut, is slow, or calls from another loopback address."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field


@dataclass
class _Way:
    """One direction of all connections, and its rate."""

    bytes_per_s: float | None
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)
    _free: float = 0.0  # when all that was taken has got through

    def take(self, count: int) -> None:
        """Return when so many bytes have got through."""
        if self.bytes_per_s:
            with self._one_at_a_time:
                now = time.monotonic()
                if now - self._free > 1:  # the line was idle
                    self._free = now
                # Who is woken late on a busy machine makes up for it: the rate is the line's.
                self._free += count / self.bytes_per_s
                time.sleep(max(0.0, self._free - now))


class Relay:
    """Carries connections to one port of loopback over to another, `to`, while it is whole.

    port: the port that it listens on; any free one by default.
    source: the address that it calls from.
    up_bytes_per_s, down_bytes_per_s: the rates of the way there and the way back, of all
        connections together.

    A line that is cut carries nothing and answers nothing, as one whose cable was pulled: open
    connections stay open and silent, new ones are taken and hear nothing. Use it as a context, at
    whose end nothing of it is left.
    """

    def __init__(
        self,
        to: int,
        *,
        port: int = 0,
        source: str = "127.0.0.1",
        up_bytes_per_s: float | None = None,
        down_bytes_per_s: float | None = None,
    ) -> None:
        self._to, self._source = to, source
        self._up, self._down = _Way(up_bytes_per_s), _Way(down_bytes_per_s)
        self._slow = bool(up_bytes_per_s or down_bytes_per_s)
        self._whole = threading.Event()
        self._whole.set()
        self._opened: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.mend()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # else `accept` would wait on
        self._listener.close()
        for each in list(self._opened):
            each.close()

    def cut(self) -> None:
        """Let nothing through until `mend`."""
        self._whole.clear()

    def mend(self) -> None:
        """Carry again; connections that were cut are closed, as their ends have lost data."""
        self._whole.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._slow:  # else the kernel takes megabytes at once
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
                near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
            self._opened.append(near)
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._whole.wait()
        far = socket.socket()
        self._opened.append(far)
        try:
            if self._slow:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
            far.bind((self._source, 0))
            far.connect(("127.0.0.1", self._to))
        except OSError:  # the server has not started, or has ended
            near.close()
            far.close()
            return
        threading.Thread(target=self._copy, args=(near, far, self._up), daemon=True).start()
        threading.Thread(target=self._copy, args=(far, near, self._down), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, way: _Way) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2048 if way.bytes_per_s else 1 << 14):
                if not self._whole.is_set():  # these bytes are lost, and with them the connection
                    self._whole.wait()
                    break
                way.take(len(data))
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
