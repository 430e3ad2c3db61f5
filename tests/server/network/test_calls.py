"""How `mos.v1` receives calls: limits of time and number, releases, and what a refusal says."""

from __future__ import annotations

import gc
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import psutil
import pytest

from mos_common import mos_pb2, mos_pb2_grpc
from mos_common.node_key import create_node_key, key_digest, prove, public_pem, sign_call
from mos_common.release import OURS, PROTOCOL_KEY, RELEASE_KEY, release_in, release_metadata
from mos_server.network.calls import CallLimits
from mos_server.network.service import MosService
from mos_server.state.folder import ServerConfig, State, create_state
from mos_server.state.journal import Journal
from mos_server.state.records import PUBLISHED, RoundSettings
from serving import serving

QUICK = CallLimits(request_s=0.5, answer_s=30.0, piece_s=1.0, barred_after_s=0.0)
LARGE = 8 << 20  # more than all buffers on the way hold


class Server:
    """A server with one participant, alice, and one published model."""

    def __init__(self, folder: Path) -> None:
        self.state: State = create_state(folder / "state", ServerConfig(base="tiny", base_fingerprint="ab" * 32))
        self.journal = Journal(self.state.database)
        self.key = create_node_key(folder / "alice")
        token, _ = self.journal.participants.invite("alice", valid_s=3600)
        self.digest = key_digest(public_pem(self.key))
        self.journal.participants.enrol(token, self.digest, public_pem(self.key))
        round_ = self.journal.rounds.ask(RoundSettings())
        self.model = self.state.artefacts.model(round_.id)
        self.model.mkdir(parents=True)
        (self.model / "adapter.safetensors").write_bytes(bytes(LARGE))
        files = {"adapter.safetensors": {"size": LARGE, "sha256": "ab" * 32}}
        manifest = {"round": round_.id, "concepts": [], "files": files}
        (self.model / "manifest.json").write_text(json.dumps(manifest))
        (self.model / "manifest.sig").write_bytes(b"signature")
        self.journal.rounds.advance(round_.id, PUBLISHED)
        self.port = 0

    def channel(self) -> grpc.Channel:
        """A connection of its own."""
        credentials = grpc.ssl_channel_credentials(self.state.pki.authority.read_bytes())
        return grpc.secure_channel(
            f"127.0.0.1:{self.port}", credentials, options=[("grpc.use_local_subchannel_pool", 1)]
        )

    def signed(self, method: str, request: object, release: tuple = release_metadata()) -> tuple:
        return (*sign_call(self.key, method, request), *release)

    def describe(self, channel: grpc.Channel, release: tuple = release_metadata()) -> str:
        request = mos_pb2.DescribeRequest(model="latest")
        stub = mos_pb2_grpc.MosStub(channel)
        return stub.Describe(request, metadata=self.signed("Describe", request, release), timeout=20).model

    def fetch(self, channel: grpc.Channel) -> grpc.Call:
        request = mos_pb2.FetchRequest(model="round-001", file="adapter.safetensors")
        return mos_pb2_grpc.MosStub(channel).Fetch(request, metadata=self.signed("Fetch", request))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    service = MosService(server.state, server.journal, lambda pem, name: None)
    with serving(service, server.state.pki, limits=QUICK) as server.port:
        yield server
    server.journal.close()


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with server.channel() as channel:
        yield channel


