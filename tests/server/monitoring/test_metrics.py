"""What a server says about itself on its port for machines."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
import requests

from mos_common.identity_scores import Identity
from mos_server.monitoring.collector import StateCollector
from mos_server.monitoring.health import Health
from mos_server.monitoring.refusal_reasons import OTHER, REASONS, reason_kind
from mos_server.round.intake import take_upload
from mos_server.state.folder import State
from mos_server.state.records import COLLECTING, FUSING, SCORING, RoundSettings, Upload
from server.monitoring.conftest import COMMAND, Served, promtool, serving
from server.round.conftest import Federation


def values(federation: Federation, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of one metric by the values of their labels."""
    collector = StateCollector(federation.state, federation.journal, Health(federation.state, federation.journal))
    return {
        tuple(sample.labels.values()): sample.value
        for family in collector.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_a_server_is_alive_and_ready_and_tells_its_numbers(served: Served):
    assert served.get("/healthz").text == "alive\n"
    assert served.get("/readyz").json() == {"ready": True, "why": []}
    scrape = served.scrape()
    assert scrape["mos_rounds", (("state", "published"),)] == 1
    assert scrape["mos_participants", (("state", "admitted"),)] == 2
    assert scrape["mos_model_concepts", ()] == 2
    lost = {labels: value for (name, labels), value in scrape.items() if name == "mos_model_identity_loss"}
    assert lost == {(("concept", token),): pytest.approx(0.1) for token in ("<alice/alices-cat>", "<bob/bobs-cat>")}
    manifest = served.state.artefacts.model("round-001") / "manifest.json"
    assert scrape["mos_model_bytes", ()] >= manifest.stat().st_size
    assert not any(value for (name, _), value in scrape.items() if name == "mos_unreadable")


@pytest.mark.parametrize("host", ["attacker.example", "127.0.0.1.attacker.example", "attacker.example:80"])
def test_a_page_under_another_name_cannot_read_the_numbers(served: Served, host: str):
    assert served.get("/metrics", host=host).status_code == 400


def test_the_port_listens_on_loopback_alone(served: Served):
    port = int(served.url.rpartition(":")[2])
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(f"http://127.0.0.2:{port}/metrics", timeout=5)


def test_promtool_finds_nothing_to_say_about_the_metrics(served: Served):
    assert promtool("check", "metrics", text=served.get("/metrics").text) == ""


def test_a_journal_that_cannot_be_read_is_not_ready_and_the_disk_is_still_told(another: State, tmp_path: Path):
    with serving(another, tmp_path) as served:
        shutil.move(another.artefacts.model("round-001"), tmp_path / "away")
        scrape = served.scrape()
        assert scrape["mos_unreadable", (("part", "model"),)] == 1
        assert ("mos_model_concepts", ()) not in scrape
        assert scrape["mos_disk_bytes", ()] == shutil.disk_usage(another.path).total
        for file in another.path.glob("server.db*"):
            file.write_bytes(b"not a database" * 1000)
        until = time.monotonic() + 20
        while served.get("/readyz").status_code != 503:
            assert time.monotonic() < until
            time.sleep(0.2)
        assert served.get("/healthz").status_code == 200


def test_a_port_in_use_is_an_error_that_says_so(served: Served, another: State):
    port = served.url.rpartition(":")[2]
    command = [*COMMAND, "serve", str(another.path), "--metrics-port", port]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode != 0
    assert f"port {port} cannot be used" in ran.stderr
    assert "give another --metrics-port" in ran.stderr


def test_the_time_in_a_state_begins_with_the_state_and_survives_a_restart(federation: Federation):
    name = federation.ask(deadline_s=3600)
    federation.journal.rounds.advance(name, COLLECTING)
    began = time.time()
    time.sleep(0.05)
    (measured,) = values(federation, "mos_round_state_seconds").values()
    assert 0.04 <= measured <= time.time() - began + 0.1
    assert values(federation, "mos_round_state_limit_seconds") == {(name, "collecting"): 3600}


def test_the_time_of_fusion_is_from_its_beginning_to_the_candidate(federation: Federation):
    name = federation.ask()
    assert values(federation, "mos_fusion_seconds") == {}
    federation.journal.rounds.advance(name, FUSING)
    time.sleep(0.1)
    federation.journal.rounds.advance(name, SCORING)
    (measured,) = values(federation, "mos_fusion_seconds").values()
    assert 0.09 <= measured < 10


def test_a_participant_is_online_until_a_minute_and_a_half_after_it_was_here(federation: Federation, monkeypatch):
    alice, bob, _ = (federation.machine(name) for name in ("alice", "bob", "carol"))
    federation.journal.participants.saw(alice.key)
    federation.journal.participants.saw(bob.key)
    federation.journal.participants.bar("bob")
    assert values(federation, "mos_participants_online") == {(): 1}
    assert values(federation, "mos_participants") == {("admitted",): 2, ("barred",): 1}
    assert list(values(federation, "mos_participant_last_seen_timestamp_seconds")) == [("alice",)]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 120)
    assert values(federation, "mos_participants_online") == {(): 0}


