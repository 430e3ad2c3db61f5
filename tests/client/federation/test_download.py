"""Downloads of models from a real server: resumed, checked, and complete or absent."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from mos_client.federation import download
from mos_client.federation.download import download_model, wait_for_model
from mos_client.federation.enrolment import enrol
from mos_common import mos_pb2
from mos_common.errors import NetworkError, RequestError, StateError, TrustError
from mos_common.node_key import key_digest, public_pem
from mos_common.signing import verify_model
from mos_server.network.calls import Refusal
from mos_server.network.service import CHUNK_BYTES

FILES = {
    "adapter.safetensors": bytes(range(256)) * 12_000,
    "embeddings.safetensors": b"words" * 100,
}  # some fifty chunks


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def published(operator, files: dict[str, bytes] | None = None) -> tuple[str, dict[str, bytes]]:
    model = operator.publish(files or FILES)
    return model, contents(operator.state.artefacts.model(model))


class Broken(Exception):
    """An error raised by the test."""


def breaking_after(operator, chunks: int, times: int = 1) -> None:
    """Break the server's stream of the adapter after a number of chunks, a number of times."""
    fetch, left = operator.real["fetch"], [times]

    def broken(request: mos_pb2.FetchRequest, context: object) -> Iterator[mos_pb2.Chunk]:
        for i, chunk in enumerate(fetch(request, context)):
            if i == chunks and left[0] and request.file.startswith("adapter"):
                left[0] -= 1
                raise Broken("the line is cut")
            yield chunk

    operator.faults["fetch"] = broken


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not pause between attempts."""
    monkeypatch.setattr(download, "PAUSE_S", 0.0)


def test_a_model_arrives_as_it_was_signed(operator, member, tmp_path):
    model, expected = published(operator)
    progress_calls: list[tuple[int, int]] = []
    folder = download_model(member, "latest", tmp_path / "models", progress=lambda *now: progress_calls.append(now))
    assert folder == tmp_path / "models" / model
    assert contents(folder) == expected
    verify_model(folder, member.kit.signing_key)
    total = sum(map(len, expected.values()))
    assert progress_calls[-1] == (total, total)
    assert progress_calls == sorted(progress_calls)
    assert [path.name for path in folder.parent.iterdir()] == [model]


def test_a_model_that_is_here_is_checked_and_not_fetched(operator, member, tmp_path):
    published(operator)
    folder = download_model(member, "latest", tmp_path)
    operator.fetched.clear()
    assert download_model(member, "latest", tmp_path) == folder
    assert operator.fetched == []
    (folder / "embeddings.safetensors").write_bytes(b"changed")
    with pytest.raises(TrustError, match=r"embeddings\.safetensors .* was changed"):
        download_model(member, "latest", tmp_path)


def test_a_stream_that_breaks_goes_on_where_it_stopped(operator, member, tmp_path):
    _, expected = published(operator)
    breaking_after(operator, chunks=2)
    assert contents(download_model(member, "latest", tmp_path)) == expected
    offsets = [offset for file, offset in operator.fetched if file.startswith("adapter")]
    assert offsets == [0, 2 * CHUNK_BYTES]


def test_a_client_that_was_killed_goes_on_where_it_stopped(operator, member, tmp_path):
    model, expected = published(operator)

    def killed(done: int, total: int) -> None:
        if done > CHUNK_BYTES:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_model(member, "latest", tmp_path, progress=killed)
    assert not (tmp_path / model).exists()
    operator.fetched.clear()
    assert contents(download_model(member, "latest", tmp_path)) == expected
    offset = next(offset for file, offset in operator.fetched if file.startswith("adapter"))
    assert offset > 0


def test_a_line_that_stays_broken_is_a_network_error_and_keeps_what_came(operator, member, tmp_path):
    model, expected = published(operator)
    breaking_after(operator, chunks=0, times=100)
    with pytest.raises(NetworkError):
        download_model(member, "latest", tmp_path)
    assert not (tmp_path / model).exists()
    operator.stop()
    operator.start()
    assert contents(download_model(member, "latest", tmp_path)) == expected


def test_parts_of_another_model_of_that_name_are_never_mixed_in(operator, member, tmp_path):
    """A round that was reset and run again has other files of the same names and lengths."""
    model, before = published(operator)

    def killed(done: int, total: int) -> None:
        if done > CHUNK_BYTES:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_model(member, "latest", tmp_path, progress=killed)
    shutil.rmtree(operator.state.artefacts.model(model))
    republish(operator, model, {name: bytes(reversed(data)) for name, data in FILES.items()})
    expected = contents(operator.state.artefacts.model(model))
    assert expected["adapter.safetensors"] != before["adapter.safetensors"]
    operator.fetched.clear()
    assert contents(download_model(member, "latest", tmp_path)) == expected
    assert all(offset == 0 for _, offset in operator.fetched)
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def republish(operator, model: str, files: dict[str, bytes]) -> None:
    from mos_common.signing import sign_model

    operator.write(operator.state.artefacts.model(model), files)
    sign_model(operator.state.artefacts.model(model), operator.state.pki.signing_key())


def test_a_server_set_back_to_a_backup_counts_anew_and_old_models_are_kept(operator, member, tmp_path):
    model, before = published(operator)
    download_model(member, "latest", tmp_path)
    shutil.rmtree(operator.state.artefacts.model(model))
    republish(operator, model, {"adapter.safetensors": b"new", "embeddings.safetensors": b"words"})
    assert contents(download_model(member, "latest", tmp_path))["adapter.safetensors"] == b"new"
    digest = hashlib.sha256(before["manifest.json"]).hexdigest()
    assert contents(tmp_path / f"{model}.{digest[:12]}") == before


@pytest.mark.parametrize("change", [lambda data: data[:-1] + b"?", lambda data: data + b"?"], ids=["other", "longer"])
def test_what_differs_from_its_digest_never_becomes_a_model(operator, member, tmp_path, change):
    """A file is damaged on the server after it was described; a repaired server is enough."""
    model, expected = published(operator)
    file = operator.state.artefacts.model(model) / "adapter.safetensors"
    file.write_bytes(change(expected["adapter.safetensors"]))
    with pytest.raises(TrustError, match=r"adapter\.safetensors"):
        download_model(member, "latest", tmp_path)
    assert not (tmp_path / model).exists()
    file.write_bytes(expected["adapter.safetensors"])
    assert contents(download_model(member, "latest", tmp_path)) == expected


def test_a_model_that_another_key_signed_is_not_accepted(operator, new_operator, member, tmp_path):
    model, _ = published(operator)
    from mos_common.signing import sign_model

    sign_model(operator.state.artefacts.model(model), new_operator().state.pki.signing_key())
    with pytest.raises(TrustError, match="was not signed by this federation's operator"):
        download_model(member, "latest", tmp_path)
    assert not (tmp_path / model).exists()


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", ".hidden", "", "sub/file", "adapter.safetensors"])
def test_file_names_of_a_hostile_server_lead_nowhere(operator, member, tmp_path, name):
    """Names outside the folder, hidden, or repeated: nothing is fetched."""
    model, _ = published(operator)
    hostile = [mos_pb2.File(name="adapter.safetensors", size=1), mos_pb2.File(name=name, size=1)]
    operator.faults["describe"] = lambda request, context: mos_pb2.Model(model=model, files=hostile)
    with pytest.raises(TrustError, match="impossible file names: nothing was fetched"):
        download_model(member, "latest", tmp_path / "models")
    operator.faults["describe"] = lambda request, context: mos_pb2.Model(model=name, files=hostile[:1])
    if name != "adapter.safetensors":
        with pytest.raises(TrustError, match="impossible file names"):
            download_model(member, "latest", tmp_path / "models")
    assert operator.fetched == []


def test_a_model_of_any_size_is_not_believed(operator, member, tmp_path):
    endless = [mos_pb2.File(name="adapter.safetensors", size=2**50)]
    operator.faults["describe"] = lambda request, context: mos_pb2.Model(model="round-001", files=endless)
    with pytest.raises(TrustError, match="more than 32 GiB: nothing was fetched"):
        download_model(member, "latest", tmp_path)


def test_a_disk_without_room_says_how_much_is_missing(operator, member, tmp_path, monkeypatch):
    published(operator)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StateError, match=r"1,000 bytes free, the model needs 3,\d+,\d+ more: make room"):
        download_model(member, "latest", tmp_path)
    assert operator.fetched == []


def test_a_place_that_is_no_folder_is_an_error_of_state(operator, member, tmp_path):
    published(operator)
    (tmp_path / "models").write_text("a file")
    with pytest.raises(StateError, match="models"):
        download_model(member, "latest", tmp_path / "models")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_an_error_of_state(operator, member, tmp_path):
    published(operator)
    (tmp_path / "models").mkdir(mode=0o500)
    with pytest.raises(StateError, match="models"):
        download_model(member, "latest", tmp_path / "models")


def test_a_barred_participant_is_told_so(operator, member, tmp_path):
    published(operator)
    operator.journal.participants.bar("alice")
    with pytest.raises(TrustError, match=r"the server refuses: .*not admitted"):
        download_model(member, "latest", tmp_path)


@pytest.mark.parametrize("model", ["round-007", "latest", "../pki"])
def test_a_model_that_is_not_there_is_not_there(operator, member, tmp_path, model):
    with pytest.raises(RequestError, match="the server says"):
        download_model(member, model, tmp_path)


def test_a_server_that_is_away_is_a_network_error(operator, member, tmp_path):
    published(operator)
    operator.stop()
    with pytest.raises(NetworkError, match="cannot be reached"):
        download_model(member, "latest", tmp_path)


def test_a_candidate_is_known_by_the_digest_that_was_announced(operator, member, tmp_path, candidate):
    """It has no signature yet. A candidate that was fused again replaces the earlier one; a
    candidate other than the announced one is not scored.
    """
    digest = candidate({"adapter.safetensors": b"first"})
    name = "round-001-candidate"
    folder = download_model(member, name, tmp_path, manifest_digest=digest)
    assert (folder / "adapter.safetensors").read_bytes() == b"first"
    newer = candidate({"adapter.safetensors": b"second"})
    folder = download_model(member, name, tmp_path, manifest_digest=newer)
    assert (folder / "adapter.safetensors").read_bytes() == b"second"
    with pytest.raises(TrustError, match="a manifest other than the one the operator announced"):
        download_model(member, name, tmp_path / "elsewhere", manifest_digest=digest)
    assert not (tmp_path / "elsewhere" / name).exists()


@pytest.fixture
def candidate(operator, member, tmp_path, monkeypatch) -> Callable[[dict[str, bytes]], str]:
    """Write the candidate of a round that alice may score; return its manifest's digest."""
    from mos_server.state.records import SCORING, RoundSettings

    round_ = operator.journal.rounds.ask(RoundSettings())
    operator.journal.rounds.advance(round_.id, SCORING)
    here = [SimpleNamespace(key=key_digest(public_pem(member.key)))]
    monkeypatch.setattr(operator.journal.uploads, "admitted", lambda name: here)
    monkeypatch.setattr(
        "mos_server.network.service.candidate_to_score", lambda state, *_: state.artefacts.candidate("round-001")
    )
    return lambda files: operator.write(operator.state.artefacts.candidate(round_.id), files)


