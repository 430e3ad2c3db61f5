"""`mos-client status` says of every part of a state folder what its file says."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mos_client.federation import status
from mos_client.federation.activity import JOINED, reported
from mos_client.federation.consent import CONSENT, consent, read_consent
from mos_client.federation.news import NEWS, Member, RoundNews
from mos_client.federation.session import Session
from mos_client.federation.status import status_of
from mos_client.tuning.request import TuneRequest
from mos_client.tuning.steering import Steering, Wanted
from mos_common.digests import digest_of_bytes
from mos_common.errors import RequestError


@pytest.fixture
def session(tmp_path, monkeypatch) -> Session:
    """A session with one tuned file."""
    file = tmp_path / "cat-1.safetensors"
    file.write_bytes(b"one")
    monkeypatch.setattr(status, "tuned_already", lambda session: file)
    return Session(tmp_path, "ab" * 32, TuneRequest(tmp_path / "pictures", "<cat>", "cat"))


def said(session: Session) -> str:
    return "\n".join(status_of(session))


def test_a_fresh_folder(session):
    text = said(session)
    assert "nothing has run on it yet" in text
    assert "no model downloaded yet" in text
    assert f"cat-1.safetensors, 3 bytes, SHA-256 {digest_of_bytes(b'one')}" in text
    assert "agreed" not in text


def test_a_tuning_says_step_loss_and_time(session, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mos_client.federation.activity.time.monotonic", lambda: now[0])
    with reported(session.state) as report:
        step = report.stepping(lambda step: None)
        for number in (1, 2, 3):
            now[0] += 2.0
            step(SimpleNamespace(number=number, total=10, loss=0.25))
        assert "tuning: step 3 of 10, loss 0.250, about 14 s left" in said(session)
        Steering.of(session.state).want(Wanted.PAUSE)
        assert "paused: step 3 of 10" in said(session)
        report.stage(JOINED)
        assert "it takes part" in said(session)
    assert "the last join finished" in said(session)


def test_scores_so_far(session):
    (session.state / "concepts").mkdir()
    scores = [{"step": step, "identity": 0.1 * step, "prompt_adherence": 0.5} for step in (1, 2)]
    file = session.state / "concepts" / "cat.progress.json"
    file.write_text(json.dumps({"best": 2, "evaluations": scores}))
    assert "after step 1: identity 0.100, prompt 0.500\n  after step 2 (best): identity 0.200" in said(session)
    file.write_text("{")
    assert "after step" not in said(session)


def test_why_it_ended(session):
    with pytest.raises(RequestError), reported(session.state):
        raise RequestError("no such cat")
    assert "the last join failed" in said(session)
    assert "no such cat" in said(session)


@pytest.mark.parametrize("own", [True, False])
def test_what_was_agreed_to(session, own):
    consent(replace(session, own=own), digest_of_bytes(b"one"))
    assert "you agreed to send this file, " + ("with its own" if own else "to be published only fused") in said(session)
    consent(session, digest_of_bytes(b"two"))
    assert "another file than this" in said(session)


@pytest.mark.parametrize("damaged", ["", "[]", "{}", '{"digest": 1, "own": true, "at": 0}', "\xff", '{"digest": "a"}'])
def test_a_damaged_yes_is_none(session, damaged):
    (session.state / CONSENT).write_text(damaged, encoding="latin-1")
    assert read_consent(session.state) is None


def test_the_round_and_who_is_waited_for(session):
    members = [
        Member(participant="alice", activity="has sent", waited_for=False),
        Member(participant="bob", activity="tunes", waited_for=True),
    ]
    news = RoundNews(
        round="round-002",
        status="collecting",
        reason="bob tunes",
        wanted=2,
        until=time.time() + 600,
        members=members,
        at=time.time() - 3,
    )
    (session.state / NEWS).write_text(news.model_dump_json())
    text = said(session)
    assert "round-002: collecting, 2 concepts wanted, waits until" in text
    assert "bob: tunes, waited for" in text
    assert "alice: has sent\n" in text


def test_a_lost_kit_leaves_the_rest(session):
    (session.models / "round-001").mkdir(parents=True)
    assert "models downloaded: 1; scores need your name" in said(session)


def test_scores_of_every_model(session, monkeypatch):
    monkeypatch.setattr(status, "read_kit", lambda path: SimpleNamespace(name="alice"))
    scores = {"class_word": 0.1, "single": 0.75, "fused": 0.5, "ceiling": 0.9}
    for number, concepts in ((1, [{"token": "<alice/cat>", "identity": scores}]), (2, [{"token": "<bob/dog>"}])):
        folder: Path = session.models / f"round-00{number}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"concepts": concepts}))
    monkeypatch.setattr(
        "mos_client.inspection.own_scores.read_manifest", lambda model: (model / "manifest.json").read_bytes()
    )
    monkeypatch.setattr("mos_client.inspection.own_scores.parse_manifest", lambda model, data: json.loads(data))
    newest, first = said(session).splitlines()[-2:]
    assert newest.startswith(str(session.models / "round-002"))
    assert "<alice/cat> was not scored in it" in newest
    assert "without the concept 0.100, before fusion 0.750, after 0.500, real 0.900" in first
