"""The kit: what a participant can use, and what it says of everything else."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from mos_common.errors import TrustError
from mos_common.kit import Kit, read_kit, write_kit

NOW = dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC)
FIELDS = {
    "server_id": "ab" * 16,
    "name": "alice",
    "fleet": "fusion.example.org:9092",
    "mos": "fusion.example.org:9093",
    "ca": "-----BEGIN CERTIFICATE-----\n…",
    "token": "a-token-of-16-letters-or-more",
    "expires": NOW,
    "base": "cd" * 32,
    "base_name": "tiny",
    "signing_key": "-----BEGIN PUBLIC KEY-----\n…",
}


def test_a_kit_comes_back_and_only_its_owner_can_read_it(tmp_path):
    write_kit(Kit(**FIELDS), tmp_path / "alice.kit")
    assert read_kit(tmp_path / "alice.kit") == Kit(**FIELDS)
    assert (tmp_path / "alice.kit").stat().st_mode & 0o777 == 0o600


def test_an_address_holds_no_character_that_is_not_seen_and_a_base_s_name_is_shown_by_its_code_points():
    for field in ("fleet", "mos"):
        with pytest.raises(ValueError, match=field):
            Kit(**FIELDS | {field: "fusion.example\u202e.org:9092"})
        with pytest.raises(ValueError, match=field):
            Kit(**FIELDS | {field: "fusion.example.org:\u0669\u0660"})  # digits, and no port
    assert Kit(**FIELDS | {"base_name": "t\u202einy"}).base_name == "t\\u202einy"


def test_a_kit_can_be_used_until_it_expires():
    kit = Kit(**FIELDS)
    kit.check_valid(NOW - dt.timedelta(seconds=1))
    for late in (dt.timedelta(0), dt.timedelta(days=400)):
        with pytest.raises(TrustError, match=r"expired on 2026-01-02 03:04 UTC: ask the operator for a new one"):
            kit.check_valid(NOW + late)


def test_hours_are_hours_in_every_zone():
    there = Kit(**FIELDS | {"expires": dt.datetime(2026, 1, 2, 5, 4, tzinfo=dt.timezone(dt.timedelta(hours=2)))})
    with pytest.raises(TrustError):
        there.check_valid(NOW)
    there.check_valid(NOW - dt.timedelta(seconds=1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("server_id", "../../etc"),
        ("name", "Alice"),
        ("name", "a/b"),
        ("fleet", "no-port"),
        ("mos", "two words:1"),
        ("ca", "-----BEGIN PRIVATE KEY-----"),
        ("token", "short"),
        ("base", "tiny"),
        ("signing_key", "none"),
        ("format", 2),
        ("expires", "tomorrow"),
        ("expires", "2026-01-02T03:04:05"),
        ("extra", "field"),
    ],
)
def test_a_field_that_is_wrong_is_named(tmp_path, field, value):
    path = tmp_path / "alice.kit"
    write_kit(Kit(**FIELDS), path)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {field: value}))
    with pytest.raises(TrustError, match=rf"alice\.kit is not a kit \('{field}'.*ask the operator"):
        read_kit(path)


@pytest.mark.parametrize("contents", [b"", b"hello", b"[]", b"\xff\xfe", b'{"format": 1'])
def test_a_file_that_is_no_kit_says_so(tmp_path, contents):
    (tmp_path / "photo.jpg").write_bytes(contents)
    with pytest.raises(TrustError, match=r"photo\.jpg is not a kit"):
        read_kit(tmp_path / "photo.jpg")


def test_a_kit_that_is_not_there_is_asked_for(tmp_path):
    for path in (tmp_path / "alice.kit", tmp_path):
        with pytest.raises(TrustError, match=r"cannot be read.*give the file that the operator sent"):
            read_kit(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_kit_that_went_through_a_windows_editor_is_still_a_kit(tmp_path, encoding):
    path = tmp_path / "alice.kit"
    write_kit(Kit(**FIELDS), path)
    path.write_bytes(path.read_text(encoding="utf-8").replace("\n", "\r\n").encode(encoding))
    assert read_kit(path) == Kit(**FIELDS)


@pytest.mark.parametrize(
    ("data", "said"),
    [("ü".encode("cp1252"), "is not in UTF-8"), (b"{\0", "holds zero bytes"), (b"a" * 5_000_000, "KiB")],
)
def test_a_file_that_is_no_text_is_no_kit_and_says_why(tmp_path, data, said):
    (tmp_path / "alice.kit").write_bytes(data)
    with pytest.raises(TrustError, match=rf"alice\.kit is not a kit \(it .*{said}.*ask the operator"):
        read_kit(tmp_path / "alice.kit")


def test_only_the_kit_of_a_federation_that_publishes_own_changes_says_so(tmp_path):
    """Release 0.1.0 refuses a kit with a field that it does not know, and reads all others."""
    for publishes, written in (("fused", False), ("own", True)):
        write_kit(Kit(**FIELDS, publishes=publishes), tmp_path / f"{publishes}.kit")
        assert ("publishes" in json.loads((tmp_path / f"{publishes}.kit").read_text())) is written
        assert read_kit(tmp_path / f"{publishes}.kit").publishes == publishes
