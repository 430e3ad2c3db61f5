"""`mos-client join`: errors found before the network and torch are used, and how it ends."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mos_client.federation.enrolment import Enrolment
from mos_client.federation.following import Follower
from mos_client.federation.join import announce, announce_news, serve, withheld_until
from mos_client.federation.session import Session, locked
from mos_client.tuning.request import TuneRequest
from mos_common.concept_file import write_concept
from mos_common.errors import NetworkError
from mos_common.kit import Kit, write_kit
from mos_server.state.pki import create_pki

# The command, with every network call reported, and the heavy imports listed at the end.
COMMAND = """
import atexit, socket, sys
def tell(address): sys.stderr.write(f"NETWORK {address}\\n"); raise OSError("told")
socket.socket.connect = lambda self, address: tell(address)
heavy = ("torch", "flwr", "grpc", "transformers", "diffusers")
atexit.register(lambda: sys.stderr.write("IMPORTED " + " ".join(m for m in heavy if m in sys.modules) + "\\n"))
from mos_client.cli.main import main
main()
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A port with a listener that counts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server


@pytest.fixture
def make_kit(tmp_path, listener):
    """Write a kit for a server at `listener`, good for a day unless told otherwise."""
    port = listener.getsockname()[1]

    def make(name: str = "alice.kit", **changes: object) -> Path:
        values = {
            "server_id": "0" * 32,
            "name": "alice",
            "fleet": f"127.0.0.1:{port}",
            "mos": f"127.0.0.1:{port}",
            "ca": "-----BEGIN CERTIFICATE-----\n",
            "token": "t" * 32,
            "expires": dt.datetime.now(dt.UTC) + dt.timedelta(days=1),
            "base": "ab" * 32,
            "base_name": "tiny",
            "signing_key": "-----BEGIN PUBLIC KEY-----\n",
        }
        write_kit(Kit(**(values | changes)), tmp_path / name)
        return tmp_path / name

    return make


