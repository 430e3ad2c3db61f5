"""What the private port lets through to Flower: the calls of the process that runs a round.

The port is on loopback, which other users of the machine reach too. Each task has a secret token,
which its process got through a pipe and sends with every call.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from collections.abc import Mapping

from mos_common.errors import TrustError
from mos_server.network.gate import Headers

_FEW, _TEXT, _OBJECT = 64 << 10, 1 << 20, 6 << 20
TOKEN = b"flwr-task-token"
# The process of a round may still report its end while the next one starts.
_TOKENS_KEPT = 4


class RuntimePort:
    """The Runtime API for the processes of rounds."""

    calls: Mapping[str, int] = {
        "/v1/runtime/send-task-heartbeat": _FEW,
        "/v1/runtime/pull-task-input": _FEW,
        "/v1/runtime/push-task-output": _TEXT,
        "/v1/runtime/push-logs": _TEXT,
        "/v1/runtime/get-nodes": _FEW,
        "/v1/runtime/push-messages": _TEXT,
        "/v1/runtime/pull-messages": _FEW,
        "/v1/runtime/push-object": _OBJECT,
        "/v1/runtime/pull-object": _FEW,
        "/v1/runtime/confirm-message-received": _FEW,
    }
    passed = frozenset({TOKEN, b"flwr-package-name", b"flwr-package-version", b"flwr-component-name"})

    def __init__(self) -> None:
        self._tokens: deque[bytes] = deque(maxlen=_TOKENS_KEPT)

    def admit(self, token: str) -> None:
        """Admit the process that was given this token."""
        self._tokens.append(token.encode())

    def identify(self, headers: Headers) -> str:
        """Return a name for the process that sends an admitted token.

        Raises:
            TrustError: it sends none.

        """
        sent = headers.get(TOKEN, b"")
        if not any(hmac.compare_digest(sent, token) for token in self._tokens):
            raise TrustError("no token of a round's process")
        return hashlib.sha256(sent).hexdigest()

    def admits(self, key: str) -> bool:
        """Return True: a token is admitted until the next ones come."""
        return True

    def inspect(self, path: str, headers: Headers, body: bytes) -> None:
        """Let everything pass: the process of a round is ours."""
