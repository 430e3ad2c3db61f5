"""The operator's certificate authority: whom a participant with a kit trusts."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mos_common.errors import StateError
from mos_server.state.certificates import alternative_names
from mos_server.state.pki import Pki, create_pki


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return create_pki(tmp_path_factory.mktemp("pki"), "fuse.example.org")


def handshake(pki: Pki, trusted: str, name: str) -> str | None:
    """Shake hands over a real socket: the TLS version, or the error's name."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(pki.certificate, pki.key)
    client_side = ssl.create_default_context(cadata=trusted)
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    server_side.wrap_socket(connection, server_side=True).close()
                except (ssl.SSLError, OSError):
                    return

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=5) as raw,
                client_side.wrap_socket(raw, server_hostname=name) as wrapped,
            ):
                return wrapped.version()
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        finally:
            thread.join()


@pytest.mark.parametrize("name", ["fuse.example.org", "localhost", "127.0.0.1"])
def test_a_kit_trusts_its_server_under_the_host_given_and_on_loopback(pki: Pki, name: str):
    assert handshake(pki, pki.authority_pem(), name) == "TLSv1.3"


def test_a_kit_trusts_no_other_name(pki: Pki):
    assert "mismatch" in handshake(pki, pki.authority_pem(), "other.example.org").lower()


def test_a_kit_of_another_federation_does_not_trust_this_server(pki: Pki, tmp_path: Path):
    other = create_pki(tmp_path, "fuse.example.org")
    assert "issuer" in handshake(pki, other.authority_pem(), "fuse.example.org")


def test_an_address_is_an_address_and_a_name_a_name():
    assert alternative_names("10.0.0.7")[0].value.exploded == "10.0.0.7"
    assert isinstance(alternative_names("fuse.example.org")[0], x509.DNSName)
    assert len(alternative_names("127.0.0.1")) == 3


def test_private_keys_are_for_their_owner_only(pki: Pki):
    for name in ("ca.key", "server.key", "signing.key"):
        assert stat.S_IMODE((pki.folder / name).stat().st_mode) == 0o600


def test_what_the_signing_key_signs_the_kit_verifies(pki: Pki):
    public = serialization.load_pem_public_key(pki.signing_key_pem().encode())
    signature = pki.signing_key().sign(b"manifest", ec.ECDSA(hashes.SHA256()))
    public.verify(signature, b"manifest", ec.ECDSA(hashes.SHA256()))
    assert public.curve.name == "secp256r1", "what OpenSSF model_signing verifies"


def test_a_missing_key_says_what_to_do(tmp_path: Path):
    with pytest.raises(StateError, match=r"signing\.key cannot be read .* restore it from a backup"):
        Pki(tmp_path).signing_key()
