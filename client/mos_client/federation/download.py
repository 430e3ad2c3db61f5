"""Fetch a model: resumed where it stopped, checked file by file, whole or not there at all."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc

from mos_client.federation.calling import CALL_S, ComeAgainError, calling, explained, waiting
from mos_client.federation.enrolment import Enrolment
from mos_common import mos_pb2
from mos_common.digests import digest_of_bytes, digest_of_file
from mos_common.errors import NetworkError, RequestError, StateError, TrustError
from mos_common.files import could_not_write
from mos_common.model_files import MANIFEST, manifest_name, parse_manifest, read_manifest
from mos_common.node_key import sign_call
from mos_common.outage import Outage
from mos_common.own.names import OwnName, beside, own_digests, own_folder
from mos_common.progress import CountProgress
from mos_common.signing import check_files, verify_model
from mos_common.texts import is_file_name

log = logging.getLogger(__name__)
LARGEST_MODEL_BYTES = 32 << 30
MOST_OWN_BYTES = 72 << 20  # no larger than a concept file, with manifest and signature
# A download is given up after this many attempts without a byte more.
ATTEMPTS, PAUSE_S = 5, 1.0
# The server sends 64 KiB at a time: a line that carries none of them for so long is dead.
SILENT_S = 60.0
T = TypeVar("T")


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
    the operator announced (`manifest_digest`). Either is the model of the round that it is called
    after. An interrupted download resumes; a complete one is checked and kept.

    Raises:
        TrustError: the signature, a digest or the model's name is wrong.
        RequestError: there is no such model.
        NetworkError: the server cannot be reached.
        StateError: the disk is full, or the folder cannot be written.

    """
    with calling(enrolment.kit) as stub:
        described = _persistently(lambda: describe(enrolment, stub, model), f"{model} cannot be described")
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
            _check_round(part, described.model)
            _move(part, folder)
    _check(folder, enrolment, manifest_digest)
    _check_round(folder, described.model)
    return folder


def download_own(enrolment: Enrolment, model: Path) -> dict[str, str]:
    """Fetch the own changes that a downloaded model names, beside it; say by token what came of it.

    What the server does not hand out any more, because the concept was withdrawn, is no error.

    Raises:
        TrustError: a signature, a digest or a name is wrong.
        NetworkError: the server cannot be reached.
        StateError: the disk is full, or the folder cannot be written.

    """
    manifest = read_manifest(model)
    named, round_ = own_digests(parse_manifest(model, manifest)), manifest_name(manifest)
    outcomes = {}
    with calling(enrolment.kit) as stub:
        for token, digest in sorted(named.items()):
            try:
                outcomes[token] = str(_fetch_own(enrolment, stub, model, OwnName(round_ or "", token), digest))
            except RequestError:
                outcomes[token] = "the server does not hand them out: the concept was withdrawn, or they are lost"
    return outcomes


def _fetch_own(enrolment: Enrolment, stub: Any, model: Path, name: OwnName, digest: str) -> Path:
    folder = own_folder(model, name.token)
    if not folder.is_dir():
        described = _persistently(lambda: describe(enrolment, stub, str(name)), f"{name} cannot be described")
        if sum(file.size for file in described.files) > MOST_OWN_BYTES:
            raise TrustError(f"the server describes own changes of more than {MOST_OWN_BYTES >> 20} MiB: not fetched")
        part = _part_of(described, beside(model))
        _fetch_all(enrolment, stub, described, part, lambda done, total: None)
        _check_own(part, enrolment, digest, name)
        _move(part, folder)
    _check_own(folder, enrolment, digest, name)
    return folder


def _check_own(folder: Path, enrolment: Enrolment, digest: str, name: OwnName) -> None:
    if digest_of_file(folder / MANIFEST) != digest:
        raise TrustError(f"{folder} is not what {name.round} names for {name.token}: remove it and download it again")
    verify_model(folder, enrolment.trusted_keys)


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
    while not stop.is_set():
        try:
            with calling(kit) as stub:  # a new connection after each failure: the old line may be dead
                while not stop.is_set():
                    latest = _latest(enrolment, stub)
                    away.over(f"the server at {kit.mos} is reachable again, and models can be fetched")
                    if latest and latest != newer_than:
                        return latest
                    stop.wait(pause_s)
        except NetworkError as error:
            away.report(f"published models cannot be fetched, trying again every {pause_s:.0f} s: {error}")
            stop.wait(pause_s)
    return None


