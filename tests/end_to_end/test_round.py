"""One round with real processes: a server, two participants and intruders, on loopback."""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.federation import CONCEPTS, QUICK, join_tuned, processes
from mos_bench.demo import free_ports, latest_model, prepare
from mos_bench.participant import Participant
from mos_bench.processes import Processes
from mos_bench.showcase import draw_command, pictures
from mos_common.errors import NetworkError, TrustError
from mos_common.fused_model import read_fused
from mos_common.kit import read_kit
from mos_common.signing import verify_model
from mos_server.cli.init import init
from mos_tiny import demo_sketch

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Participant], Processes]]:
    """A federation with one published round; both participants have the model, the server runs."""
    out = tmp_path_factory.mktemp("federation")
    participants = prepare(out, CONCEPTS)[:2]
    state = out / "server"
    with processes() as running:
        fleet, mos = free_ports(2)
        quick = [word for each in QUICK for word in ("--set", each)]
        running.do("operator", ["mos-server", "init", state, "--fleet-port", fleet, "--mos-port", mos, *quick])
        for someone in participants:
            running.do("operator", ["mos-server", "invite", state, someone.name, "--out", someone.kit])
        running.start("server", ["mos-server", "serve", state])
        for someone in participants:
            running.start(someone.name, join_tuned(someone))
        running.start("operator", ["mos-server", "round", state, "--wait", "2", "--deadline", "8m"])
        running.wait("operator", timeout_s=400, beside=["server", *(each.name for each in participants)])
        for someone in participants:
            running.wait(someone.name, timeout_s=120, beside=["server"])
        yield out, participants, running


def command(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command of this installation to its end."""
    return subprocess.run(
        [str(BIN / str(words[0])), *map(str, words[1:])], capture_output=True, text=True, timeout=120, check=False
    )


def test_everybody_has_the_same_signed_model(published):
    _, participants, _ = published
    manifests = set()
    for someone in participants:
        model = latest_model(someone.state)
        verify_model(model, read_kit(someone.kit).signing_key)
        manifests.add((model / "manifest.json").read_bytes())
    assert len(manifests) == 1


def test_the_manifest_names_every_concept_and_how_it_survived(published):
    _, participants, _ = published
    manifest = read_fused(latest_model(participants[0].state)).manifest
    assert {concept.token for concept in manifest.concepts} == {someone.token for someone in participants}
    for concept in manifest.concepts:
        assert concept.identity is not None
        assert 0 < concept.identity.ceiling <= 1
        assert set(concept.survival) == {"text", "cross", "spatial"}


def test_no_picture_and_no_caption_reached_the_server(published):
    out, participants, _ = published
    secrets = [
        file.read_bytes() for someone in participants for file in someone.pictures.iterdir() if file.suffix == ".png"
    ]
    for file in (out / "server").rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert b"\x89PNG" not in data, file
            assert not any(secret[64:128] in data for secret in secrets), file


def test_a_picture_with_both_concepts_is_drawn(published):
    out, participants, running = published
    if not (out / "fused").exists():
        (out / "fused").symlink_to(latest_model(participants[0].state))
    shutil.copyfile(demo_sketch(), out / "sketch.png")
    running.do("drawing", draw_command(out, participants[1], participants[0], steps=4))
    assert [picture.size for picture in pictures(out)] == [(128, 64)] * 4


def test_the_gate_lets_strangers_reach_nothing(published):
    """Outsiders reach no control or runtime API, no page, and no unsigned fleet call."""
    _, participants, _ = published
    host, port = read_kit(participants[0].kit).fleet.split(":")
    context = ssl.create_default_context(cadata=read_kit(participants[0].kit).ca)
    answers = {}
    for path in (
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
        "/v1/fleet/pull-messages",
    ):
        connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=20)
        connection.request("POST", path, body=b"", headers={"Content-Type": "application/protobuf"})
        answers[path] = connection.getresponse().status
        connection.close()
    assert answers.pop("/v1/fleet/pull-messages") == 401
    assert set(answers.values()) == {404}


def test_a_used_kit_does_not_admit_another_key(published, tmp_path):
    _, participants, _ = published
    shutil.copytree(participants[0].state / "concepts", tmp_path / "other" / "concepts")  # or it would tune first
    again = command(*join_tuned(participants[0]), "--state", tmp_path / "other")
    assert again.returncode == TrustError.exit_code, again.stderr
    assert "used already" in again.stderr


def test_the_model_can_be_downloaded_again(published, tmp_path):
    _, participants, _ = published
    someone = participants[1]
    done = command("mos-client", "download", someone.kit, "--state", someone.state, "--out", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    (manifest,) = (tmp_path / "model").rglob("manifest.json")
    assert manifest.read_bytes() == (latest_model(someone.state) / "manifest.json").read_bytes()


def test_status_tells_what_happened(published):
    out, participants, _ = published
    told = command("mos-server", "status", out / "server")
    assert told.returncode == 0
    assert "published" in told.stdout
    for someone in participants:
        assert someone.name in told.stdout


def test_complaint_6_both_sides_say_where_the_final_model_is(published):
    out, participants, _ = published
    assert (
        f"latest model: {out / 'server' / 'models' / 'round-001'}"
        in command("mos-server", "status", out / "server").stdout
    )
    for someone in participants:
        assert latest_model(someone.state) == someone.state / "models" / "round-001"


def test_a_second_server_on_the_same_state_is_refused(published):
    out, _, _ = published
    second = command("mos-server", "serve", out / "server")
    assert second.returncode == 9
    assert "served already" in second.stderr


def test_a_port_in_use_is_reported(published, tmp_path):
    _, participants, _ = published
    taken = read_kit(participants[0].kit).fleet.split(":")[1]
    (free,) = free_ports(1)
    init(tmp_path / "other", fleet_port=int(taken), mos_port=int(free))
    served = command("mos-server", "serve", tmp_path / "other")
    assert served.returncode == NetworkError.exit_code
    assert taken in served.stderr


def test_report_of_the_manifest_is_json(published):
    _, participants, _ = published
    text = (latest_model(participants[0].state) / "manifest.json").read_text()
    assert json.loads(text)["round"] == "round-001"


def test_the_model_of_a_real_round_holds_for_each_participant(published):
    _, participants, _ = published
    told = command("mos-client", "verify", latest_model(participants[0].state))
    assert (told.returncode, "WRONG" in told.stdout) == (0, False), told.stdout + told.stderr
    assert "signed with the operator's key" in told.stdout
    for someone in participants:
        assert f"concept     {someone.token}, a {someone.class_word}" in told.stdout