def join(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, "join", *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *said: str, imported: str = "") -> None:
    """Check for one line with all of `said`, no connection and no heavy import."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert all(text in line for text in said), line
    assert "Traceback" not in done.stderr
    assert not [line for line in lines if line.startswith("NETWORK")]
    (imports,) = [line for line in lines if line.startswith("IMPORTED")]
    assert set(imports.split()[1:]) <= set(imported.split())


NAMED = ("--concept", "<cat>", "--class", "cat")


def test_too_few_pictures_are_3(tmp_path, make_kit, make_pictures):
    refused(join(tmp_path, make_kit(), make_pictures(0), *NAMED), 3, "0 pictures", "at least 3")
    refused(join(tmp_path, make_kit(), tmp_path / "nowhere", *NAMED), 3, "no folder of pictures")
    assert not (tmp_path / "mos-state").exists()


def test_a_bad_name_is_2(tmp_path, make_kit, make_pictures):
    refused(join(tmp_path, make_kit(), make_pictures(4), "--concept", "../cat", "--class", "cat"), 2, "../cat", "<cat>")
    assert not (tmp_path / "mos-state").exists()


def test_what_is_no_kit_is_8(tmp_path, make_pictures):
    pictures = make_pictures(4)
    (tmp_path / "letter").write_text('{"dear": "bob"}')
    refused(join(tmp_path, tmp_path / "letter", pictures, *NAMED), 8, "is not a kit", "ask the operator")
    refused(join(tmp_path, tmp_path / "nowhere", pictures, *NAMED), 8, "cannot be read")
    refused(join(tmp_path, pictures / "00.png", pictures, *NAMED), 8, "is not a kit")
    assert not (tmp_path / "mos-state").exists()


def test_an_expired_kit_is_8(tmp_path, make_kit, make_pictures):
    kit = make_kit(expires=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1))
    refused(join(tmp_path, kit, make_pictures(4), *NAMED), 8, "expired on", "ask the operator", imported="grpc")
    assert not list(tmp_path.rglob("node_key"))


@pytest.mark.parametrize("flags", [("--rounds", 0), ("--steps", 0), ("--nonsense",), ("--steps", "many")])
def test_bad_flags_are_2(tmp_path, make_kit, make_pictures, flags):
    done = join(tmp_path, make_kit(), make_pictures(4), *NAMED, *flags)
    assert done.returncode == 2
    assert flags[0] in done.stderr
    assert "NETWORK" not in done.stderr


def test_a_second_join_on_the_same_folder_is_9(tmp_path, make_kit, make_pictures):
    with locked(tmp_path / "mos-state" / "cat"):
        refused(join(tmp_path, make_kit(), make_pictures(4), *NAMED), 9, "another mos-client join", imported="grpc")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_waits_for_a_server_that_is_not_there_and_an_interruption_is_130(
    tmp_path, make_pictures, make_kit, listener, number, tiny
):
    kit = make_kit(ca=create_pki(tmp_path / "pki", "127.0.0.1").authority_pem(), base=tiny.fingerprint)
    listener.close()
    pictures = make_pictures(4)
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from mos_client.cli.main import main; main()"
    )
    words = [sys.executable, "-c", program, "join", str(kit), str(pictures), *NAMED]
    with subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as waiting:
        assert "2 pictures to tune on, 2 held back" in waiting.stdout.readline()
        assert any("waiting for it, Ctrl-C stops" in line for line in waiting.stdout)
        time.sleep(0.3)
        waiting.send_signal(number)
        assert waiting.wait(60) == 130
        assert waiting.stderr.read() == "interrupted\n"


@pytest.fixture
def session(tmp_path, make_pictures) -> Session:
    return Session(tmp_path / "state", "ab" * 32, TuneRequest(make_pictures(4), "<cat>", "cat"))


def test_what_will_leave_is_shown_and_listed_tensor_by_tensor(session, sixteen, make_concept, tmp_path):
    """The lines shown add up, kind by kind, to the tensors counted in the file itself."""
    said: list[str] = []
    concept = make_concept(sixteen)
    write_concept(concept, tmp_path / "cat.safetensors")
    announce(session, tmp_path / "cat.safetensors", said.append)
    tensors = load_file(tmp_path / "cat.safetensors")
    listed = (session.state / "what-leaves.txt").read_text()
    for name, tensor in tensors.items():
        assert f"  {name}  {tuple(tensor.shape)}  float16  {tensor.nbytes:,} bytes\n" in listed
    first, *shown, total, last = said
    assert str(tmp_path / "cat.safetensors") in first
    assert str(session.state / "what-leaves.txt") in last
    assert total == f"{len(tensors)} tensors, {sum(tensor.nbytes for tensor in tensors.values()):,} bytes"
    assert len(shown) < 40
    keys = "  unet.*.attn2.to_k.lora_A.weight "
    (line,) = [line for line in shown if line.startswith(keys)]
    of_kind = [tensor for name, tensor in tensors.items() if name.endswith("attn2.to_k.lora_A.weight")]
    assert line.split("  ")[-2:] == ["16 of (2, 24)", f"{sum(tensor.nbytes for tensor in of_kind):,} bytes"]
    assert sum(int(line.split()[-2].replace(",", "")) for line in shown) == sum(t.nbytes for t in tensors.values())
    counted = sum(int(count) for line in shown for count in re.findall(r"(\d+) of \(", line) or ["1"])
    assert counted == len(tensors)


def test_few_tensors_are_all_shown_by_name(session, sixteen, make_concept, tmp_path):
    said: list[str] = []
    concept = make_concept(sixteen)
    few = dict(list(concept.pairs.items())[:3])
    write_concept(replace(concept, pairs=few), tmp_path / "cat.safetensors")
    announce(session, tmp_path / "cat.safetensors", said.append)
    shown = [line.split()[0] for line in said[1:-2]]
    assert shown == ["embeddings.0", *sorted(f"{name}.lora_{half}.weight" for name in few for half in "AB")]
    assert all("(" in line and line.endswith(" bytes") for line in said[1:-2])


def test_a_concept_that_was_tuned_anew_since_is_announced_anew(session, sixteen, make_concept):
    """A picture added while `join` runs: the new concept is announced before it is sent."""
    said: list[str] = []
    session.cached().parent.mkdir(parents=True)
    write_concept(make_concept(sixteen), session.cached())
    announce(session, session.cached(), said.append)
    first = list(said)
    announce_news(session, said.append)
    assert said == first
    (session.request.images / "03.png").unlink()
    announce_news(session, said.append)
    assert said == first, "not tuned yet"
    write_concept(make_concept(sixteen, seed=1, rank=1), session.cached())
    announce_news(session, said.append)
    assert str(session.cached()) in said[len(first)]
    assert str(session.cached()) in (session.state / "what-leaves.txt").read_text()


def test_no_reply_leaves_before_it_was_said_what_leaves_with_it():
    """If the server asked earlier, reply and announcement are ready at the same moment."""
    announced, stop, replies = threading.Event(), threading.Event(), []
    looked: list[str] = []
    app = withheld_until(announced, stop, "{message} in {context}".format, lambda reply: looked.append(f"at {reply}"))
    asking = threading.Thread(target=lambda: replies.append(app(message="train", context="round 1")))
    asking.start()
    asking.join(0.3)
    assert (replies, looked) == ([], [])
    announced.set()
    asking.join(10)
    assert looked == ["at train in round 1"]
    assert replies == ["train in round 1"]
    announced.clear()
    stop.set()
    with pytest.raises(NetworkError, match="nothing left it"):
        app(message="train", context="round 2")


def test_every_new_model_is_fetched_whatever_happens_on_the_way(session, monkeypatch):
    """The requested number of models is fetched in turn; one downloaded before does not count."""
    for name in ("round-002", "round-010"):
        (session.models / name).mkdir(parents=True)
    (session.models / ".round-011.part").mkdir()
    waited, said = [], []

    def latest(enrolment: Enrolment, newer_than: str | None, stop: threading.Event) -> str:
        waited.append(newer_than)
        return {"round-010": "round-011", "round-011": "round-012"}[newer_than]

    monkeypatch.setattr("mos_client.federation.join.wait_for_model", latest)
    concepts = {"round-011": ["<alice/cat>", "<bob/dog>"], "round-012": ["<bob/dog>"]}
    failures = [NetworkError("the server was restarted just now")]

    def download(enrolment: Enrolment, name: str, into: Path) -> Path:
        if failures:
            raise failures.pop()
        (into / name).mkdir()
        manifest = {"concepts": [{"token": token} for token in concepts[name]]}
        (into / name / "manifest.json").write_text(json.dumps(manifest))
        return into / name

    monkeypatch.setattr("mos_client.federation.join.RETRY_S", 0.0)
    monkeypatch.setattr("mos_client.federation.join.download_model", download)
    monkeypatch.setattr("mos_client.federation.following.followed", lambda enrolment, state, say: enrolment)
    serve(session, Follower(Enrolment("alice", None, None), session.state, said.append), 2, said.append)
    assert waited == ["round-010", "round-010", "round-011"]
    assert [line for line in said if line.startswith("draw with it")] == [said[2]]
    assert "<alice/cat> is not in it" in said[-1]
