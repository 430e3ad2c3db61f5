"""mos.v1 over real gRPC and TLS: who may enrol, what may be fetched, and by whom."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mos_common import mos_pb2, mos_pb2_grpc
from mos_common.node_key import ENROL_PREFIX, create_node_key, key_digest, prove, public_pem
from mos_common.node_key import sign_call as signed
from mos_common.own.names import OwnName, own_folder
from mos_common.release import release_metadata
from mos_server.network.service import CHUNK_BYTES, MosService
from mos_server.state.folder import ServerConfig, State, create_state
from mos_server.state.journal import Journal
from mos_server.state.records import PUBLISHED, SCORING, RoundSettings, Upload
from serving import serving

WEEK = 7 * 86400.0
ADAPTER = bytes(range(256)) * 12000  # some fifty chunks


def sign_call(key: ec.EllipticCurvePrivateKey, method: str, request: object) -> tuple:
    return (*signed(key, method, request), *release_metadata())


@dataclass
class Federation:
    state: State
    journal: Journal
    folder: Path
    port: int
    enrolled: list[tuple[bytes, str]]
    channels: ExitStack
    stubs: dict[bytes, mos_pb2_grpc.MosStub] = field(default_factory=dict)

    def stub(self, key: ec.EllipticCurvePrivateKey | None = None) -> mos_pb2_grpc.MosStub:
        """The stub of somebody, who has a connection of their own."""
        whose = public_pem(key) if key else b"nobody"
        if whose not in self.stubs:
            credentials = grpc.ssl_channel_credentials(self.state.pki.authority.read_bytes())
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = self.channels.enter_context(
                grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, options=options)
            )
            self.stubs[whose] = mos_pb2_grpc.MosStub(channel)
        return self.stubs[whose]

    def participant(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Somebody who has enrolled."""
        key = create_node_key(self.folder / name)
        token, _ = self.journal.participants.invite(name, valid_s=WEEK)
        self.enrol(key, token)
        return key

    def enrol(self, key: ec.EllipticCurvePrivateKey, token: str, **changes) -> mos_pb2.EnrolReply:
        fields = {"token": token, "public_key": public_pem(key), "proof": prove(key, token)} | changes
        return self.stub(key).Enrol(mos_pb2.EnrolRequest(**fields), metadata=release_metadata())

    def describe(self, key: ec.EllipticCurvePrivateKey, model: str) -> mos_pb2.Model:
        request = mos_pb2.DescribeRequest(model=model)
        return self.stub(key).Describe(request, metadata=sign_call(key, "Describe", request))

    def fetch(self, key: ec.EllipticCurvePrivateKey, model: str, file: str, offset: int = 0) -> list[bytes]:
        request = mos_pb2.FetchRequest(model=model, file=file, offset=offset)
        return [chunk.data for chunk in self.stub(key).Fetch(request, metadata=sign_call(key, "Fetch", request))]


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    state = create_state(tmp_path / "state", ServerConfig(base="tiny", base_fingerprint="ab" * 32))
    journal, enrolled = Journal(state.database), []
    service = MosService(state, journal, lambda pem, name: enrolled.append((pem, name)))
    with serving(service, state.pki) as port, ExitStack() as channels:
        yield Federation(state, journal, tmp_path, port, enrolled, channels)
    journal.close()


