"""The operator's certificate authority, the server's certificate, and the model signing key.

Each federation has its own authority, whose certificate is in every kit: participants trust this
server and no other, whatever authorities their machines trust. `signing.key` is separate from TLS,
so that a model can be verified wherever it is copied.

ca.crt, ca.key             the authority; two certificates while a new one is announced
next-ca.key                the key of the announced authority
server.crt, server.key     what both public ports present
signing.key, signing.pub   what signs models
rotations.json             how all of this changed: see mos_common/rotation.py
next/                      a change that is written and not yet in place
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from mos_common.errors import StateError, TrustError
from mos_common.files import could_not_write, replacing_folder, write_atomically
from mos_common.rotation import Anchors, SigningKey, Statement, public_pem, read_history
from mos_server.state.certificates import certificate_authority, server_certificate

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
AUTHORITY, AUTHORITY_KEY, NEXT_AUTHORITY_KEY = "ca.crt", "ca.key", "next-ca.key"
CERTIFICATE, CERTIFICATE_KEY = "server.crt", "server.key"
SIGNING_KEY, SIGNING_PUBLIC, ROTATIONS = "signing.key", "signing.pub", "rotations.json"
_NEXT = "next"
_SECRET = 0o600


@dataclass(frozen=True)
class Pki:
    """The keys and certificates of a state folder."""

    folder: Path

    @property
    def authority(self) -> Path:
        """The certificate that kits carry; two while a new authority is announced."""
        return self.folder / AUTHORITY

    @property
    def certificate(self) -> Path:
        """The server's certificate, for both public ports."""
        return self.folder / CERTIFICATE

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.folder / CERTIFICATE_KEY

    def signing_key(self) -> SigningKey:
        """Return the key that signs published models: P-256, or Ed25519 before it was rotated.

        Raises:
            StateError: the key cannot be read, or is of another kind.

        """
        key = self._private_key(SIGNING_KEY)
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return key
        raise StateError(
            f"{self.folder / SIGNING_KEY} is neither a P-256 nor an Ed25519 key: restore the state folder from a backup"
        )

    def signing_key_pem(self) -> str:
        """Return the public half of the signing key as PEM, for kits."""
        return self._read(SIGNING_PUBLIC).decode()

    def authority_pem(self) -> str:
        """Return the authority's certificate as PEM, for kits."""
        return self._read(AUTHORITY).decode()

    def statements(self) -> tuple[Statement, ...]:
        """Return all rotation statements, earliest first.

        Raises:
            StateError: they cannot be read.

        """
        path = self.folder / ROTATIONS
        if not path.exists():
            return ()
        try:
            return read_history(self._read(ROTATIONS))
        except TrustError as error:
            raise StateError(f"{path} is damaged ({error}): restore it from a backup") from error

    def anchors(self, server_id: str) -> Anchors:
        """Return what kits say of whom to trust.

        Raises:
            StateError: the files cannot be read, or do not fit together.

        """
        statements = self.statements()
        if statements:  # the last one counts, even while the files beside it are being replaced
            last = statements[-1]
            anchors = Anchors(server_id, last.authority, last.signing_key, statements)
        else:
            anchors = Anchors(server_id, self.authority_pem(), self.signing_key_pem())
        try:
            return anchors.checked()
        except TrustError as error:
            raise StateError(
                f"{self.folder / ROTATIONS} does not fit the federation ({error}): restore pki/ from a backup"
            ) from error

    def authorities(self) -> list[x509.Certificate]:
        """Return the certificates of the authority, and of the announced one if there is one."""
        return x509.load_pem_x509_certificates(self._read(AUTHORITY))

    def issuer(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """Return the authority that certifies the server now: its certificate and its key.

        Raises:
            StateError: they cannot be read, or do not belong together.

        """
        return self._authority_of(AUTHORITY_KEY)

    def announced(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """Return the announced authority: its certificate and its key.

        Raises:
            StateError: as for `issuer`.

        """
        return self._authority_of(NEXT_AUTHORITY_KEY)

    def server_certificate(self) -> x509.Certificate:
        """Return the server's certificate."""
        return x509.load_pem_x509_certificate(self._read(CERTIFICATE))

    def trusted_here(self) -> bytes:
        """Return the authorities that processes of this machine accept from the server (PEM).

        A server's private port presents the certificate that was there when the round started.
        """
        texts = [self.authority_pem(), *(statement.authority for statement in self.statements()[-2:])]
        found = [each for text in texts for each in x509.load_pem_x509_certificates(text.encode())]
        return b"".join(dict.fromkeys(each.public_bytes(serialization.Encoding.PEM) for each in found))

    def install(self, files: Mapping[str, bytes]) -> None:
        """Replace files: after a crash either all of them are new, or none.

        Raises:
            StateError: they cannot be written. None is new then, or `complete` finishes the change.

        """
        self.complete()
        with replacing_folder(self.folder / _NEXT) as beside:
            beside.chmod(0o700)
            for name, data in files.items():
                write_atomically(beside / name, data, mode=_SECRET if name.endswith(".key") else 0o644)
        self.complete()

    def complete(self) -> None:
        """Finish a change that was interrupted, if any.

        Raises:
            StateError: a file cannot be put in place.

        """
        written = self.folder / _NEXT
        if not written.is_dir():
            return
        try:
            # Statements first: a model must not be signed by a key of which nobody has heard.
            for file in sorted(written.iterdir(), key=lambda file: (file.name != ROTATIONS, file.name)):
                file.replace(self.folder / file.name)
            shutil.rmtree(written)
        except OSError as error:
            raise could_not_write(written, error) from error

    def _authority_of(self, key_name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = self._private_key(key_name)
        for certificate in self.authorities():
            if isinstance(key, ec.EllipticCurvePrivateKey) and certificate.public_key() == key.public_key():
                return certificate, key
        raise StateError(
            f"{self.folder / key_name} is not the key of a certificate in {self.authority}: restore pki/ from a backup"
        )

    def _private_key(self, name: str) -> object:
        try:
            return serialization.load_pem_private_key(self._read(name), password=None)
        except ValueError as error:
            raise StateError(f"{self.folder / name} is damaged ({error}): restore it from a backup") from error

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise StateError(
                f"{self.folder / name} cannot be read ({error.strerror}): restore it from a backup, or make a new "
                "federation with mos-server init"
            ) from error


def create_pki(folder: Path, *hosts: str) -> Pki:
    """Create an authority, a certificate for `hosts` and loopback, and a P-256 signing key."""
    authority_key, signing_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = certificate_authority(authority_key)
    files = {
        AUTHORITY: certificate_pem(authority),
        AUTHORITY_KEY: private_pem(authority_key),
        SIGNING_KEY: private_pem(signing_key),
        SIGNING_PUBLIC: public_pem(signing_key).encode(),
        **certificate_files(hosts, authority, authority_key),
    }
    for name, data in files.items():
        write_atomically(folder / name, data, mode=_SECRET if name.endswith(".key") else 0o644)
    return Pki(folder)


def certificate_files(
    hosts: tuple[str, ...], authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey
) -> dict[str, bytes]:
    """Return a new server key and its certificate, by file name."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = server_certificate(key, hosts, authority, authority_key)
    return {CERTIFICATE: certificate_pem(certificate), CERTIFICATE_KEY: private_pem(key)}


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def private_pem(key: PrivateKey) -> bytes:
    """Return a private key as PEM, not encrypted: the state folder protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
