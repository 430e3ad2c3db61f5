"""A state folder of an earlier release gets today's fingerprint without tuning again."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from mos_client.federation.enrolment import KIT
from mos_client.federation.rekey import current_session
from mos_client.federation.session import Session
from mos_client.federation.tuned import tuned_file
from mos_client.tuning import tune_folder as tuning
from mos_client.tuning.request import TuneRequest
from mos_common.concept_file import read_concept, write_concept
from mos_common.errors import BaseModelError
from mos_common.kit import Kit, read_kit, write_kit


@pytest.fixture
def session(sixteen, random_base_folder, make_pictures, tmp_path) -> Session:
    base = str(random_base_folder())
    request = TuneRequest(make_pictures(4), "<cat>", "cat", base=base, steps=1, device="cpu")
    return Session(tmp_path / "state", sixteen.fingerprint, request)


@pytest.fixture
def before(session, sixteen, make_concept, monkeypatch) -> Session:
    """A state folder of an earlier release with a tuned concept; tuning again fails the test."""
    monkeypatch.setattr(tuning, "tune_folder", lambda *_, **__: pytest.fail("tuned again"))
    old = replace(session, fingerprint=sixteen.legacy_fingerprint)
    write_concept(replace(make_concept(sixteen), base_fingerprint=old.fingerprint), old.cached())
    old.cached().with_suffix(".progress.png").write_bytes(b"drawings")
    old.save()
    kit = {"server_id": "0" * 32, "name": "alice", "fleet": "a:1", "mos": "a:2", "token": "t" * 32, "base_name": "x"}
    pem = {"ca": "-----BEGIN CERTIFICATE-----", "signing_key": "-----BEGIN PUBLIC KEY-----"}
    made = Kit(**kit, **pem, base=old.fingerprint, expires=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    write_kit(made, old.state / KIT)
    return old


def test_settings_kit_and_concept_get_the_fingerprint_and_the_tensors_stay(before, sixteen, make_concept):
    kit = read_kit(before.state / KIT)
    session = current_session(Session.load(before.state))
    assert session == replace(Session.load(before.state), fingerprint=sixteen.fingerprint)
    assert read_kit(before.state / KIT) == kit.model_copy(update={"base": sixteen.fingerprint})
    (concept, drawings) = sorted(before.cached().parent.iterdir(), reverse=True)
    assert concept == tuned_file(session) == session.cached() != before.cached()
    assert drawings == concept.with_suffix(".progress.png")
    assert read_concept(concept).base_fingerprint == sixteen.fingerprint
    write_concept(make_concept(sixteen), before.state / "fresh.safetensors")
    assert concept.read_bytes() == (before.state / "fresh.safetensors").read_bytes()


def test_a_new_kit_finds_the_concept_tuned_under_the_old_fingerprint(before, sixteen):
    again = replace(before, fingerprint=sixteen.fingerprint)
    assert tuned_file(again) == again.cached()
    assert read_concept(again.cached()).base_fingerprint == sixteen.fingerprint


def test_a_session_of_today_loads_no_base(session):
    """The base does not exist, which is not noticed: the fingerprint is already today's."""
    away = replace(session, request=replace(session.request, base="/nowhere/at/all"))
    assert current_session(away) is away


def test_an_old_fingerprint_of_another_base_is_an_error_and_changes_nothing(before, random_base_folder):
    away = replace(before, request=replace(before.request, base=str(random_base_folder(seed=1))))
    kept = {file: file.read_bytes() for file in before.state.rglob("*") if file.is_file()}
    with pytest.raises(BaseModelError, match=rf"{before.fingerprint[:12]} is a fingerprint by the old rule.*--base"):
        current_session(away)
    assert {file: file.read_bytes() for file in before.state.rglob("*") if file.is_file()} == kept
