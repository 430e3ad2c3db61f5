"""Fetch a model: resumed where it stopped, checked file by file, whole or not there at all."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from mos_client.federation.enrolment import CALL_S, Enrolment, calling, explained, waiting
from mos_common import mos_pb2
from mos_common.digests import digest_of_bytes, digest_of_file
from mos_common.errors import NetworkError, RequestError, StateError, TrustError
from mos_common.files import could_not_write
from mos_common.node_key import sign_call
from mos_common.outage import Outage
from mos_common.progress import CountProgress
from mos_common.signing import MANIFEST, check_files, verify_model

log = logging.getLogger(__name__)
LARGEST_MODEL_BYTES = 32 << 30
ATTEMPTS, PAUSE_S = 5, 1.0
FETCH_S = 3600.0


def download_model(
    enrolment: Enrolment,
    model: str,
    into: Path,
    *,
    manifest_digest: str | None = None,
    progress: CountProgress = lambda done, total: None,
) -> Path:
    """Fetch `model` ("latest", a round, or a candidate) into its own folder in `into`; return that.

    A published model must bear the operator's signature; a candidate must have the manifest that
    the operator announced (`manifest_digest`). An interrupted download resumes; a complete one is
    checked and kept.

    Raises:
        TrustError: the signature or a digest is wrong.
        RequestError: there is no such model.
        NetworkError: the server cannot be reached.
        StateError: the disk is full, or the folder cannot be written.

    """
    with calling(enrolment.kit) as stub:
        described = describe(enrolment, stub, model)
        folder = into / str(described.model)
        if manifest_digest and folder.is_dir() and not _is_whole(folder, enrolment, manifest_digest):
            shutil.rmtree(folder)  # it was fused again, or deleting it was interrupted
        elif folder.is_dir() and (other := _other_manifest(folder, described)):
            _move(
                folder, folder.with_name(f"{folder.name}.{other[:12]}")
            )  # a server restored from an older backup reuses numbers
        if not folder.is_dir():
            part = _part_of(described, into)
            _fetch_all(enrolment, stub, described, part, progress)
            _check(part, enrolment, manifest_digest)
            _move(part, folder)
    _check(folder, enrolment, manifest_digest)
    return folder


def wait_for_model(
    enrolment: Enrolment,
    newer_than: str | None,
    stop: threading.Event,
    say: Callable[[str], None] = log.warning,
    pause_s: float = 2.0,
) -> str | None:
    """Wait for a published model other than `newer_than`; return its name, or None after `stop`.

    Say once that the server cannot be reached, and once that it can be again.
    """
    kit, away = enrolment.kit, Outage(say)
    with calling(kit) as stub:
        while not stop.is_set():
            latest = newer_than or ""
            try:
                with suppress(RequestError):  # none is published yet
                    latest = str(describe(enrolment, stub, "latest").model)
                away.over(f"the server at {kit.mos} is reachable again, and models can be fetched")
            except NetworkError as error:
                away.report(f"published models cannot be fetched, trying again every {pause_s:.0f} s: {error}")
            if latest and latest != newer_than:
                return latest
            stop.wait(pause_s)
    return None


def describe(enrolment: Enrolment, stub: Any, model: str) -> Any:
    """Return the server's description of a model, with every file name and size checked.

    Raises:
        TrustError: the description has impossible file names, or is too large.

    """
    request = mos_pb2.DescribeRequest(model=model)
    answer = waiting(
        lambda: stub.Describe(request, metadata=sign_call(enrolment.key, "Describe", request), timeout=CALL_S),
        enrolment.kit,
        log.info,
        patient=False,
    )
    names = [answer.model, *(file.name for file in answer.files)]
    if any(not name or Path(name).name != name or name.startswith(".") for name in names) or len(set(names)) < len(
        names
    ):
        raise TrustError("the server describes a model with impossible file names: nothing was fetched")
    if sum(file.size for file in answer.files) > LARGEST_MODEL_BYTES:
        raise TrustError(
            f"the server describes a model of more than {LARGEST_MODEL_BYTES >> 30} GiB: nothing was fetched"
        )
    return answer


def _part_of(described: Any, into: Path) -> Path:
    """Return the folder that collects a download.

    Its name has the model's digest, so that parts of another model of that name are never mixed in.
    """
    digest = digest_of_bytes(described.SerializeToString(deterministic=True))
    part = into / f".{described.model}.{digest[:16]}.part"
    for stale in into.glob(f".{described.model}.*part"):
        if stale != part:
            shutil.rmtree(stale, ignore_errors=True)
    return part


def _other_manifest(folder: Path, described: Any) -> str | None:
    """Return the digest of a folder's manifest if it differs from the server's, else None."""
    if not (folder / MANIFEST).is_file():
        return None  # damaged: `_check` says so
    ours = digest_of_file(folder / MANIFEST)
    return None if ours in {file.sha256.hex() for file in described.files if file.name == MANIFEST} else ours


def _fetch_all(enrolment: Enrolment, stub: Any, described: Any, part: Path, progress: CountProgress) -> None:
    total = sum(file.size for file in described.files)
    try:
        part.mkdir(parents=True, exist_ok=True)
        missing = total - sum(file.stat().st_size for file in part.iterdir())
        if missing > (free := shutil.disk_usage(part).free):
            raise StateError(
                f"{part.parent} has {free:,} bytes free, the model needs {missing:,} more: make room and start again"
            )
    except OSError as error:
        raise could_not_write(part, error) from error
    done = 0
    for file in described.files:
        path = part / file.name

        def fetched(size: int, before: int = done) -> None:
            progress(before + size, total)

        for attempt in range(1, ATTEMPTS + 1):
            try:
                _fetch(enrolment, stub, described.model, file, path, fetched)
                break
            except NetworkError as error:
                if attempt == ATTEMPTS:
                    raise
                if attempt == 1:
                    log.warning("%s of %s broke off: %s; going on from there", file.name, described.model, error)
                time.sleep(attempt * PAUSE_S)
        if digest_of_file(path) != file.sha256.hex():
            path.unlink()
            raise TrustError(
                f"{file.name} of {described.model} arrived with a digest other than announced: download it again"
            )
        done += file.size


def _fetch(enrolment: Enrolment, stub: Any, model: str, file: Any, path: Path, progress: Callable[[int], None]) -> None:
    """Fetch what is missing of one file; a file that is too long is fetched anew."""
    have = path.stat().st_size if path.exists() else 0
    if have > file.size:
        path.unlink()
        have = 0
    request = mos_pb2.FetchRequest(model=model, file=file.name, offset=have)
    try:
        with path.open("ab") as out:
            if have < file.size:
                for chunk in stub.Fetch(request, metadata=sign_call(enrolment.key, "Fetch", request), timeout=FETCH_S):
                    have += len(chunk.data)
                    if have > file.size:
                        raise TrustError(f"the server sends more of {file.name} than it announced")
                    out.write(chunk.data)
                    progress(have)
    except grpc.RpcError as error:
        raise explained(error, enrolment.kit) from error
    except OSError as error:
        raise could_not_write(path, error) from error


def _check(folder: Path, enrolment: Enrolment, manifest_digest: str | None) -> None:
    if manifest_digest is None:
        verify_model(folder, enrolment.kit.signing_key)
        return
    manifest = (folder / MANIFEST).read_bytes()
    if digest_of_bytes(manifest) != manifest_digest:
        raise TrustError(f"{folder.name} has a manifest other than the one the operator announced: it is not scored")
    check_files(folder, manifest)


def _is_whole(folder: Path, enrolment: Enrolment, manifest_digest: str) -> bool:
    try:
        _check(folder, enrolment, manifest_digest)
    except (TrustError, OSError):
        return False
    return True


def _move(part: Path, folder: Path) -> None:
    try:
        part.rename(folder)
    except OSError as error:
        raise could_not_write(folder, error) from error