def refused(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


@contextmanager
def half_open(channel: grpc.Channel, method: str, count: int) -> Iterator[list]:
    """Begin calls whose request never comes."""
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait(120)
        yield from ()

    opened = channel.stream_unary(f"/mos.v1.Mos/{method}")
    try:
        yield [opened.future(nothing()) for _ in range(count)]
    finally:
        never.set()


@pytest.mark.parametrize("method", ["Enrol", "Describe", "Fetch"])
def test_a_request_that_never_comes_ends_the_call_and_holds_nobody_up(server: Server, channel, method: str):
    with server.channel() as attackers, half_open(attackers, method, 40) as calls:
        assert server.describe(channel) == "round-001"
        code, details = refused(calls[0].result)
        assert code == "DEADLINE_EXCEEDED"
        assert f"{method} took too long" in details
        assert server.describe(channel) == "round-001"


def test_downloads_that_are_not_read_hold_nobody_up_and_are_ended(server: Server, channel):
    with server.channel() as greedy:
        begun = [server.fetch(greedy) for _ in range(QUICK.downloads_per_key)]
        for call in begun:
            next(call)
        code, details = refused(lambda: next(server.fetch(greedy)))
        assert code == "RESOURCE_EXHAUSTED"
        assert "4 downloads with this key are running already" in details
        assert server.describe(channel) == "round-001"
        for _ in range(60):
            time.sleep(QUICK.piece_s)
            with suppress(grpc.RpcError):
                assert len(next(server.fetch(channel)).data) > 0
                break
        else:
            pytest.fail("those that were not read count for ever")


def test_a_running_download_of_a_barred_key_ends(server: Server, channel):
    call = server.fetch(channel)
    next(call)
    server.journal.participants.bar("alice")
    code, details = refused(lambda: list(call))
    assert (code, details) == ("UNAUTHENTICATED", "this key is no longer admitted: ask the operator")
    assert refused(lambda: server.describe(channel))[0] == "UNAUTHENTICATED"


@pytest.mark.parametrize("end", ["barred", "cancelled", "not read", "read"])
def test_the_file_of_a_download_is_closed_however_it_ends(server: Server, channel, end: str):
    call = server.fetch(channel)
    next(call)
    assert being_read(server.model) == 1
    if end == "barred":
        server.journal.participants.bar("alice")
    if end == "cancelled":
        call.cancel()
    if end in ("barred", "read"):
        with suppress(grpc.RpcError):
            list(call)
    gc.disable()  # what only the collector closes stays open
    try:
        for _ in range(600):
            if not being_read(server.model):
                return
            time.sleep(0.1)
        pytest.fail("the file stays open")
    finally:
        gc.enable()


def being_read(model: Path) -> int:
    """The files of a model that this process, which is the server here, has open."""
    return sum(Path(each.path).parent == model for each in psutil.Process().open_files())


def test_calls_with_deadlines_in_the_far_future_end_all_the_same(server: Server):
    with server.channel() as channel:
        call = channel.stream_unary("/mos.v1.Mos/Enrol").future(iter(threading.Event().wait, False), timeout=10**6)
        assert refused(call.result)[0] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("method", ["Enrol", "Describe", "Fetch"])
@pytest.mark.parametrize("data", [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x07"])
def test_what_is_no_request_is_called_so(server: Server, channel, method: str, data: bytes):
    code, details = refused(lambda: channel.unary_unary(f"/mos.v1.Mos/{method}")(data))
    assert (code, details) == ("INVALID_ARGUMENT", "the request cannot be decoded")


def test_a_stream_without_a_request_is_called_so(channel):
    code, details = refused(lambda: channel.stream_unary("/mos.v1.Mos/Enrol")(iter(())))
    assert (code, details) == ("INVALID_ARGUMENT", "the call has no request")


@pytest.mark.parametrize("method", ["Enrol", "Describe", "Fetch"])
def test_a_small_message_never_becomes_a_large_one(server: Server, channel, method: str):
    """Sixteen megabytes of zeros are sixteen kilobytes on the wire."""
    bomb = mos_pb2.EnrolRequest(token="0" * (16 << 20)).SerializeToString()
    call = channel.unary_unary(f"/mos.v1.Mos/{method}")
    assert refused(lambda: call(bomb, compression=grpc.Compression.Gzip))[0] in ("UNIMPLEMENTED", "INVALID_ARGUMENT")
    assert refused(lambda: call(bomb))[0] == "RESOURCE_EXHAUSTED"
    assert server.describe(channel) == "round-001"


def test_headers_are_bounded(server: Server):
    with server.channel() as channel:
        call = channel.unary_unary("/mos.v1.Mos/Enrol")
        metadata = [(f"x-{number}", "0" * 1000) for number in range(60)]
        assert refused(lambda: call(b"", metadata=metadata))[0] == "RESOURCE_EXHAUSTED"
    with server.channel() as channel:
        assert server.describe(channel) == "round-001"


@pytest.mark.parametrize(
    "flood",
    [
        b"PRI * HT",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0" * 20_000,  # SETTINGS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" + b"\0\0\x08\x06\0\0\0\0\0pingping" * 20_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x01\0\0\0\0\x01"
        + b"\0\0\0\x09\0\0\0\0\x01" * 20_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["half a preface", "settings", "pings", "continuations", "http 1"],
)
def test_frames_without_a_call_hold_nobody_up(server: Server, channel, flood: bytes):
    context = ssl.create_default_context(cafile=str(server.state.pki.authority))
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    with ExitStack() as opened:
        for _ in range(10):
            raw = opened.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            tls = opened.enter_context(context.wrap_socket(raw))
            with suppress(OSError):  # cut off already
                tls.sendall(flood)
        assert server.describe(channel) == "round-001"


def test_both_sides_say_their_release(server: Server, channel):
    request = mos_pb2.DescribeRequest(model="latest")
    call = mos_pb2_grpc.MosStub(channel).Describe.with_call(request, metadata=server.signed("Describe", request))[1]
    assert release_in(call.initial_metadata()) == OURS
    assert [each.release for each in server.journal.participants.all()] == [OURS.name]


def test_an_error_says_the_release_too(channel):
    with pytest.raises(grpc.RpcError) as caught:
        mos_pb2_grpc.MosStub(channel).Describe(mos_pb2.DescribeRequest(model="latest"))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert release_in(caught.value.initial_metadata()) == OURS


@pytest.mark.parametrize(
    ("release", "advice"),
    [
        ((), f"release 0.1.0 or earlier.*install release {OURS.name} and run the same command again"),
        (((RELEASE_KEY, "9.0"), (PROTOCOL_KEY, "99")), f"ask the operator to install release 9.0, or .* {OURS.name}"),
    ],
    ids=["older", "newer"],
)
def test_a_release_that_does_not_fit_is_refused_with_what_to_install(server: Server, channel, caplog, release, advice):
    code, details = refused(lambda: server.describe(channel, release))
    assert code == "PERMISSION_DENIED"
    assert re.search(advice, details)
    assert [line for line in caplog.messages if line.startswith("alice runs release")]
    (alice,) = server.journal.participants.all()
    assert alice.release == (release[0][1] if release else "0.1.0 or earlier")


def test_an_enrolment_by_a_release_that_does_not_fit_leaves_the_token_unused(server: Server, channel, tmp_path):
    key = create_node_key(tmp_path / "bob")
    token, _ = server.journal.participants.invite("bob", valid_s=3600)
    request = mos_pb2.EnrolRequest(token=token, public_key=public_pem(key), proof=prove(key, token))
    stub = mos_pb2_grpc.MosStub(channel)
    assert "0.1.0 or earlier" in refused(lambda: stub.Enrol(request))[1]
    assert stub.Enrol(request, metadata=release_metadata()).participant == "bob"


def test_a_release_said_twice_is_refused(server: Server, channel):
    code, details = refused(lambda: server.describe(channel, release_metadata() + release_metadata()))
    assert code == "INVALID_ARGUMENT"
    assert "does not say clearly which release" in details


def test_a_clock_that_is_off_is_no_verdict(server: Server, channel, monkeypatch):
    now = time.time()
    request = mos_pb2.DescribeRequest(model="latest")
    with monkeypatch.context() as clock:
        clock.setattr("mos_common.node_key.time.time", lambda: now - 600)
        metadata = server.signed("Describe", request)
    code, details = refused(lambda: mos_pb2_grpc.MosStub(channel).Describe(request, metadata=metadata))
    assert code == "FAILED_PRECONDITION"
    assert "behind the server's" in details


def test_strangers_write_one_log_line_a_minute(server: Server, channel, caplog):
    for _ in range(30):
        refused(lambda: mos_pb2_grpc.MosStub(channel).Describe(mos_pb2.DescribeRequest(model="latest")))
    assert len([line for line in caplog.messages if "refused" in line]) == 1


def spoilt_journal(server: Server) -> None:
    server.journal.close()
    for file in server.state.path.glob("server.db*"):
        file.unlink()
    server.state.database.write_bytes(b"not a database at all" * 100)


def missing_model(server: Server) -> None:
    (server.model / "manifest.json").unlink()


def spoilt_manifest(server: Server) -> None:
    (server.model / "manifest.json").write_text('{"files": [1]}')


def missing_file(server: Server) -> None:
    (server.model / "adapter.safetensors").unlink()


@pytest.mark.parametrize("spoil", [spoilt_journal, missing_model, spoilt_manifest, missing_file])
@pytest.mark.parametrize("method", ["Enrol", "Describe", "Fetch"])
def test_no_answer_carries_a_path_or_a_foreign_error(server: Server, channel, tmp_path, spoil, method: str):
    """Whatever is broken on the server, a caller reads a sentence of ours."""
    key = create_node_key(tmp_path / "bob")
    token, _ = server.journal.participants.invite("bob", valid_s=3600)
    spoil(server)
    enrol = mos_pb2.EnrolRequest(token=token, public_key=public_pem(key), proof=prove(key, token))
    stub = mos_pb2_grpc.MosStub(channel)
    calls = {
        "Enrol": lambda: stub.Enrol(enrol, metadata=release_metadata()),
        "Describe": lambda: server.describe(channel),
        "Fetch": lambda: list(server.fetch(channel)),
    }
    broken = spoil is spoilt_journal or method == "Fetch" or (method == "Describe" and spoil is not missing_file)
    if not broken:
        calls[method]()
        return
    code, details = refused(calls[method])
    if spoil in (missing_model, spoilt_manifest):  # not the model that was published, so it is none
        assert (code, details) == ("NOT_FOUND", "there is no model 'round-001' for you")
    else:
        assert (code, details) == ("UNAVAILABLE", "the server cannot answer now, its operator's log says why")


def test_complaint_7_a_client_that_often_asks_whether_the_line_holds_is_not_thrown_out(server: Server):
    """As often as the server allows, for longer than gRPC is patient with pings."""
    options = [("grpc.keepalive_time_ms", 5_000), ("grpc.keepalive_permit_without_calls", 1)]
    credentials = grpc.ssl_channel_credentials(server.state.pki.authority.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials, options=options) as channel:
        states: list[grpc.ChannelConnectivity] = []
        channel.subscribe(states.append)
        server.describe(channel)
        time.sleep(22)
        server.describe(channel)
    assert grpc.ChannelConnectivity.TRANSIENT_FAILURE not in states
