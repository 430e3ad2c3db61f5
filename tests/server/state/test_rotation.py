"""The operator's side of rotation: files that change together, and warnings in time."""

from __future__ import annotations

import datetime as dt
import ssl
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from mos_common.errors import RequestError, StateError
from mos_common.rotation import check_signature, public_pem, sign
from mos_server.state.certificates import names_in
from mos_server.state.folder import ServerConfig, State, create_state, open_state
from mos_server.state.pki import Pki, private_pem
from mos_server.state.rotation import (
    announce_authority,
    finish_authority,
    rotate_certificate,
    rotate_signing_key,
    warnings_of,
)


@pytest.fixture
def state(tmp_path) -> State:
    config = ServerConfig(base="tiny", base_fingerprint="ab" * 32, host="fuse.example.org")
    return create_state(tmp_path / "state", config)


def contents(pki: Pki) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in pki.folder.iterdir() if file.is_file()}


def test_a_new_certificate_is_by_the_same_authority_and_no_statement_is_needed(state: State):
    before = contents(state.pki)
    rotate_certificate(state)
    after = contents(state.pki)
    assert {name for name in after if after[name] != before[name]} == {"server.crt", "server.key"}
    state.pki.server_certificate().verify_directly_issued_by(state.pki.issuer()[0])
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(state.pki.certificate, state.pki.key)
    assert stat.S_IMODE(state.pki.key.stat().st_mode) == 0o600


def test_a_server_that_moves_twice_keeps_all_its_names(state: State):
    for host in ("second.example.org", "10.0.0.7"):
        state = rotate_certificate(state, host)
    config = open_state(state.path).config
    assert config.hosts == ("10.0.0.7", "second.example.org", "fuse.example.org")
    assert {*config.hosts, "localhost"} <= set(names_in(state.pki.server_certificate()))
    assert [each.mos for each in state.pki.statements()] == ["second.example.org:9093", "10.0.0.7:9093"]


def test_one_more_name_is_no_move(state: State):
    state = rotate_certificate(state, also=["lan"])
    assert (state.config.host, state.config.also_names) == ("fuse.example.org", ("lan",))
    assert state.pki.statements() == ()
    with pytest.raises(RequestError, match="--also-name 'a b'"):
        rotate_certificate(state, also=["a b"])


def test_an_ed25519_key_of_0_1_0_hands_over_to_a_p256_key(state: State):
    old = ed25519.Ed25519PrivateKey.generate()
    (state.pki.folder / "signing.key").write_bytes(private_pem(old))
    (state.pki.folder / "signing.pub").write_text(public_pem(old))
    rotate_signing_key(state)
    key = state.pki.signing_key()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    check_signature(state.pki.signing_key_pem(), b"manifest", sign(key, b"manifest"))
    assert state.pki.anchors(state.config.server_id).signing_keys == (public_pem(key), public_pem(old))
    assert private_pem(old) not in contents(state.pki).values(), "the former key is erased"


def test_the_two_steps_of_an_authority_are_taken_in_order(state: State):
    with pytest.raises(RequestError, match="no new authority is announced"):
        finish_authority(state)
    announce_authority(state)
    with pytest.raises(RequestError, match="announced already"):
        announce_authority(state)
    rotate_certificate(state)  # between the steps the former one certifies
    former, _ = state.pki.issuer()
    state.pki.server_certificate().verify_directly_issued_by(former)
    finish_authority(state)
    (now,) = state.pki.authorities()
    state.pki.server_certificate().verify_directly_issued_by(now)
    assert state.pki.trusted_here().count(b"BEGIN CERTIFICATE") == 2, "the running server has the former certificate"
    assert "next-ca.key" not in contents(state.pki)
    with pytest.raises(RequestError, match="no new authority is announced"):
        finish_authority(state)


@pytest.mark.parametrize("stopped_after", [0, 1, 2])
def test_a_rotation_that_was_killed_is_completed(state: State, monkeypatch, stopped_after: int):
    """Killed when some of the new files were in place: the others follow at the next start."""
    moved, replace = [], Path.replace

    def dying(file: Path, target: Path) -> Path:
        if file.parent.name == "next":
            if len(moved) == stopped_after:
                raise KeyboardInterrupt
            moved.append(file.name)
        return replace(file, target)

    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            rotate_signing_key(state)
    Pki(state.pki.folder).complete()
    anchors = state.pki.anchors(state.config.server_id)
    assert len(anchors.statements) == 1
    assert anchors.signing_key == state.pki.signing_key_pem() == public_pem(state.pki.signing_key())
    assert not (state.pki.folder / "next").exists()


def test_statements_that_do_not_fit_the_federation_are_no_anchors(state: State):
    rotate_signing_key(state)
    with pytest.raises(StateError, match="does not fit the federation"):
        state.pki.anchors("0" * 32)
    (state.pki.folder / "rotations.json").write_text("[1]")
    with pytest.raises(StateError, match=r"rotations\.json is damaged .*restore it from a backup"):
        state.pki.anchors(state.config.server_id)


@pytest.mark.parametrize(
    ("years", "days", "said"),
    [(9, 0, []), (10, -80, ["expires in"] * 2), (10, 30, ["expired on"] * 2)],
)
def test_the_end_of_a_certificate_is_announced_in_time(state: State, years: int, days: int, said: list[str]):
    at = dt.datetime.now(dt.UTC) + dt.timedelta(days=365 * years + days)
    lines = warnings_of(state, at)
    assert [word for line, word in zip(lines, said, strict=True) if word in line] == said
    assert all("mos-server rotate" in line for line in lines)


def test_a_host_that_was_only_written_into_the_config_is_found(state: State):
    text = (state.path / "config.json").read_text()
    (state.path / "config.json").write_text(text.replace("fuse.example.org", "moved.example.org"))
    (line,) = warnings_of(open_state(state.path))
    assert "is for" in line
    assert "and not for moved.example.org of config.json: mos-server rotate" in line
