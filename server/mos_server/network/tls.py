"""What the ports present: the server's certificate, as it is on the disk when somebody connects.

`mos-server rotate` replaces the files while a server runs. New connections get the new certificate;
those that are open keep theirs to their end.
"""

from __future__ import annotations

import logging
import ssl
import time
from asyncio.sslproto import SSLProtocol
from pathlib import Path

from mos_common.outage import Outage
from mos_server.state.pki import Pki

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
# What asyncio reads of a connection before the next one has its turn, and the buffer that it holds
# for each. Its own 256 KiB are thousands of records of one byte, and 80 MB for 320 strangers.
SSLProtocol.max_size = 32 << 10
# While one of the two files is replaced they do not fit together.
_PATIENCE_S = 5.0


class ServerTls:
    """The TLS settings of a port that speaks `protocol`: "h2" or "http/1.1"."""

    def __init__(self, pki: Pki, protocol: str) -> None:
        self._files = pki.certificate, pki.key
        self._protocol = protocol
        self._seen = self._stamps()
        self.context = tls_context(*self._files, protocol)
        self._looked = time.monotonic()
        self._unusable = Outage(lambda line: log.error("%s", line), patience_s=_PATIENCE_S)

    def latest(self) -> ssl.SSLContext:
        """Return the settings with the certificate that is there now, or was a second ago."""
        if time.monotonic() - self._looked >= _LOOK_EVERY_S and self.renew():
            log.info("new connections get the new certificate of %s (%s)", self._files[0], self._protocol)
        return self.context

    def renew(self) -> bool:
        """Load the certificate if it was replaced; return whether it was.

        One that cannot be used is said, and the former one stays.
        """
        self._looked = time.monotonic()
        try:
            if (stamps := self._stamps()) == self._seen:
                return False
            self.context, self._seen = tls_context(*self._files, self._protocol), stamps
        except OSError as error:  # ssl.SSLError too
            self._unusable.report(f"{self._files[0]} cannot be used, going on with the former certificate: {error}")
            return False
        self._unusable.over(f"{self._files[0]} can be used")
        return True

    def _stamps(self) -> list[tuple[int, int]]:
        return [(found.st_ino, found.st_mtime_ns) for found in (file.stat() for file in self._files)]


def tls_context(certificate: Path, key: Path, protocol: str) -> ssl.SSLContext:
    """Return the TLS settings of a public port.

    Raises:
        OSError: the files cannot be read, or do not fit together (ssl.SSLError).

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols([protocol])
    context.load_cert_chain(certificate, key)
    return context
