"""A certificate that is replaced while a server runs: both ports, and the round's process."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from mos_server.network.service import MosService
from mos_server.network.tls import ServerTls
from mos_server.state.journal import Journal
from mos_server.state.pki import Pki, create_pki
from mos_server.state.rotation import announce_authority, finish_authority, rotate_certificate
from serving import serving
from strangers import Node, Running, request, status_of, tls


def presented(connection: ssl.SSLSocket) -> x509.Certificate:
    return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")


def eventually(connect: Callable[[], socket.socket], certificate: x509.Certificate) -> float:
    """Return after how many seconds a new connection is shown the certificate."""
    began = time.monotonic()
    while True:
        with connect() as connection:
            if presented(connection) == certificate:
                return time.monotonic() - began
        assert time.monotonic() - began < 30
        time.sleep(0.1)


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("alice"))


@pytest.fixture
def running(tmp_path: Path, alice: Node) -> Iterator[Running]:
    running = Running(tmp_path / "state", {alice.digest})
    running.superlink.register(alice.pem, "alice")
    yield running
    running.stop()


def test_new_connections_get_the_new_certificate_and_open_ones_go_on(running: Running, alice: Node):
    ask = request("pull-messages", alice.headers())
    with running.connect() as before:
        before.sendall(ask)
        assert status_of(before) is not None
        rotate_certificate(running.state)
        new = running.state.pki.server_certificate()
        assert eventually(running.connect, new) < 10
        assert presented(before) != new
        before.sendall(request("pull-messages", alice.headers()))
        assert status_of(before) is not None


def test_the_private_port_changes_when_the_next_round_starts(running: Running):
    """A round's process trusts the authorities that were there when it started."""
    announce_authority(running.state)
    finish_authority(running.state)
    pki = running.state.pki
    authorities = running.state.path / "trusted"
    authorities.write_bytes(pki.trusted_here())
    assert eventually(lambda: tls(authorities, running.superlink.public_port), pki.server_certificate()) < 10
    with tls(authorities, running.private_port) as of_an_earlier_round:
        assert presented(of_an_earlier_round) != pki.server_certificate()
    running.superlink.start_run()
    with tls(authorities, running.private_port) as of_this_round:
        assert presented(of_this_round) == pki.server_certificate()


def test_enrolment_and_downloads_get_it_too(tmp_path: Path, running: Running):
    state = running.state
    journal = Journal(state.database)
    with serving(MosService(state, journal, lambda pem, name: None), state.pki) as port:
        rotate_certificate(state)
        new = state.pki.server_certificate()
        assert eventually(lambda: tls(state.pki.authority, port), new) < 10
    journal.close()


def test_files_that_do_not_fit_together_are_not_used(tmp_path: Path):
    create_pki(tmp_path / "pki", "127.0.0.1")
    create_pki(tmp_path / "other", "127.0.0.1")
    pki, other = Pki(tmp_path / "pki"), Pki(tmp_path / "other")
    settings = ServerTls(pki, "h2")
    before = settings.context
    pki.key.write_bytes(other.key.read_bytes())
    settings.renew()
    assert settings.context is before
    pki.key.unlink()
    settings.renew()
    assert settings.context is before
    for file, name in ((other.key, pki.key), (other.certificate, pki.certificate)):
        name.write_bytes(file.read_bytes())
    settings.renew()
    assert settings.context is not before