def test_waiting_ends_with_news_or_when_told_to(operator, member, tmp_path):
    stop = threading.Event()
    threading.Timer(0.3, lambda: operator.publish(FILES)).start()
    assert wait_for_model(member, None, stop, pause_s=0.05) == "round-001"
    threading.Timer(0.2, stop.set).start()
    assert wait_for_model(member, "round-001", stop, pause_s=0.05) is None


def test_a_server_that_is_away_is_said_once_and_again_when_it_is_back(operator, member):
    """By its address, with the reason; and nothing while no model is published yet."""
    said: list[str] = []
    stop = threading.Event()
    waiting = threading.Thread(target=wait_for_model, args=(member, None, stop, said.append, 0.05))
    waiting.start()
    stop.wait(0.5)
    assert said == []
    operator.stop()
    for _ in range(200):
        stop.wait(0.05 if not said else 0.5)
        if said:
            break
    away, back = f"127.0.0.1:{operator.port} cannot be reached", f"127.0.0.1:{operator.port} is reachable again"
    assert "published models cannot be fetched, trying again every 0 s" in said[0]
    assert away in said[0]
    operator.start()
    for _ in range(600):
        if back in said[-1]:
            break
        stop.wait(0.05)
    stop.set()
    waiting.join(30)
    # A server that is stopping may answer once more: then it was back, and is away again. While it
    # is away, a line is said only if the cause is another: a cut connection, then a closed port.
    causes = [line.partition(" (since ")[0] for line in said]
    assert all(one != other for one, other in pairwise(causes))
    assert [away in line for line in said] == [back not in line for line in said]
    assert [after_back for after_back, line in pairwise(said) if back in after_back and back in line] == []
    assert back in said[-1]


def test_two_members_fetch_at_once(operator, member, tmp_path):
    _, expected = published(operator)
    bob = enrol(operator.kit("bob"), tmp_path / "bob")
    folders = {}
    threads = [
        threading.Thread(
            target=lambda joined=joined: folders.update(
                {joined.participant: download_model(joined, "latest", tmp_path / joined.participant / "m")}
            )
        )
        for joined in (member, bob)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {joined: contents(folder) for joined, folder in folders.items()} == {"alice": expected, "bob": expected}


def test_a_server_that_says_when_to_come_again_is_waited_for(operator, member, tmp_path: Path, monkeypatch):
    """It is no failed attempt, of which there may be one here."""
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    model, files = published(operator)
    fetch, refused = operator.real["fetch"], []

    def busy(request: mos_pb2.FetchRequest, key: str) -> Iterator[mos_pb2.Chunk]:
        if len(refused) < 2:
            refused.append(request.file)
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "come again", after_s=1)
        yield from fetch(request, key)

    operator.faults["fetch"] = busy
    assert contents(download_model(member, model, tmp_path / "models")) == files
    assert len(refused) == 2