def greet(enrolment: Enrolment, say: Callable[[str], None]) -> None:
    """Make a first call, so that client and server know each other's release; say if they cannot.

    Raises:
        ReleaseError: the two releases do not fit.
        TrustError: the server refuses this participant.

    """
    try:
        with calling(enrolment.kit) as stub:
            _latest(enrolment, stub)
    except NetworkError as error:
        say(f"whether the server's release fits this one is not known yet: {error}")


def _latest(enrolment: Enrolment, stub: Any) -> str | None:
    """Return the name of the model that was published last; None before the first."""
    with suppress(RequestError):
        return str(describe(enrolment, stub, "latest").model)
    return None


def describe(enrolment: Enrolment, stub: Any, model: str) -> Any:
    """Return the server's description of a model, with every file name and size checked.

    Raises:
        TrustError: the description is of another model, has impossible file names, or is too large.
        NetworkError: the server does not answer now.
        RequestError: there is no such model.
        ReleaseError: the server's release does not fit.

    """
    request = mos_pb2.DescribeRequest(model=model)
    answer = waiting(
        lambda: stub.Describe(request, metadata=sign_call(enrolment.key, "Describe", request), timeout=CALL_S),
        enrolment.kit,
        log.info,
        patient=False,
    )
    if model not in ("latest", answer.model):
        raise TrustError(f"the server describes {answer.model[:40]!r} instead of {model}: nothing was fetched")
    names = [answer.model, *(file.name for file in answer.files)]
    if not all(map(is_file_name, names)) or len(set(names)) < len(names):
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

        def fetch(file: Any = file, path: Path = path, fetched: Callable[[int], None] = fetched) -> None:
            _fetch(enrolment, stub, described.model, file, path, fetched)

        def arrived(path: Path = path) -> int:
            return path.stat().st_size if path.exists() else 0

        _persistently(fetch, f"{file.name} of {described.model} broke off", arrived)
        if digest_of_file(path) != file.sha256.hex():
            path.unlink()
            raise TrustError(
                f"{file.name} of {described.model} arrived with a digest other than announced: download it again"
            )
        done += file.size


def _persistently(do: Callable[[], T], trouble: str, arrived: Callable[[], int] = lambda: 0) -> T:
    """Do something until it succeeds, or has failed `ATTEMPTS` times in a row without progress.

    `arrived` returns how many bytes are there: a slow line that breaks often gets there in the end.
    """
    attempt, before = 0, arrived()
    while True:
        try:
            return do()
        except ComeAgainError as error:
            log.warning("%s: %s; waiting until then", trouble, error)
            time.sleep(error.after_s)
        except NetworkError as error:
            attempt, before = (1 if arrived() > before else attempt + 1), arrived()
            if attempt == ATTEMPTS:
                raise
            if attempt == 1:
                log.warning("%s: %s; going on from there", trouble, error)
            time.sleep(attempt * PAUSE_S)


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
                for chunk in _while_it_moves(stub.Fetch(request, metadata=sign_call(enrolment.key, "Fetch", request))):
                    have += len(chunk.data)
                    if have > file.size:
                        raise TrustError(f"the server sends more of {file.name} than it announced")
                    out.write(chunk.data)
                    progress(have)
    except grpc.RpcError as error:
        raise explained(error, enrolment.kit) from error
    except OSError as error:
        raise could_not_write(path, error) from error


def _while_it_moves(answers: Any) -> Iterator[Any]:
    """Yield the answers of a call, which is cancelled when none arrives for `SILENT_S`."""
    while True:
        silent = threading.Timer(SILENT_S, answers.cancel)
        silent.daemon = True
        silent.start()
        try:
            answer = next(answers, None)
        finally:
            silent.cancel()
        if answer is None:
            return
        yield answer


def _check_round(folder: Path, model: str) -> None:
    """Check that a model is the one of its name: only the manifest's own words are signed."""
    made_in = manifest_name(read_manifest(folder))
    if made_in != model.removesuffix("-candidate"):
        raise TrustError(
            f"the server sends the model of {made_in!r} under the name {model}: it is not used, ask the operator"
        )


def _check(folder: Path, enrolment: Enrolment, manifest_digest: str | None) -> None:
    if manifest_digest is None:
        verify_model(folder, enrolment.trusted_keys)
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
