"""Every byte that two clients send in a whole round, and what the server keeps of them.

A relay with the federation's own certificate stands between the real processes, so it sees the
bytes as they were before TLS. Each of them is protocol or in a row of `leaving.LEAVES`. Bob's
pictures are gone when he is asked to score, so that an error travels too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from google.protobuf.message import Message as Protobuf
from google.protobuf.unknown_fields import UnknownFieldSet

from end_to_end import interceptor as protocols
from end_to_end.federation import QUICK, Federation, is_ready, processes, tuned_people
from end_to_end.interceptor import Relay, http2_frames, http_requests
from mos_bench.demo import free_ports
from mos_bench.participant import Participant
from mos_client.federation import leaving
from mos_common import messages, mos_pb2
from mos_common.errors import PicturesError, TrustError
from mos_common.kit import read_kit
from mos_server.state.folder import open_state
from mos_server.state.journal import Journal

PROTOCOL = None  # a constant, or a size
HEX = r"[0-9a-f]{64}"
# Each header of the port for rounds: its row, and what it may hold.
HEADERS = {
    "host": (PROTOCOL, r"127\.0\.0\.1:\d+"),
    "accept": (PROTOCOL, "application/protobuf"),
    "accept-encoding": (PROTOCOL, r"[a-z, ]+"),
    "connection": (PROTOCOL, "keep-alive"),
    "content-type": (PROTOCOL, "application/protobuf"),
    "content-length": (PROTOCOL, r"\d+"),
    "user-agent": (leaving.VERSIONS, r"python-httpx2?/[\d.]+"),
    "flwr-public-key": (leaving.KEY, r"[A-Za-z0-9+/=]+"),
    "flwr-timestamp": (leaving.KEY, r"[\d:.T+-]+"),
    "flwr-signature": (leaving.KEY, r"[A-Za-z0-9+/=]+"),
    "flwr-package-name": (leaving.VERSIONS, "flwr"),
    "flwr-package-version": (leaving.VERSIONS, r"[\d.]+"),
    "flwr-component-name": (leaving.VERSIONS, "SuperNode"),
}
CALLS = {
    "activate-node": fleet_pb2.ActivateNodeRequest,
    "deactivate-node": fleet_pb2.DeactivateNodeRequest,
    "send-node-heartbeat": heartbeat_pb2.SendNodeHeartbeatRequest,
    "pull-messages": fleet_pb2.PullMessagesRequest,
    "push-messages": fleet_pb2.PushMessagesRequest,
    "get-run": run_pb2.GetRunRequest,
    "get-fab": fab_pb2.GetFabRequest,
    "push-object": message_pb2.PushObjectRequest,
    "pull-object": message_pb2.PullObjectRequest,
    "confirm-message-received": message_pb2.ConfirmMessageReceivedRequest,
}
# Each field of Flower's calls, by message and name: its row, and what it may hold.
FIELDS = {
    "ActivateNodeRequest.public_key": (leaving.KEY, r"-----BEGIN PUBLIC KEY-----[\s\S]*"),
    "ActivateNodeRequest.heartbeat_interval": (leaving.PRESENCE, r"[\d.]+"),
    "DeactivateNodeRequest.node_id": (leaving.PRESENCE, r"\d+"),
    "SendNodeHeartbeatRequest.heartbeat_interval": (leaving.PRESENCE, r"[\d.]+"),
    "Node.node_id": (leaving.BOOKKEEPING, r"\d+"),
    "PushMessagesRequest.clientapp_runtime_list": (leaving.BOOKKEEPING, r"[\d.e-]+"),
    "GetRunRequest.run_id": (leaving.BOOKKEEPING, r"\d+"),
    "GetFabRequest.run_id": (leaving.BOOKKEEPING, r"\d+"),
    "GetFabRequest.hash_str": (leaving.BOOKKEEPING, HEX),
    "PushObjectRequest.run_id": (leaving.BOOKKEEPING, r"\d+"),
    "PushObjectRequest.object_id": (leaving.BOOKKEEPING, HEX),
    "PushObjectRequest.session_id": (leaving.BOOKKEEPING, r"[\w-]+"),
    "PullObjectRequest.run_id": (leaving.BOOKKEEPING, r"\d+"),
    "PullObjectRequest.object_id": (leaving.BOOKKEEPING, HEX),
    "ConfirmMessageReceivedRequest.run_id": (leaving.BOOKKEEPING, r"\d+"),
    "ConfirmMessageReceivedRequest.message_object_id": (leaving.BOOKKEEPING, HEX),
    "Metadata.run_id": (leaving.BOOKKEEPING, r"\d+"),
    "Metadata.message_id": (leaving.BOOKKEEPING, HEX),
    "Metadata.src_node_id": (leaving.BOOKKEEPING, r"\d+"),
    "Metadata.dst_node_id": (leaving.BOOKKEEPING, r"\d+"),
    "Metadata.reply_to_message_id": (leaving.BOOKKEEPING, HEX),
    "Metadata.group_id": (leaving.BOOKKEEPING, r"\d+"),  # the bound of an answer in bytes, as it was asked
    "Metadata.message_type": (leaving.BOOKKEEPING, "train|evaluate"),
    "Metadata.ttl": (leaving.BOOKKEEPING, r"[\d.]+"),
    "Metadata.created_at": (leaving.BOOKKEEPING, r"[\d.e+]+"),
    "Metadata.src_task_id": (leaving.BOOKKEEPING, r"\d+"),
    "Metadata.dst_task_id": (leaving.BOOKKEEPING, r"\d+"),
    "ObjectTree.object_id": (leaving.BOOKKEEPING, HEX),
    "Error.code": (leaving.ERRORS, r"\d+"),
    "Error.reason": (leaving.ERRORS, r"[A-Z]\w*Error"),
}
METADATA = {
    "user-agent": (leaving.VERSIONS, r"grpc-python/[\d.]+ grpc-c/[\d.]+ \(.*\)"),
    "mos-release": (leaving.VERSIONS, r"[\w.]+"),
    "mos-protocol": (leaving.VERSIONS, r"\d+"),
    "mos-key-bin": (leaving.KEY, r"-----BEGIN PUBLIC KEY-----[\s\S]*"),
    "mos-time": (leaving.KEY, r"[\d.]+"),
    "mos-nonce": (leaving.KEY, r"\w+"),
    "mos-signature-bin": (leaving.KEY, r"[\s\S]+"),
}
MOS_FIELDS = {
    "EnrolRequest.token": (leaving.TOKEN, r"[\w-]+"),
    "EnrolRequest.public_key": (leaving.KEY, r"-----BEGIN PUBLIC KEY-----[\s\S]*"),
    "EnrolRequest.proof": (leaving.KEY, r"[\s\S]+"),
    "DescribeRequest.model": (leaving.DOWNLOADS, r"latest|round-001(-candidate)?"),
    "FetchRequest.model": (leaving.DOWNLOADS, r"round-001(-candidate)?"),
    "FetchRequest.file": (leaving.DOWNLOADS, r"[a-z]+\.(json|sig|safetensors)"),
    "FetchRequest.offset": (leaving.DOWNLOADS, r"\d+"),
}
Table = dict[str, tuple[leaving.Leaving | None, str]]


@dataclass
class Seen:
    """A federation after its round, its server stopped, and what its clients sent."""

    out: Path
    alice: Participant
    bob: Participant
    relay: Relay
    rows: set[leaving.Leaving] = field(default_factory=set)

    @property
    def state(self) -> Path:
        return self.out / "server"

    def account(self, table: Table, name: str, value: object) -> None:
        """Find the row of a value that was sent."""
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        assert name in table, f"{name} is sent and not listed: {text[:80]}"
        row, pattern = table[name]
        assert re.fullmatch(pattern, text), f"{name}: {text[:80]!r}"
        if row is not None:
            self.rows.add(row)

    def account_fields(self, table: Table, message: Protobuf) -> None:
        """Find the row of every field of a message; there are no others."""
        assert len(UnknownFieldSet(message)) == 0
        for descriptor, value in message.ListFields():
            for each in value if isinstance(value, list) or hasattr(value, "append") else [value]:
                if isinstance(each, Protobuf):
                    self.account_fields(table, each)
                elif descriptor.name != "object_content":  # `test_the_answers_are...` reads these
                    self.account(table, f"{type(message).__name__}.{descriptor.name}", each)


@pytest.fixture(scope="module")
def seen(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    out = tmp_path_factory.mktemp("leaving")
    with processes() as running:
        federation = Federation(out, running, tuned_people(tuned, out)[:2])
        alice, bob = federation.participants
        federation.create(sets=QUICK)
        config = federation.state.config
        relay, (real_fleet, real_mos) = Relay(federation.server / "pki"), map(int, free_ports(2))
        moved = config.model_copy(update={"fleet_port": real_fleet, "mos_port": real_mos})
        (federation.server / "config.json").write_text(moved.model_dump_json())
        federation.serve()
        with relay.between(fleet=(config.fleet_port, real_fleet), mos=(config.mos_port, real_mos)):
            federation.join(alice, bob)
            federation.until("both are ready", lambda: is_ready(alice) and is_ready(bob))
            bob.pictures.rename(bob.folder / "away")
            federation.round("--wait", "2", beside=["alice", "bob"])
            for someone in (alice, bob):
                running.wait(someone.name, timeout_s=120, beside=["server"])
        running.stop("server")
    yield Seen(out, alice, bob, relay)


def concept_file(someone: Participant) -> bytes:
    (file,) = (someone.state / "concepts").glob("*.safetensors")
    return file.read_bytes()


def calls_to_flower(seen: Seen) -> Iterator[tuple[dict[str, str], Any]]:
    for sent in seen.relay.connections["fleet"]:
        for request in http_requests(bytes(sent)):
            prefix, _, call = request.path.rpartition("/")
            assert prefix == "/v1/fleet"
            message = CALLS[call]()
            message.ParseFromString(request.body)
            yield request.headers, message


def answers(seen: Seen) -> list[tuple[Any, dict[str, bytes]]]:
    """Each answer that was pushed to Flower, and the objects of which it was made, by their ids."""
    found, contents = [], {}
    requests = [message for _, message in calls_to_flower(seen)]
    for message in requests:
        if isinstance(message, message_pb2.PushObjectRequest):
            contents[message.object_id] = message.object_content
    for message in requests:
        if isinstance(message, fleet_pb2.PushMessagesRequest):
            for tree in message.message_object_trees:
                ids = set(ids_in(tree))
                mine = {each: contents[each] for each in ids}
                found.append((inflate_object_from_contents(tree.object_id, dict(mine)), mine))
    return found


def ids_in(tree: Any) -> Iterator[str]:
    yield tree.object_id
    for child in tree.children:
        yield from ids_in(child)


def test_every_byte_to_the_port_for_rounds_is_in_a_row(seen):
    for headers, message in calls_to_flower(seen):
        for name, value in headers.items():
            seen.account(HEADERS, name, value)
        seen.account_fields(FIELDS, message)


def test_every_byte_to_the_port_for_downloads_is_in_a_row(seen):
    """Frames carry calls; calls are metadata and messages; the rest of HTTP/2 has fixed sizes."""
    data = calls = 0
    for sent in seen.relay.connections["mos"]:
        for kind, payload in http2_frames(bytes(sent)):
            data += len(payload) if kind == protocols.DATA else 0
            calls += kind == protocols.HEADERS
            sizes = {protocols.RESET: 4, protocols.PING: 8, protocols.WINDOW: 4}
            assert kind in (protocols.DATA, protocols.HEADERS, protocols.SETTINGS, protocols.GOAWAY, *sizes)
            assert len(payload) == sizes.get(kind, len(payload))
            assert kind != protocols.SETTINGS or len(payload) % 6 == 0
    assert calls == len(seen.relay.calls)
    assert data == sum(5 + len(message) for call in seen.relay.calls for message in call.messages)
    for call in seen.relay.calls:
        for name, value in call.metadata.items():
            seen.account(METADATA, name, value)
        kind = getattr(mos_pb2, f"{call.method.rpartition('/')[2]}Request")
        for sent in call.messages:
            seen.account_fields(MOS_FIELDS, kind.FromString(sent))


def test_the_answers_are_concept_files_numbers_and_the_kind_of_an_error(seen):
    files = {concept_file(seen.alice), concept_file(seen.bob)}
    uploads, scores, errors = [], [], []
    for message, contents in answers(seen):
        # An id is the SHA-256 of an object's bytes: made again from what we read, they agree.
        assert {each.object_id for each in get_all_nested_objects(message).values()} == contents.keys()
        assert all(hashlib.sha256(data).hexdigest() == name for name, data in contents.items())
        if message.has_error():
            errors.append(message.error.reason)
        elif messages.IDENTITY in message.content:
            scores.append(messages.read_identity(message.content))
        else:
            assert set(message.content[messages.NUMBERS]) == {"seconds", "bytes", "digest"}
            uploads.append(messages.read_upload(message.content).data)
    assert set(uploads) == files
    assert set(errors) == {PicturesError.__name__}
    with closing(Journal(open_state(seen.state).database)) as journal:
        known = [upload.identity for upload in journal.uploads.of("round-001") if upload.identity is not None]
    assert scores == known
    seen.rows |= {leaving.CONCEPT, leaving.UPLOAD_NUMBERS, leaving.SCORES}


def test_every_row_of_the_list_is_something_that_left(seen):
    test_every_byte_to_the_port_for_rounds_is_in_a_row(seen)
    test_every_byte_to_the_port_for_downloads_is_in_a_row(seen)
    test_the_answers_are_concept_files_numbers_and_the_kind_of_an_error(seen)
    assert seen.rows == set(leaving.LEAVES)


def test_the_concept_file_has_no_field_that_the_list_does_not_name(seen):
    """Its header, read as JSON: names of tensors with their shapes, and these texts."""
    data = concept_file(seen.alice)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    named = {"format", "name", "class_word", "base", "layers", "tool", "licence", "author", "trigger"}
    assert set(json.loads(header.pop("__metadata__")["mos"])) <= named
    assert all(set(tensor) == {"dtype", "shape", "data_offsets"} for tensor in header.values())


def test_no_picture_caption_path_or_private_key_is_among_the_bytes(seen):
    sent = b"".join(bytes(each) for ports in seen.relay.connections.values() for each in ports)
    assert concept_file(seen.alice)[100:300] in sent  # what is there is found
    for secret in private_to_participants(seen):
        assert secret not in sent


def private_to_participants(seen: Seen) -> Iterator[bytes]:
    """Pictures, captions, file names, folders, private keys, and the secret of the SuperNode."""
    for someone, pictures in ((seen.alice, seen.alice.pictures), (seen.bob, seen.bob.folder / "away")):
        yield str(someone.folder).encode()
        for file in pictures.iterdir():
            data = file.read_bytes()
            yield data[64:128] if file.suffix == ".png" else data.strip()
            yield file.name.encode()
        yield from key_lines(someone.state / "node_key")
        yield (someone.state / "flower" / "secret").read_bytes()


def key_lines(file: Path) -> Iterator[bytes]:
    """The lines of a private key, as text and as bytes."""
    lines = file.read_bytes().splitlines()[1:-1]
    yield from (line for line in lines[1:] if len(line) > 16)
    yield base64.b64decode(b"".join(lines))[-48:]


def test_no_log_and_no_line_of_the_audit_has_a_secret(seen):
    """Tokens, private keys and the private things of participants, in every log on both sides."""
    tokens = [read_kit(someone.kit).token.encode() for someone in (seen.alice, seen.bob)]
    keys = [line for file in (seen.state / "pki").glob("*.key") for line in key_lines(file)]
    logs = [*(seen.state / "log").iterdir(), seen.state / "audit.jsonl"]
    assert {"serve.log", "round-001.log"} <= {file.name for file in logs}
    for file in logs:
        data = file.read_bytes()
        for secret in [*tokens, *keys, *private_to_participants(seen)]:
            assert secret not in data, file
    for someone in (seen.alice, seen.bob):
        log = (someone.state / "flower" / "log").read_bytes()
        for secret in [*tokens, *key_lines(someone.state / "node_key"), (someone.state / "flower/secret").read_bytes()]:
            assert secret not in log


def server(*words: object) -> subprocess.CompletedProcess[str]:
    program = [str(Path(sys.executable).parent / "mos-server"), *map(str, words)]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)


def test_the_audit_of_a_round_tells_who_did_what_and_holds(seen):
    done = server("audit", seen.state, "--json")
    assert done.returncode == 0, done.stderr
    told = [(entry["what"], entry.get("who")) for entry in map(json.loads, done.stdout.splitlines())]
    for name in ("alice", "bob"):
        assert [what for what, who in told if who == name][:3] == ["invited", "enrolled", "uploaded"]
    assert ("scored", "alice") in told
    assert [what for what, who in told if who is None][-2:] == ["model signed", "round published"]


def test_a_changed_audit_ends_with_code_8(seen, tmp_path):
    copy = shutil.copytree(seen.state, tmp_path / "copy")
    lines = (copy / "audit.jsonl").read_text().splitlines(keepends=True)
    (copy / "audit.jsonl").write_text("".join(lines[:-1]))
    done = server("audit", copy)
    assert done.returncode == TrustError.exit_code
    assert f"line {len(lines)} is missing at its end" in done.stderr


def test_a_forgotten_participant_is_in_no_byte_of_a_real_state_but_the_published_model(seen, tmp_path):
    copy = shutil.copytree(seen.state, tmp_path / "copy")
    with closing(Journal(open_state(copy).database)) as journal:
        key = next(each.key for each in journal.participants.all() if each.name == "bob")
        digest = next(each.digest for each in journal.uploads.kept() if each.participant == "bob")
    secrets = (b"bob", key[:12].encode(), digest[:12].encode(), concept_file(seen.bob)[-64:])

    def naming() -> set[str]:
        there = [path for path in copy.rglob("*") if path.is_file()]
        return {
            path.relative_to(copy).as_posix()
            for path in there
            if any(secret in path.read_bytes() or secret in path.name.encode() for secret in secrets)
        }

    assert {"server.db", "log/serve.log", "flower/superlink.db", f"concepts/{digest}.safetensors"} <= naming()
    done = server("forget", copy, "bob")
    assert done.returncode == 0, done.stderr
    assert naming() == {"models/round-001/manifest.json", "models/round-001/embeddings.safetensors"}
    assert server("audit", copy).returncode == 0
    assert server("forget", copy, "alice", "--models").returncode == 0
    assert naming() == set()
