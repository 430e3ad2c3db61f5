"""Which releases fit together, and what to tell people whose do not.

A client and a server say their release and a number at every call of `mos.v1`. The number counts
the incompatible changes of what travels between them, in `mos.v1` as well as in Flower's messages:
two releases with the same number understand each other. Releases up to 0.1.0 said neither.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mos_common.errors import RequestError

RELEASE = "0.2.0.dev0"
"""The version of the distribution; pyproject.toml reads it from here."""

PROTOCOL = 2
"""Raise it when an earlier release could not read a message, or would send another."""

RELEASE_KEY, PROTOCOL_KEY = "mos-release", "mos-protocol"
Metadata = Sequence[tuple[str, str | bytes]]

_RELEASE = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!-]{0,39}")
_PROTOCOL = re.compile(r"[0-9]{1,6}")


@dataclass(frozen=True)
class Release:
    """A release, and the number of the protocol that it speaks."""

    name: str
    protocol: int

    def fits(self, other: Release) -> bool:
        """Return whether the two understand each other."""
        return self.protocol == other.protocol


OURS = Release(RELEASE, PROTOCOL)
SILENT = Release("0.1.0 or earlier", 1)
"""A release that does not say which one it is."""


def release_metadata() -> tuple[tuple[str, str], ...]:
    """Return the gRPC metadata that says which release this is."""
    return ((RELEASE_KEY, OURS.name), (PROTOCOL_KEY, str(OURS.protocol)))


def release_in(metadata: Metadata) -> Release:
    """Return the release that the other side says it is.

    Raises:
        RequestError: it says two, or something that is no release.

    """
    said = [(key, value) for key, value in metadata if key in (RELEASE_KEY, PROTOCOL_KEY)]
    if not said:
        return SILENT
    values = dict(said)
    name, protocol = values.get(RELEASE_KEY), values.get(PROTOCOL_KEY)
    if (
        len(said) != 2
        or not (isinstance(name, str) and _RELEASE.fullmatch(name))
        or not (isinstance(protocol, str) and _PROTOCOL.fullmatch(protocol))
    ):
        raise RequestError("the call does not say clearly which release it comes from: install a release of this")
    return Release(name, int(protocol))


def advice_to_participant(client: Release, server: Release) -> str:
    """Return what a participant is told whose client does not fit the server."""
    pair = f"this client is release {client.name}, the server is release {server.name}, and they do not fit together"
    if client.protocol < server.protocol:
        return f"{pair}: install release {server.name} and run the same command again"
    return f"{pair}: ask the operator to install release {client.name}, or install release {server.name} here"


def advice_to_operator(participant: str, client: Release, server: Release) -> str:
    """Return what the operator of a server is told about a client that does not fit."""
    pair = f"{participant} runs release {client.name}, which does not fit release {server.name} of this server"
    if client.protocol < server.protocol:
        return f"{pair}: they are told to install {server.name}"
    return f"{pair}: install {client.name} here, or let them install {server.name}"
