"""The operator's certificate authority, the server's certificate, and the model signing key.

Each federation has its own authority, whose certificate is in every kit: participants trust this
server and no other, whatever authorities their machines trust. `signing.key` is separate from TLS,
so that a model can be verified wherever it is copied.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mos_common.errors import StateError
from mos_common.files import write_atomically

# Kits pin the authority: a new one means new kits for all participants.
VALID = dt.timedelta(days=3650)
_SECRET = 0o600


@dataclass(frozen=True)
class Pki:
    """The keys and certificates of a state folder."""

    folder: Path

    @property
    def authority(self) -> Path:
        """The certificate that kits carry."""
        return self.folder / "ca.crt"

    @property
    def certificate(self) -> Path:
        """The server's certificate, for both public ports."""
        return self.folder / "server.crt"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.folder / "server.key"

    def signing_key(self) -> ed25519.Ed25519PrivateKey:
        """Return the key that signs published models.

        Raises:
            StateError: the key cannot be read, or is of another kind.

        """
        key = serialization.load_pem_private_key(self._read("signing.key"), password=None)
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise StateError(
                f"{self.folder / 'signing.key'} is not an Ed25519 key: restore the state folder from a backup"
            )
        return key

    def signing_key_pem(self) -> str:
        """Return the public half of the signing key as PEM, for kits."""
        return self._read("signing.pub").decode()

    def authority_pem(self) -> str:
        """Return the authority's certificate as PEM, for kits."""
        return self._read("ca.crt").decode()

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise StateError(
                f"{self.folder / name} cannot be read ({error.strerror}): restore it from a backup, or make a new "
                "federation with mos-server init"
            ) from error


def create_pki(folder: Path, host: str) -> Pki:
    """Create a certificate authority, a certificate for `host` and loopback, and a signing key."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate_authority(authority_key)
    server_key = ec.generate_private_key(ec.SECP256R1())
    certificate = _server_certificate(server_key, host, authority, authority_key)
    signing_key = ed25519.Ed25519PrivateKey.generate()
    signing_pem = signing_key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    keys: dict[str, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey] = {
        "ca.key": authority_key,
        "server.key": server_key,
        "signing.key": signing_key,
    }
    for name, key in keys.items():
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_atomically(folder / name, pem, mode=_SECRET)
    write_atomically(folder / "ca.crt", authority.public_bytes(serialization.Encoding.PEM))
    write_atomically(folder / "server.crt", certificate.public_bytes(serialization.Encoding.PEM))
    write_atomically(folder / "signing.pub", signing_pem)
    return Pki(folder)


def alternative_names(host: str) -> list[x509.GeneralName]:
    """Return the names in a certificate for `host`, and loopback for clients on this machine."""
    names: list[x509.GeneralName] = []
    for name in dict.fromkeys([host, "localhost", "127.0.0.1", "::1"]):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            names.append(x509.DNSName(name))
    return names


def _certificate_authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "federated mix-of-show: certificate authority")])
    return (
        _unsigned(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _server_certificate(
    key: ec.EllipticCurvePrivateKey,
    host: str,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    # A common name holds 64 characters, a host name up to 253: clients check the alternative names.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "federated mix-of-show: server")])
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _unsigned(name, authority.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternative_names(host)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority_id, critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _unsigned(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))  # a participant's clock may be behind
        .not_valid_after(now + VALID)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