def test_kits_are_counted_by_what_became_of_them(federation: Federation):
    federation.machine("alice")
    federation.journal.participants.invite("bob", valid_s=60)
    federation.journal.participants.invite("carol", valid_s=-1)
    assert values(federation, "mos_kits") == {("open",): 1, ("used",): 1, ("expired",): 1}


def test_uploads_are_counted_from_the_journal_with_the_kind_of_each_refusal(federation: Federation):
    machine = federation.machine("alice")
    (alice,) = federation.journal.participants.all()
    name, good = federation.ask(), federation.file(name="<cat>")
    sent = [good, good, b"not a file", federation.file(name="<loud-cat>", strength=1e4)]
    for data in sent:
        take_upload(federation.state, federation.journal, federation.base, alice, data, name)
    federation.journal.uploads.withdraw("<cat>")
    take_upload(federation.state, federation.journal, federation.base, alice, good, name)
    assert values(federation, "mos_uploads_total") == {(): 5}
    assert values(federation, "mos_upload_bytes_total") == {(): sum(map(len, [*sent, good]))}
    assert values(federation, "mos_withdrawn_total") == {(): 1}
    refused = {kind: count for (kind,), count in values(federation, "mos_refused_uploads_total").items() if count}
    assert refused == {"duplicate": 1, OTHER: 1, "out of bounds": 1, "withdrawn before": 1}
    assert machine.key == alice.key


def test_no_word_of_a_stranger_becomes_a_label_of_a_refusal():
    hostile = 'is not usable: tensor "}\n# HELP evil' + "x" * 10_000
    assert reason_kind(hostile) == OTHER
    assert {OTHER} < set(REASONS)


def test_a_concepts_name_is_escaped_as_a_label(federation: Federation):
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    name = federation.run(federation.machine("alice", federation.file(name="<cat>")))
    odd = '<c"at\\\n>'
    upload = federation.admitted(name)[0]
    federation.journal.uploads.add(Upload(0, name, upload.key, "alice", odd, "ab" * 32, 1, time.time(), None, None))
    added = federation.admitted(name)[-1]
    federation.journal.uploads.set_identity(added.id, Identity(0.1, 0.5, 0.5, 0.9))
    registry = CollectorRegistry()
    registry.register(
        StateCollector(federation.state, federation.journal, Health(federation.state, federation.journal))
    )
    text = generate_latest(registry).decode()
    concepts = {
        sample.labels["concept"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "mos_model_identity"
    }
    assert added.token in concepts


def test_a_scrape_of_a_large_journal_is_read_in_sums(federation: Federation):
    """Hundreds of refusals make no more samples than one."""
    federation.machine("alice")
    (alice,) = federation.journal.participants.all()
    name = federation.ask()
    before = len(values(federation, "mos_refused_uploads_total"))
    with federation.journal.decision():
        for number in range(500):
            refused = Upload(0, name, alice.key, "alice", "?", "", 1, 0.0, f"tensor {number} is odd", None)
            federation.journal.uploads.add(refused)
    after = values(federation, "mos_refused_uploads_total")
    assert len(after) == before
    assert after[OTHER,] == 500


def test_settings_of_another_release_leave_the_other_metrics(federation: Federation):
    federation.journal.rounds.ask(RoundSettings())
    round_ = federation.journal.rounds.unfinished()
    federation.journal.rounds.advance(round_.id, COLLECTING)
    from sqlalchemy import text

    with federation.journal._database.writing() as db:
        db.execute(text("UPDATE rounds SET settings = '{\"odd\": 1}'"))
    unreadable = values(federation, "mos_unreadable")
    assert unreadable["rounds",] == 1
    assert sum(unreadable.values()) == 1
