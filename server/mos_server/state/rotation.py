"""Replace the keys and certificates of a federation without losing a participant.

The server's certificate changes at once: participants trust its authority. Authority and signing
key are pinned by participants, so a change is announced by a statement that the signing key in
force signs (`mos_common/rotation.py`); clients fetch statements, and kits carry them. A new
authority takes two steps: from the first on participants accept both, at the second the server
presents a certificate of the new one and the former is dropped.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import ec

from mos_common.commands import command_line
from mos_common.errors import RequestError, StateError
from mos_common.files import canonical_json
from mos_common.rotation import Anchors, public_pem
from mos_server.state.certificates import certificate_authority, names_in
from mos_server.state.folder import ServerConfig, State, check_hosts, keep_hosts
from mos_server.state.pki import (
    AUTHORITY,
    AUTHORITY_KEY,
    NEXT_AUTHORITY_KEY,
    ROTATIONS,
    SIGNING_KEY,
    SIGNING_PUBLIC,
    certificate_files,
    certificate_pem,
    private_pem,
)

WARN_BEFORE = dt.timedelta(days=90)


def rotate_certificate(state: State, host: str | None = None, also: Sequence[str] = ()) -> State:
    """Give the server a new key and certificate; with `host`, move it to that name.

    The names it had stay in the certificate, so participants reach it under either name. A move is
    announced by a statement.

    Raises:
        RequestError: a name is neither a host name nor an address.
        StateError: a file cannot be read or written.

    """
    state.pki.complete()
    config = state.config
    moved = config.moved(host or config.host, also)
    check_hosts(moved)
    files = certificate_files(moved.hosts, *state.pki.issuer())
    if moved.host != config.host:
        anchors = state.pki.anchors(config.server_id)
        files |= _stated(_rotated(state, moved, anchors.authority, anchors.signing_key))
    state.pki.install(files)
    return keep_hosts(state, moved) if moved != config else state


def announce_authority(state: State) -> None:
    """Create a new authority, and announce that participants shall accept both.

    Raises:
        RequestError: one is announced already.
        StateError: a file cannot be read or written.

    """
    state.pki.complete()
    if len(state.pki.authorities()) > 1:
        raise RequestError(
            "a new authority is announced already: put it into force with --authority --finish, before another"
        )
    anchors, key = state.pki.anchors(state.config.server_id), ec.generate_private_key(ec.SECP256R1())
    both = anchors.authority.rstrip("\n") + "\n" + certificate_pem(certificate_authority(key)).decode()
    rotated = _rotated(state, state.config, both, anchors.signing_key)
    state.pki.install({NEXT_AUTHORITY_KEY: private_pem(key), AUTHORITY: both.encode(), **_stated(rotated)})


def finish_authority(state: State) -> None:
    """Put the announced authority into force: the server's certificate is by it from now on.

    Raises:
        RequestError: none is announced.
        StateError: a file cannot be read or written.

    """
    state.pki.complete()
    if len(state.pki.authorities()) < 2:
        raise RequestError("no new authority is announced: announce one first, with --authority and no --finish")
    authority, key = state.pki.announced()
    pem = certificate_pem(authority)
    rotated = _rotated(state, state.config, pem.decode(), state.pki.anchors(state.config.server_id).signing_key)
    state.pki.install(
        {
            AUTHORITY: pem,
            AUTHORITY_KEY: private_pem(key),
            **certificate_files(state.config.hosts, authority, key),
            **_stated(rotated),
        }
    )
    (state.pki.folder / NEXT_AUTHORITY_KEY).unlink(missing_ok=True)


def rotate_signing_key(state: State) -> str:
    """Replace the signing key by a new P-256 key; return its public half as PEM.

    The former key signs the statement and is then erased: what it signed stays verifiable.

    Raises:
        StateError: a file cannot be read or written.

    """
    state.pki.complete()
    key = ec.generate_private_key(ec.SECP256R1())
    public = public_pem(key)
    rotated = _rotated(state, state.config, state.pki.anchors(state.config.server_id).authority, public)
    state.pki.install({SIGNING_KEY: private_pem(key), SIGNING_PUBLIC: public.encode(), **_stated(rotated)})
    return public


def warnings_of(state: State, now: dt.datetime | None = None) -> list[str]:
    """Return what the operator should do about certificates; what cannot be read is said, too."""
    try:
        return [*_expiring(state, now or dt.datetime.now(dt.UTC)), *_unnamed(state)]
    except StateError as error:
        return [str(error)]


def _expiring(state: State, at: dt.datetime) -> list[str]:
    lines = []
    authority, _ = state.pki.issuer()
    for what, certificate, flag in (
        ("authority's certificate", authority, "--authority"),
        ("server's certificate", state.pki.server_certificate(), "--certificate"),
    ):
        end = certificate.not_valid_after_utc
        if end - at < WARN_BEFORE:
            word = "expired" if end <= at else f"expires in {(end - at).days} days,"
            lines.append(
                f"the {what} {word} on {end:%Y-%m-%d}: {command_line('mos-server', 'rotate', state.path, flag)}"
            )
    return lines


def _unnamed(state: State) -> list[str]:
    """Return a line if config.json has a host that the server's certificate does not name."""
    named = {name.lower() for name in names_in(state.pki.server_certificate())}
    missing = [host for host in state.config.hosts if host.lower() not in named]
    if not missing:
        return []
    return [
        f"the server's certificate is for {', '.join(sorted(named))}, and not for {', '.join(missing)} of config.json: "
        f"{command_line('mos-server', 'rotate', state.path, '--certificate')}"
    ]


def _rotated(state: State, config: ServerConfig, authority: str, signing_key: str) -> Anchors:
    anchors = state.pki.anchors(config.server_id)
    return anchors.rotated(
        state.pki.signing_key(),
        authority=authority,
        signing_key=signing_key,
        fleet=config.fleet_address,
        mos=config.mos_address,
        time=dt.datetime.now(dt.UTC),
    )


def _stated(anchors: Anchors) -> dict[str, bytes]:
    return {ROTATIONS: canonical_json([each.model_dump(mode="json") for each in anchors.statements]) + b"\n"}
