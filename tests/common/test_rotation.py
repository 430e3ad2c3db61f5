"""Rotation statements: what a participant follows, and everything that is not it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from mos_common.errors import TrustError
from mos_common.rotation import Anchors, check_signature, public_pem, read_statements, sign

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
CA, OTHER_CA = ("-----BEGIN CERTIFICATE-----\n" + name for name in ("ours", "another"))


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def rotated(anchors: Anchors, by, to=None, authority: str | None = None) -> Anchors:
    return anchors.rotated(
        by,
        authority=authority or anchors.authority,
        signing_key=public_pem(to or by),
        fleet="fuse.example.org:9092",
        mos="fuse.example.org:9093",
        time=NOW,
    )


@pytest.fixture
def keys():
    """The key of an old federation, and the two that follow it."""
    return ed25519.Ed25519PrivateKey.generate(), p256(), p256()


@pytest.fixture
def pinned(keys) -> Anchors:
    return Anchors("ab" * 16, CA, public_pem(keys[0]))


@pytest.fixture
def later(pinned, keys) -> Anchors:
    """The anchors two rotations later."""
    return rotated(rotated(pinned, keys[0], keys[1]), keys[1], keys[2], OTHER_CA)


def test_who_was_away_for_two_rotations_follows_both(pinned, later, keys):
    assert pinned.extended(later.statements) == later
    assert pinned.joined(later) == later
    assert (later.authority, later.signing_keys) == (OTHER_CA, tuple(public_pem(key) for key in reversed(keys)))


def test_who_is_ahead_of_an_older_kit_stays_ahead(pinned, later):
    between = Anchors(later.server_id, later.statements[0].authority, later.statements[0].signing_key)
    once = Anchors(between.server_id, between.authority, between.signing_key, later.statements[:1])
    for older in (pinned, once):
        assert later.joined(older) == later
        assert later.extended(older.statements) == later


def test_statements_come_back_as_they_were_sent(later):
    assert read_statements([each.to_bytes() for each in later.statements]) == later.statements


def test_a_statement_left_out_is_named(pinned, later):
    with pytest.raises(TrustError, match="rotation statement 2 where 1 was expected"):
        pinned.extended(later.statements[1:])


def test_an_old_statement_that_comes_again_is_no_rotation(later):
    with pytest.raises(TrustError, match="rotation statement 1 where 3 was expected: one was left out, or an old one"):
        later.extended([*later.statements, later.statements[0]])


def test_two_histories_of_one_federation_are_told_apart(pinned, later, keys):
    """The former key is stolen, and signs another first rotation."""
    fork = rotated(pinned, keys[0], p256())
    with pytest.raises(TrustError, match=r"statement 1 .* is not the one that was accepted here"):
        later.extended(fork.statements)
    with pytest.raises(TrustError, match="two histories of one federation"):
        later.joined(fork)


def test_a_statement_that_another_key_signed_is_refused(pinned, keys):
    thief = p256()
    own = rotated(Anchors(pinned.server_id, CA, public_pem(thief)), thief)
    with pytest.raises(TrustError, match="does not follow the keys that are pinned"):
        pinned.extended(own.statements)
    # The same with the words of the real one: the signature is by the thief.
    real = rotated(pinned, keys[0], thief).statements[0]
    forged = real.model_copy(update={"signature": own.statements[0].signature})
    with pytest.raises(TrustError, match="is not signed by the key that is pinned"):
        pinned.extended([forged])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("authority", OTHER_CA),
        ("mos", "elsewhere.example.org:9093"),
        ("fleet", "elsewhere.example.org:9092"),
        ("time", NOW + dt.timedelta(days=1)),
        ("signature", ""),
        ("signature", "not base64"),
    ],
)
def test_every_word_of_a_statement_is_signed(pinned, keys, field, value):
    statement = rotated(pinned, keys[0], keys[1]).statements[0]
    with pytest.raises(TrustError, match="is not signed by the key that is pinned"):
        pinned.extended([statement.model_copy(update={field: value})])


def test_a_statement_of_another_federation_is_refused(pinned, keys):
    other = rotated(Anchors("cd" * 16, CA, public_pem(keys[0])), keys[0], keys[1])
    with pytest.raises(TrustError, match="of another federation"):
        pinned.extended(other.statements)
    with pytest.raises(TrustError, match="of another federation"):
        pinned.joined(other)


@pytest.mark.parametrize(("name", "said"), [("authority", "certificate"), ("signing_key", "signing key")])
def test_anchors_that_nobody_signed_are_named(pinned, name, said):
    false = dataclasses.replace(pinned, **{name: {"authority": OTHER_CA, "signing_key": public_pem(p256())}[name]})
    with pytest.raises(TrustError, match=f"it has another {said}, and no statement"):
        pinned.joined(false)


def test_statements_that_lead_elsewhere_are_no_alibi(later):
    for change in ({"authority": CA}, {"signing_key": public_pem(p256())}, {"statements": later.statements[:1]}):
        with pytest.raises(TrustError, match="end with other keys than it names"):
            dataclasses.replace(later, **change).checked()


def test_line_breaks_of_a_pem_change_nothing(pinned):
    turned = dataclasses.replace(pinned, authority=CA.replace("\n", "\r\n") + "\r\n")
    assert pinned.joined(turned) == pinned


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff", b'{"format": 2}'])
def test_what_is_no_statement_is_not_read(text):
    with pytest.raises(TrustError, match="a rotation statement cannot be read"):
        read_statements([text])


def test_there_is_an_end_to_statements(later):
    with pytest.raises(TrustError, match="at most 200 are read"):
        read_statements([later.statements[0].to_bytes()] * 201)


def test_a_statement_with_a_field_too_many_is_not_read(later):
    more = json.dumps(json.loads(later.statements[0].to_bytes()) | {"note": "trust me"}).encode()
    with pytest.raises(TrustError, match="cannot be read"):
        read_statements([more])


@pytest.mark.parametrize("make", [ed25519.Ed25519PrivateKey.generate, p256])
def test_both_kinds_of_keys_sign(make):
    key = make()
    check_signature(public_pem(key), b"words", sign(key, b"words"))
    with pytest.raises(TrustError, match="not by this key"):
        check_signature(public_pem(key), b"other words", sign(key, b"words"))


def test_other_kinds_of_keys_do_not():
    with pytest.raises(TrustError, match="neither an Ed25519 nor a P-256 key"):
        check_signature(public_pem(ec.generate_private_key(ec.SECP384R1())), b"", b"")