def write_model(folder: Path, *, signed: bool, concepts: Sequence[Upload] = ()) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(ADAPTER)
    (folder / "private.txt").write_text("not in the manifest")
    files = {"adapter.safetensors": {"size": len(ADAPTER), "sha256": hashlib.sha256(ADAPTER).hexdigest()}}
    named = [{"token": upload.token, "digest": upload.digest} for upload in concepts]
    manifest = {"round": folder.name.removesuffix("-candidate"), "concepts": named, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if signed:
        (folder / "manifest.sig").write_bytes(b"signature")


@pytest.fixture
def published(federation: Federation) -> Federation:
    """A federation whose first round is published."""
    round_ = federation.journal.rounds.ask(RoundSettings())
    write_model(federation.state.artefacts.model(round_.id), signed=True)
    federation.journal.rounds.advance(round_.id, PUBLISHED)
    return federation


def refused(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


def test_a_kit_enrols_its_participant_once(federation: Federation):
    key, other = (create_node_key(federation.folder / name) for name in ("key", "other"))
    token, _ = federation.journal.participants.invite("alice", valid_s=WEEK)
    assert federation.enrol(key, token).participant == "alice"
    assert federation.enrolled == [(public_pem(key), "alice")]
    assert federation.journal.participants.is_admitted(key_digest(public_pem(key)))
    code, details = refused(lambda: federation.enrol(other, token))
    assert code == "PERMISSION_DENIED"
    assert "used already" in details


def test_nobody_enrols_a_key_that_is_not_theirs(federation: Federation):
    key, other = (create_node_key(federation.folder / name) for name in ("key", "other"))
    token, _ = federation.journal.participants.invite("alice", valid_s=WEEK)
    assert refused(lambda: federation.enrol(other, token, public_key=public_pem(key)))[0] == "PERMISSION_DENIED"
    assert federation.journal.participants.all() == []
    assert federation.enrol(key, token).participant == "alice"


def test_a_key_that_flower_would_not_take_leaves_the_token_unused(federation: Federation):
    key = ec.generate_private_key(ec.SECP256K1())
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    token, _ = federation.journal.participants.invite("alice", valid_s=WEEK)
    proof = key.sign(ENROL_PREFIX + b"\0" + token.encode(), ec.ECDSA(hashes.SHA256()))
    request = mos_pb2.EnrolRequest(token=token, public_key=pem, proof=proof)
    assert "P-384" in refused(lambda: federation.stub().Enrol(request, metadata=release_metadata()))[1]
    assert federation.enrol(create_node_key(federation.folder / "key"), token).participant == "alice"


def test_flower_is_told_the_one_text_of_a_key(federation: Federation):
    key = create_node_key(federation.folder / "key")
    token, _ = federation.journal.participants.invite("alice", valid_s=WEEK)
    federation.enrol(key, token, public_key=b"a comment\n" + public_pem(key).replace(b"\n", b"\r\n"))
    assert federation.enrolled == [(public_pem(key), "alice")]


def test_the_latest_model_is_described_and_fetched(published: Federation):
    alice = published.participant("alice")
    model = published.describe(alice, "latest")
    assert model.model == "round-001"
    assert {file.name for file in model.files} == {"manifest.json", "manifest.sig", "adapter.safetensors"}
    for file in model.files:
        chunks = published.fetch(alice, model.model, file.name)
        assert max(map(len, chunks)) <= CHUNK_BYTES
        data = b"".join(chunks)
        assert (len(data), hashlib.sha256(data).digest()) == (file.size, file.sha256)


def test_a_download_goes_on_where_it_was_cut(published: Federation):
    alice = published.participant("alice")
    rest = b"".join(published.fetch(alice, "round-001", "adapter.safetensors", offset=1_234_567))
    assert rest == ADAPTER[1_234_567:]
    assert published.fetch(alice, "round-001", "adapter.safetensors", offset=len(ADAPTER)) == []
    beyond = refused(lambda: published.fetch(alice, "round-001", "adapter.safetensors", offset=len(ADAPTER) + 1))
    assert beyond[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "file", ["private.txt", "../../pki/ca.key", "/etc/passwd", "", ".", "adapter.safetensors/", "manifest.json\0"]
)
def test_only_files_of_the_manifest_leave(published: Federation, file: str):
    alice = published.participant("alice")
    assert refused(lambda: published.fetch(alice, "round-001", file))[0] == "NOT_FOUND"


@pytest.mark.parametrize("model", ["", "..", "round-001/..", "../pki", "round-002", "round-001-candidate", "ROUND-001"])
def test_only_models_of_the_journal_are_known(published: Federation, model: str):
    alice = published.participant("alice")
    assert refused(lambda: published.describe(alice, model))[0] == "NOT_FOUND"


def test_before_the_first_round_there_is_nothing(federation: Federation):
    code, details = refused(lambda: federation.describe(federation.participant("alice"), "latest"))
    assert code == "NOT_FOUND"
    assert "no model is published yet" in details


def test_a_candidate_is_for_those_whose_concept_is_in_it_while_it_is_scored(federation: Federation):
    alice, bob = federation.participant("alice"), federation.participant("bob")
    round_ = federation.journal.rounds.ask(RoundSettings())
    digest = key_digest(public_pem(alice))
    upload = federation.journal.uploads.add(Upload(0, round_.id, digest, "alice", "<cat>", "d", 1, 0.0, None, None))
    write_model(federation.state.artefacts.candidate(round_.id), signed=False, concepts=[upload])
    assert refused(lambda: federation.describe(alice, "round-001-candidate"))[0] == "NOT_FOUND"
    federation.journal.rounds.advance(round_.id, SCORING)
    assert {file.name for file in federation.describe(alice, "round-001-candidate").files} == {
        "manifest.json",
        "adapter.safetensors",
    }
    assert refused(lambda: federation.describe(bob, "round-001-candidate"))[0] == "NOT_FOUND"
    assert refused(lambda: federation.describe(alice, "round-001"))[0] == "NOT_FOUND"


def test_strangers_and_revoked_keys_get_nothing(published: Federation):
    alice = published.participant("alice")
    stranger = create_node_key(published.folder / "stranger")
    assert refused(lambda: published.describe(stranger, "latest"))[0] == "UNAUTHENTICATED"
    assert refused(lambda: published.stub().Describe(mos_pb2.DescribeRequest(model="latest")))[0] == "UNAUTHENTICATED"
    published.journal.participants.revoke(key_digest(public_pem(alice)))
    assert refused(lambda: published.fetch(alice, "round-001", "manifest.json"))[0] == "UNAUTHENTICATED"


def test_a_signed_call_is_good_once_and_for_nothing_else(published: Federation):
    alice = published.participant("alice")
    request = mos_pb2.DescribeRequest(model="latest")
    metadata = sign_call(alice, "Describe", request)
    published.stub(alice).Describe(request, metadata=metadata)
    assert "replay" in refused(lambda: published.stub(alice).Describe(request, metadata=metadata))[1]
    other = mos_pb2.DescribeRequest(model="round-001")
    metadata = sign_call(alice, "Describe", request)
    assert refused(lambda: published.stub(alice).Describe(other, metadata=metadata))[0] == "UNAUTHENTICATED"


def test_a_server_of_another_authority_is_not_spoken_to(federation: Federation, tmp_path: Path):
    other = create_state(tmp_path / "other", ServerConfig(base="tiny", base_fingerprint="ab" * 32))
    credentials = grpc.ssl_channel_credentials(other.pki.authority.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{federation.port}", credentials) as channel:
        stub = mos_pb2_grpc.MosStub(channel)
        call = refused(lambda: stub.Describe(mos_pb2.DescribeRequest(model="latest"), timeout=10))
    assert call[0] == "UNAVAILABLE"


def with_own(federation: Federation, key: str) -> tuple[str, bytes]:
    """Publish a round with alice's own changes beside its model; return their name and manifest."""
    round_ = federation.journal.rounds.ask(RoundSettings(publishes="own"))
    upload = federation.journal.uploads.add(
        Upload(0, round_.id, key, "alice", "<cat>", "d", 1, 0.0, None, None, own=True)
    )
    model = federation.state.artefacts.model(round_.id)
    write_model(own_folder(model, upload.token), signed=True)
    data = (own_folder(model, upload.token) / "manifest.json").read_bytes()
    write_model(model, signed=True, concepts=[upload])
    manifest = json.loads((model / "manifest.json").read_bytes())
    manifest["concepts"][0]["own"] = hashlib.sha256(data).hexdigest()
    (model / "manifest.json").write_text(json.dumps(manifest))
    federation.journal.rounds.publish(round_.id, hashlib.sha256((model / "manifest.json").read_bytes()).hexdigest())
    return str(OwnName(round_.id, upload.token)), data


def test_own_changes_are_handed_out_until_the_concept_is_withdrawn(federation: Federation):
    """By name and file, to every admitted key; after a withdrawal neither described nor fetched."""
    alice, bob = federation.participant("alice"), federation.participant("bob")
    name, manifest = with_own(federation, key_digest(public_pem(alice)))
    assert name == "round-001.own.alice.cat"
    described = {file.name: file.size for file in federation.describe(bob, name).files}
    assert described == {"adapter.safetensors": len(ADAPTER), "manifest.json": len(manifest), "manifest.sig": 9}
    assert b"".join(federation.fetch(bob, name, "manifest.json")) == manifest
    for wrong in ("round-001.own.bob.cat", "round-001.own.alice.dog", "round-002.own.alice.cat", "round-001.own...cat"):
        assert refused(lambda wrong=wrong: federation.describe(bob, wrong))[0] == "NOT_FOUND"
    assert refused(lambda: federation.fetch(bob, name, "private.txt"))[0] == "NOT_FOUND"
    federation.journal.uploads.withdraw("<alice/cat>")
    assert refused(lambda: federation.describe(bob, name))[0] == "NOT_FOUND"
    assert refused(lambda: federation.fetch(bob, name, "manifest.json"))[0] == "NOT_FOUND"
    assert federation.describe(bob, "round-001").model == "round-001"


def test_own_changes_that_the_model_does_not_name_are_not_handed_out(federation: Federation):
    alice = federation.participant("alice")
    name, _ = with_own(federation, key_digest(public_pem(alice)))
    folder = own_folder(federation.state.artefacts.model("round-001"), "<alice/cat>")
    (folder / "manifest.json").write_text("{}")
    assert refused(lambda: federation.describe(alice, name))[0] == "NOT_FOUND"


def test_a_key_that_downloads_the_same_again_and_again_is_told_when_to_come_back(published: Federation):
    """Eight times a file in an hour are allowed however small the quota."""
    service = MosService(published.state, published.journal, lambda pem, name: None, hourly_bytes=1)
    credentials = grpc.ssl_channel_credentials(published.state.pki.authority.read_bytes())
    key = published.participant("mallory")
    request = mos_pb2.FetchRequest(model="round-001", file="adapter.safetensors")
    with serving(service, published.state.pki) as port, grpc.secure_channel(f"127.0.0.1:{port}", credentials) as line:
        stub = mos_pb2_grpc.MosStub(line)

        def fetched() -> bytes:
            return b"".join(chunk.data for chunk in stub.Fetch(request, metadata=sign_call(key, "Fetch", request)))

        for _ in range(8):
            assert fetched() == ADAPTER
        with pytest.raises(grpc.RpcError) as caught:
            fetched()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "more than its hourly quota: come again in" in caught.value.details()
    assert 0 < int(dict(caught.value.trailing_metadata())["mos-retry-after-s"]) <= 3600


def test_a_participant_withdraws_its_own_concept_and_nobody_elses(federation: Federation):
    """Whichever key of the name has sent it; another's concept of that name stays."""
    alice, bob = federation.participant("alice"), federation.participant("bob")
    round_ = federation.journal.rounds.ask(RoundSettings())
    for name, key in (("alice", alice), ("bob", bob)):
        digest = key_digest(public_pem(key))
        federation.journal.uploads.add(Upload(0, round_.id, digest, name, "<cat>", name * 8, 1, 0.0, None, None))

    def withdraw(key: ec.EllipticCurvePrivateKey, concept: str) -> mos_pb2.WithdrawReply:
        request = mos_pb2.WithdrawRequest(concept=concept)
        return federation.stub(key).Withdraw(request, metadata=sign_call(key, "Withdraw", request))

    assert refused(lambda: withdraw(alice, "<bob/cat>"))[0] == "INVALID_ARGUMENT"
    assert refused(lambda: withdraw(alice, "<dog>"))[0] == "NOT_FOUND"
    assert list(withdraw(alice, "<cat>").models) == []
    assert [upload.token for upload in federation.journal.uploads.kept()] == ["<bob/cat>"]
    assert refused(lambda: withdraw(alice, "<cat>"))[0] == "NOT_FOUND"
