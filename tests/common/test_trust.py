"""Which keys a folder trusts, for everybody who reads a model in it or beside it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from mos_common.errors import TrustError
from mos_common.files import canonical_json
from mos_common.kit import Kit, write_kit
from mos_common.rotation import Anchors, public_pem
from mos_common.trust import Pins, read_pins, state_keys, write_pins

CA = "-----BEGIN CERTIFICATE-----"
NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.fixture
def anchors() -> Anchors:
    """A federation whose signing key was rotated once."""
    first, second = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    return Anchors("ab" * 16, CA, public_pem(first)).rotated(
        first, authority=CA, signing_key=public_pem(second), fleet="h:1", mos="h:2", time=NOW
    )


@pytest.fixture
def state(tmp_path: Path, anchors: Anchors) -> Path:
    """A participant's folder with both copies."""
    kit = Kit(
        server_id=anchors.server_id, name="alice", fleet="h:1", mos="h:2", ca=CA, token="t" * 16, expires=NOW,
        base="cd" * 32, base_name="tiny", signing_key=anchors.signing_key, statements=anchors.statements,
    )  # fmt: skip
    write_kit(kit, tmp_path / "kit.json")
    write_pins(Pins("alice", anchors), tmp_path)
    return tmp_path


def test_pins_come_back_and_only_their_owner_can_read_them(state: Path, anchors: Anchors):
    assert read_pins(state) == Pins("alice", anchors)
    assert (state / "trust.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("lost", ["kit.json", "trust.json", None])
@pytest.mark.parametrize("damaged", [True, False])
def test_a_participants_folder_trusts_every_key_there_was(state: Path, anchors: Anchors, lost, damaged):
    if lost and damaged:
        (state / lost).write_bytes(b"{")
    elif lost:
        (state / lost).unlink()
    keys = state_keys(state)
    assert keys == anchors.signing_keys
    assert len(keys) == 2


def test_a_folder_whose_both_copies_are_damaged_trusts_nobody(state: Path):
    for name in ("kit.json", "trust.json"):
        (state / name).write_bytes(b"{")
    with pytest.raises(TrustError):
        state_keys(state)


def test_a_damaged_statement_in_the_pins_is_found(state: Path):
    (state / "trust.json").write_bytes((state / "trust.json").read_bytes().replace(b"h:2", b"h:3"))
    with pytest.raises(TrustError, match=r"trust\.json, which says whom this folder trusts, cannot be used"):
        read_pins(state)


def test_an_operators_folder_trusts_its_own_keys(tmp_path: Path, anchors: Anchors):
    (tmp_path / "pki").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pki" / "signing.pub").write_text(anchors.signing_key)
    assert state_keys(tmp_path) == (anchors.signing_key,)
    statements = [each.model_dump(mode="json") for each in anchors.statements]
    (tmp_path / "pki" / "rotations.json").write_bytes(canonical_json(statements))
    assert state_keys(tmp_path) == anchors.signing_keys
    (tmp_path / "pki" / "rotations.json").write_bytes(b"{}1")
    with pytest.raises(TrustError):
        state_keys(tmp_path)


def test_any_other_folder_is_no_state(tmp_path: Path):
    assert state_keys(tmp_path) is None
