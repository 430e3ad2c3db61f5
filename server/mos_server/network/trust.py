"""Rotation statements for participants, who fetch them while they are joined."""

from __future__ import annotations

from mos_common import mos_pb2
from mos_server.state.pki import Pki


def trust_reply(pki: Pki) -> mos_pb2.TrustReply:
    """Return all rotation statements, earliest first; they are read anew for each call.

    Raises:
        StateError: they cannot be read.

    """
    return mos_pb2.TrustReply(statements=[statement.to_bytes() for statement in pki.statements()])
