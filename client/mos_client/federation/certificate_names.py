"""Say which names a server's certificate is for, when it is not for the one that was dialled."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from mos_common.kit import Kit

_LOOK_S = 5.0


def other_names(kit: Kit) -> str:
    """Return the names in the certificate of the kit's server if its own is not one; else "".

    The certificate is read over a connection that checks the authority and not the name, and on
    which nothing is sent.
    """
    host, _, port = kit.mos.rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.create_default_context(cadata=kit.ca)
        context.check_hostname = False
        with (
            socket.create_connection((host, int(port)), timeout=_LOOK_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            certificate: dict[str, Any] = dict(connection.getpeercert() or {})
            names = [str(value) for _, value in certificate.get("subjectAltName", ())]
    except (OSError, ValueError, OverflowError):
        return ""
    return "" if not names or host in names else ", ".join(dict.fromkeys(names))
