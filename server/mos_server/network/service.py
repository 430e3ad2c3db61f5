"""`mos.v1`: enrolment and model downloads, over gRPC with the TLS certificate of Flower's port.

Every call but Enrol is signed with the caller's node key (`mos_common.node_key`). Nothing that a
caller sends becomes part of a path: a model must be a round in the journal, and a file must be
named in that model's own manifest.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NoReturn

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mos_common import mos_pb2, mos_pb2_grpc
from mos_common.digests import digest_of_file
from mos_common.errors import MosError, NetworkError, StateError, TrustError
from mos_common.node_key import CallVerifier, check_proof
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import SCORING

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
_MODEL = re.compile(r"(?P<round>round-\d{3,9})(?P<candidate>-candidate)?")
_MANIFEST, _SIGNATURE = "manifest.json", "manifest.sig"
# A request is a token, a key and a signature, or a name and a number.
_REQUEST_BYTES_AT_MOST = 64 << 10
_THREADS = 16


class MosService(mos_pb2_grpc.MosServicer):
    """The gRPC service, which answers participants from the state folder and the journal.

    It calls `enrolled(pem, name)` for each new key.
    """

    def __init__(self, state: State, journal: Journal, enrolled: Callable[[bytes, str], None]) -> None:
        self._state = state
        self._journal = journal
        self._enrolled = enrolled
        self._verifier = CallVerifier(journal.participants.is_admitted)

    def Enrol(self, request: mos_pb2.EnrolRequest, context: Any) -> mos_pb2.EnrolReply:  # noqa: N802 - gRPC's name
        """Admit a key that comes with a valid token."""
        try:
            key = check_proof(request.public_key, request.token, request.proof)
            pem = _canonical(request.public_key)
            name = self._journal.participants.enrol(request.token, key, pem)
            self._enrolled(pem, name)
        except TrustError as error:
            log.warning("enrolment refused: %s", error)
            _abort(context, grpc.StatusCode.PERMISSION_DENIED, str(error))
        except MosError as error:
            log.error("enrolment failed: %s", error)
            _abort(context, grpc.StatusCode.UNAVAILABLE, "the server cannot enrol anyone now: try again later")
        log.info("%s enrolled with key %s", name, key[:12])
        return mos_pb2.EnrolReply(participant=name)

    def Describe(self, request: mos_pb2.DescribeRequest, context: Any) -> mos_pb2.Model:  # noqa: N802 - gRPC's name
        """List the files of a model that the caller may fetch."""
        key = self._caller("Describe", request, context)
        model, folder = self._model(request.model, key, context)
        try:
            described = _described_files(folder)
        except StateError as error:
            log.error("%s", error)
            _abort(context, grpc.StatusCode.NOT_FOUND, f"model {model} no longer exists")
        files = [mos_pb2.File(name=name, size=size, sha256=digest) for name, (size, digest) in described.items()]
        return mos_pb2.Model(model=model, files=files)

    def Fetch(self, request: mos_pb2.FetchRequest, context: Any) -> Iterator[mos_pb2.Chunk]:  # noqa: N802 - gRPC's name
        """Stream one file of a model in chunks, from an offset."""
        key = self._caller("Fetch", request, context)
        model, folder = self._model(request.model, key, context)
        try:
            known = _manifest_files(folder) | {_MANIFEST, _SIGNATURE}
            if request.file not in known:
                _abort(context, grpc.StatusCode.NOT_FOUND, f"model {model} has no file {request.file[:80]!r}")
            with (folder / request.file).open("rb") as file:
                if request.offset > file.seek(0, 2):
                    _abort(
                        context,
                        grpc.StatusCode.INVALID_ARGUMENT,
                        f"{request.file} is shorter than {request.offset} bytes",
                    )
                file.seek(request.offset)
                while data := file.read(CHUNK_BYTES):
                    yield mos_pb2.Chunk(data=data)
        except (OSError, StateError) as error:
            log.error("%s of %s could not be sent: %s", request.file, model, error)
            _abort(context, grpc.StatusCode.NOT_FOUND, f"{request.file[:80]} of {model} no longer exists")

    def _caller(self, method: str, request: Any, context: Any) -> str:
        try:
            return str(self._verifier.verify(context.invocation_metadata(), method, request))
        except TrustError as error:
            log.warning("%s refused: %s", method, error)
            _abort(context, grpc.StatusCode.UNAUTHENTICATED, str(error))

    def _model(self, wanted: str, key: str, context: Any) -> tuple[str, Path]:
        """Return (name, folder) of a model that this caller may see.

        That is any published model, and the candidate of a round that the caller has a concept in.
        """
        if wanted == "latest":
            if (latest := self._journal.rounds.latest_published()) is None:
                _abort(context, grpc.StatusCode.NOT_FOUND, "no model is published yet: wait for the first round")
            return latest.id, self._state.artefacts.model(latest.id)
        parts = _MODEL.fullmatch(wanted)
        if parts is not None:
            name = parts["round"]
            if not parts["candidate"] and (self._state.artefacts.model(name) / _SIGNATURE).is_file():
                return name, self._state.artefacts.model(name)
            if parts["candidate"] and self._may_score(name, key):
                return wanted, self._state.artefacts.candidate(name)
        _abort(context, grpc.StatusCode.NOT_FOUND, f"there is no model {wanted[:80]!r} for you")

    def _may_score(self, name: str, key: str) -> bool:
        scoring = any(each.id == name and each.status == SCORING for each in self._journal.rounds.all())
        return scoring and any(upload.key == key for upload in self._journal.uploads.admitted(name))


def start_service(service: MosService, state: State, address: str) -> tuple[grpc.Server, int]:
    """Listen at `address` ("host:port"); return the server and its port. The caller stops it.

    Raises:
        NetworkError: the port is in use.

    """
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _REQUEST_BYTES_AT_MOST)]
    server = grpc.server(futures.ThreadPoolExecutor(_THREADS, "mos.v1"), options=options, maximum_concurrent_rpcs=64)
    mos_pb2_grpc.add_MosServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    pair = (state.pki.key.read_bytes(), state.pki.certificate.read_bytes())
    try:
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        raise NetworkError(
            f"port {address} cannot be opened: it is in use, or this user may not open it. Stop what uses it, "
            "or choose another mos_port in the state folder's config.json and send new kits"
        ) from error
    server.start()
    log.info("mos.v1 listens on port %d", port)
    return server, port


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
    """
    described = {}
    for name in (_MANIFEST, _SIGNATURE):
        path = folder / name
        if path.is_file():
            described[name] = (path.stat().st_size, bytes.fromhex(digest_of_file(path)))
    for name, file in _read_manifest(folder)["files"].items():
        described[name] = (int(file["size"]), bytes.fromhex(file["sha256"]))
    return described


def _manifest_files(folder: Path) -> set[str]:
    return set(_read_manifest(folder)["files"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise StateError(f"{folder / _MANIFEST} cannot be read: {error}") from error
    return manifest


def _abort(context: Any, code: Any, sentence: str) -> NoReturn:
    context.abort(code, sentence)
    raise AssertionError("abort raises")
