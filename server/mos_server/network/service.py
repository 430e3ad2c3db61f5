"""What `mos.v1` answers: enrolment and model downloads.

Every call but Enrol is signed with the caller's node key (`mos_common.node_key`). Nothing that a
caller sends becomes part of a path: a model must be a round in the journal, and a file must be
named in that model's own manifest. The functions here are plain and may block; `calls.py` has
verified the caller before they run, and makes a status of what they raise.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mos_common import mos_pb2
from mos_common.digests import digest_of_file
from mos_common.errors import StateError, TrustError
from mos_common.model_files import MANIFEST
from mos_common.names import CONCEPT_NAME
from mos_common.node_key import check_proof
from mos_common.outage import in_words
from mos_common.own.names import own_name
from mos_common.release import Release
from mos_common.signing import SIGNATURES
from mos_server.network.calls import Method, Refusal
from mos_server.network.quota import Quota
from mos_server.network.trust import trust_reply
from mos_server.state.concepts import withdraw
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.published import candidate_to_score, published_model, published_own
from mos_server.state.records import PUBLISHED
from mos_server.state.store import StoreError

log = logging.getLogger(__name__)

SERVICE = "mos.v1.Mos"
# A piece that a line of 4 kB/s takes within its time, and that costs a fast one little.
CHUNK_BYTES = 64 << 10
# Per key and hour, and never less than so many times the file that is asked for: whoever is honest
# fetches each file once, and goes on where a download broke off.
HOURLY_BYTES_AT_MOST = 16 << 30
_TIMES_A_FILE = 8
_MODEL = re.compile(r"(?P<round>round-\d{3,9})(?P<candidate>-candidate)?")


class MosService:
    """The answers to participants, from the state folder and the journal.

    It calls `enrolled(pem, name)` for each new key, and `news` returns those of the rounds.
    """

    def __init__(
        self,
        state: State,
        journal: Journal,
        enrolled: Callable[[bytes, str], None],
        *,
        news: Callable[[], mos_pb2.RoundsReply] = mos_pb2.RoundsReply,
        hourly_bytes: float = HOURLY_BYTES_AT_MOST,
    ) -> None:
        self._downloaded = Quota(hourly_bytes)
        self._state = state
        self._journal = journal
        self._enrolled = enrolled
        self._news = news

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by name."""
        return {
            "Enrol": Method(mos_pb2.EnrolRequest, self.enrol, enrols=True),
            "Describe": Method(mos_pb2.DescribeRequest, self.describe),
            "Fetch": Method(mos_pb2.FetchRequest, self.fetch, streams=True),
            "Trust": Method(mos_pb2.TrustRequest, self.trust),
            "Rounds": Method(mos_pb2.RoundsRequest, self.rounds),
            "Withdraw": Method(mos_pb2.WithdrawRequest, self.withdraw),
        }

    def is_admitted(self, key: str) -> bool:
        """Return whether a key may call."""
        return self._journal.participants.is_admitted(key)

    def runs(self, key: str, release: Release) -> str:
        """Record the release that an admitted key has come with; return the participant's name."""
        self._journal.participants.runs(key, release.name)
        return self._journal.participants.name_of(key) or key[:12]

    def enrol(self, request: mos_pb2.EnrolRequest) -> tuple[mos_pb2.EnrolReply, str]:
        """Admit a key that comes with a valid token."""
        try:
            key = check_proof(request.public_key, request.token, request.proof)
            pem = _canonical(request.public_key)
            name = self._journal.participants.enrol(request.token, key, pem)
        except TrustError as error:
            self._journal.audit.add_once("enrolment refused", str(error))
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, str(error)) from error
        self._enrolled(pem, name)
        log.info("%s enrolled with key %s", name, key[:12])
        return mos_pb2.EnrolReply(participant=name), key

    def describe(self, request: mos_pb2.DescribeRequest, key: str) -> mos_pb2.Model:
        """List the files of a model that the caller may fetch."""
        model, folder = self._model(request.model, key)
        files = [
            mos_pb2.File(name=name, size=size, sha256=digest)
            for name, (size, digest) in _described_files(folder).items()
        ]
        return mos_pb2.Model(model=model, files=files)

    def fetch(self, request: mos_pb2.FetchRequest, key: str) -> Iterator[mos_pb2.Chunk]:
        """Yield one file of a model in chunks, from an offset."""
        model, folder = self._model(request.model, key)
        known = set(_described_files(folder))
        if request.file not in known:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"model {model} has no file {request.file[:80]!r}")
        try:
            with (folder / request.file).open("rb") as file:
                if request.offset > (size := file.seek(0, 2)):
                    raise Refusal(
                        grpc.StatusCode.INVALID_ARGUMENT, f"{request.file} is shorter than {request.offset} bytes"
                    )
                file.seek(request.offset)
                while data := file.read(CHUNK_BYTES):
                    self._downloaded.count(key, len(data))
                    if self._downloaded.spent(key, at_least=_TIMES_A_FILE * size):
                        raise _too_much(self._downloaded.left_s)
                    yield mos_pb2.Chunk(data=data)
        except OSError as error:
            raise StateError(f"{folder / request.file} cannot be read: {error}") from error

    def trust(self, request: mos_pb2.TrustRequest, key: str) -> mos_pb2.TrustReply:
        """Send the statements by which the federation's keys were rotated."""
        return trust_reply(self._state.pki)

    def rounds(self, request: mos_pb2.RoundsRequest, key: str) -> mos_pb2.RoundsReply:
        """Say how the round stands."""
        return self._news()

    def withdraw(self, request: mos_pb2.WithdrawRequest, key: str) -> mos_pb2.WithdrawReply:
        """Withdraw a concept of the caller's own name, whichever of its keys has sent it."""
        (name,) = (each.name for each in self._journal.participants.all() if each.key == key)
        if not CONCEPT_NAME.fullmatch(request.concept):
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "that is no name of a concept")
        token = f"<{name}/{request.concept[1:]}"
        if all(upload.token != token for upload in self._journal.uploads.kept()):
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"{token} is not kept here: there is nothing to withdraw")
        withdrawn = withdraw(self._state, self._journal, token)
        log.info("%s was withdrawn by its participant", token)
        published = {each.id for each in self._journal.rounds.all() if each.status == PUBLISHED}
        inside = {upload.round for upload in withdrawn if upload.round is not None} & published
        return mos_pb2.WithdrawReply(models=sorted(inside))

    def _model(self, wanted: str, key: str) -> tuple[str, Path]:
        """Return (name, folder) of a model that this caller may see.

        That is any published model, own changes beside one, and the candidate of a round that the
        caller has a concept in.
        """
        if wanted == "latest":
            if (latest := self._journal.rounds.latest_published()) is None:
                raise Refusal(grpc.StatusCode.NOT_FOUND, "no model is published yet: wait for the first round")
            wanted = latest.id
        own, parts = own_name(wanted), _MODEL.fullmatch(wanted)
        if own is not None and any(each.id == own.round for each in self._journal.rounds.all()):
            try:
                return wanted, published_own(self._state, self._journal, own.round, own.token)
            except StoreError:
                raise  # it is there: the caller asks again
            except StateError as error:
                log.warning("%s is not handed out: %s", wanted, error)
        if parts is not None and any(each.id == parts["round"] for each in self._journal.rounds.all()):
            name = parts["round"]
            try:
                if not parts["candidate"]:
                    return name, published_model(self._state, self._journal, name)
                if any(upload.key == key for upload in self._journal.uploads.admitted(name)):
                    return wanted, candidate_to_score(self._state, self._journal, name)
            except StoreError:
                raise  # it is there: the caller asks again
            except StateError as error:
                log.warning("%s is not handed out: %s", wanted, error)
        raise Refusal(grpc.StatusCode.NOT_FOUND, f"there is no model {wanted[:80]!r} for you")


def _too_much(left_s: float) -> Refusal:
    after_s = max(1, math.ceil(left_s))
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"this key has downloaded more than its hourly quota: come again in {in_words(after_s)}",
        after_s=after_s,
    )


def _canonical(pem: bytes) -> bytes:
    """Return the canonical PEM of a P-384 key.

    Flower compares keys as text and supports only NIST curves.
    """
    key = serialization.load_pem_public_key(pem)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise TrustError("the key is not on the curve P-384: let mos-client join make one")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _described_files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the size and SHA-256 of each file of a model, by name.

    The manifest is our own file and is trusted.

    Raises:
        StateError: the folder or its manifest cannot be read.

    """
    described = {}
    try:
        for name in (MANIFEST, *SIGNATURES):
            if (folder / name).is_file():
                described[name] = ((folder / name).stat().st_size, bytes.fromhex(digest_of_file(folder / name)))
        for name, file in json.loads((folder / MANIFEST).read_bytes())["files"].items():
            described[name] = (int(file["size"]), bytes.fromhex(file["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{folder / MANIFEST} cannot be read: {type(error).__name__}: {error}") from error
    return described
