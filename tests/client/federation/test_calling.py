"""What a client makes of a server that does not fit, is busy, or is at the end of a dead line."""

from __future__ import annotations

import shutil
import threading
import time

import pytest

from mos_client.federation import download
from mos_client.federation.calling import calling, waiting
from mos_client.federation.download import describe, download_model, greet, wait_for_model
from mos_client.federation.enrolment import enrol
from mos_common import mos_pb2, node_key
from mos_common.errors import NetworkError, ReleaseError, TrustError
from mos_common.release import OURS, PROTOCOL_KEY, RELEASE_KEY
from mos_server.network.calls import CallLimits
from mos_server.state.records import PUBLISHED, RoundSettings

FILES = {"adapter.safetensors": bytes(range(256)) * 4000, "embeddings.safetensors": b"words" * 100}
OTHERS = [
    ((), "the server is release 0.1.0 or earlier.*ask the operator to install release"),
    (((RELEASE_KEY, "9.0"), (PROTOCOL_KEY, "99")), "install release 9.0 and run the same command again"),
    (((RELEASE_KEY, "x\n"), (PROTOCOL_KEY, "99")), "does not say clearly which release it is"),
]


@pytest.fixture
def server_of(monkeypatch):
    """Return a function after which servers say another release, and take ours for theirs."""

    def other(metadata: tuple) -> None:
        monkeypatch.setattr("mos_server.network.calls.release_metadata", lambda: metadata)

    return other


@pytest.mark.parametrize(("said", "advice"), OTHERS[:2])
def test_nobody_enrols_at_a_server_that_does_not_fit(operator, tmp_path, server_of, said, advice):
    server_of(said)
    with pytest.raises(ReleaseError, match=advice):
        enrol(operator.kit(), tmp_path)
    assert not (tmp_path / "enrolled.json").exists()


@pytest.mark.parametrize(("said", "advice"), OTHERS[:2])
def test_who_enrolled_long_ago_is_told_at_the_start_of_a_session(operator, member, server_of, said, advice):
    server_of(said)
    with pytest.raises(ReleaseError, match=advice):
        greet(member, print)
    operator.publish(FILES)
    with pytest.raises(ReleaseError, match=advice):
        greet(member, print)


def test_who_is_refused_for_a_release_reads_of_releases(operator, member, monkeypatch):
    """The server's refusal and the client's own judgement say the same."""
    newer = type(OURS)("9.0", 99)
    monkeypatch.setattr("mos_server.network.calls.OURS", newer)
    monkeypatch.setattr(
        "mos_server.network.calls.release_metadata", lambda: ((RELEASE_KEY, "9.0"), (PROTOCOL_KEY, "99"))
    )
    with pytest.raises(ReleaseError, match=r"install release 9\.0 and run the same command again"):
        greet(member, print)


def test_a_server_that_is_away_is_no_verdict_on_its_release(operator, member):
    operator.stop()
    said: list[str] = []
    greet(member, said.append)
    assert len(said) == 1
    assert "whether the server's release fits this one is not known yet" in said[0]


def test_a_busy_server_is_waited_for(operator, member):
    """It says so once, and once when it answers."""
    operator.publish(FILES)
    operator.limits = CallLimits(calls_per_key=0)
    operator.stop()
    operator.start()
    said: list[str] = []
    stop = threading.Event()
    waited = threading.Thread(target=wait_for_model, args=(member, None, stop, said.append, 0.05))
    waited.start()
    while not said:
        time.sleep(0.05)
    time.sleep(0.3)
    assert len(said) == 1
    assert "cannot answer now (0 calls with this key are running already" in said[0]
    operator.stop()
    operator.limits = None
    operator.start()
    waited.join(60)
    assert not waited.is_alive()
    assert "reachable again" in said[-1]


def test_a_clock_that_is_off_is_said_and_waited_for(operator, member, monkeypatch):
    operator.publish(FILES)
    right, off, said = node_key.sign_call, [-600.0, 0.0], []

    def signed(*call):
        now = time.time() + off.pop(0)
        with monkeypatch.context() as clock:
            clock.setattr(node_key.time, "time", lambda: now)
            return right(*call)

    with calling(member.kit) as stub:
        request = mos_pb2.DescribeRequest(model="latest")

        def call():
            return stub.Describe(request, metadata=signed(member.key, "Describe", request), timeout=20)

        assert waiting(call, member.kit, said.append).model == "round-001"
    assert "cannot answer now (the participant's clock is 600 s behind the server's" in said[0]


def test_a_download_that_stays_silent_is_begun_again(operator, member, tmp_path, monkeypatch):
    """The server has lost the line and does not know it: the client asks again for the rest."""
    operator.publish(FILES)
    monkeypatch.setattr(download, "SILENT_S", 0.5)
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    fetch, silent = operator.real["fetch"], threading.Event()

    def stuck(request, key):
        for number, chunk in enumerate(fetch(request, key)):
            if number == 3 and request.offset == 0:
                silent.wait(3)
            yield chunk

    operator.faults["fetch"] = stuck
    folder = download_model(member, "latest", tmp_path)
    assert (folder / "adapter.safetensors").read_bytes() == FILES["adapter.safetensors"]
    assert [offset > 0 for file, offset in operator.fetched if file.startswith("adapter")] == [False, True]
    silent.set()


def test_a_line_that_breaks_often_gets_there_in_the_end(operator, member, tmp_path, monkeypatch):
    """More often than attempts are made without progress."""
    operator.publish(FILES)
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    fetch = operator.real["fetch"]

    def breaking(request, key):
        for number, chunk in enumerate(fetch(request, key)):
            if number == 2 and request.file.startswith("adapter"):
                raise ValueError("the line is cut")
            yield chunk

    operator.faults["fetch"] = breaking
    folder = download_model(member, "latest", tmp_path)
    assert (folder / "adapter.safetensors").read_bytes() == FILES["adapter.safetensors"]
    assert len(operator.fetched) > download.ATTEMPTS + 2


def test_a_model_under_another_name_is_not_used(operator, member, tmp_path, monkeypatch):
    """On the server: cp -r models/round-001 models/round-002, and a server that hands it out."""
    operator.publish(FILES)
    round_ = operator.journal.rounds.ask(RoundSettings())
    shutil.copytree(operator.state.artefacts.model("round-001"), operator.state.artefacts.model(round_.id))
    operator.journal.rounds.advance(round_.id, PUBLISHED)
    monkeypatch.setattr(
        "mos_server.network.service.published_model", lambda state, journal, name: state.artefacts.model(name)
    )
    for name in ("latest", "round-002"):
        with pytest.raises(TrustError, match="sends the model of 'round-001' under the name round-002"):
            download_model(member, name, tmp_path)
    assert not (tmp_path / "round-002").exists()


def test_a_description_of_another_model_is_not_used(operator, member, tmp_path):
    operator.publish(FILES)
    real = operator.real["describe"]

    def other(request, key):
        request.model = "latest"
        return real(request, key)

    operator.faults["describe"] = other
    with pytest.raises(TrustError, match="describes 'round-001' instead of round-002"):
        download_model(member, "round-002", tmp_path)


def test_a_journal_that_is_broken_is_waited_for(operator, member):
    for file in operator.state.path.glob("server.db*"):
        file.unlink()
    operator.journal.close()
    operator.state.database.write_bytes(b"no database" * 500)
    with (
        calling(member.kit) as stub,
        pytest.raises(NetworkError, match=r"cannot answer now \(the server cannot answer now, its operator's log"),
    ):
        describe(member, stub, "latest")
