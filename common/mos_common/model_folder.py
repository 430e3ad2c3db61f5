"""Whom a model's folder is trusted from, and everything that must hold before it is read.

Every reader of a fused model goes through `check_model`: digests and sizes always, the
signature against the kit when there is one. That is the kit which was given, or that of the state
folder in which the model lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mos_common.errors import RequestError, TrustError
from mos_common.kit import read_kit
from mos_common.model_files import MANIFEST, check_file, check_name, listed_files, manifest_name, read_manifest
from mos_common.signing import is_signed, key_digest, signer_of
from mos_common.trust import is_operators, state_keys, trusted_keys

CANDIDATE = "-candidate"


@dataclass(frozen=True)
class Trust:
    """The public keys (PEM) whose models are trusted, newest first, and where they come from."""

    keys: tuple[str, ...]
    origin: str


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what holds, or the error that says what does not."""

    text: str
    error: TrustError | None = None


def trust_for(folder: Path, kit: Path | None = None) -> Trust | None:
    """Return whom a model is trusted from: the kit, else the state folder around it, else None.

    Raises:
        TrustError: the kit, or that of the state folder, cannot be read.

    """
    if kit is not None:
        return Trust(trusted_keys(read_kit(kit)), f"the kit {kit}")
    for parent in folder.resolve().parents:
        if (keys := state_keys(parent)) is None:
            continue
        if is_operators(parent) and folder.resolve().name.endswith(CANDIDATE):
            return None  # one that was held back is the operator's to look at, and bears no signature
        return Trust(keys, f"the keys of {parent}")
    return None


def check_kit_applies(kit: Path | None, model: Path) -> None:
    """Check that a kit was given for a fused model: nobody signs a concept file.

    Raises:
        RequestError: there is a kit, and the model is no folder.

    """
    if kit is not None and not model.is_dir():
        raise RequestError(f"--kit goes with a fused model's folder; {model} is none, and a concept file is not signed")


def check_model(folder: Path, manifest: bytes, trust: Trust | None) -> None:
    """Check that everything of a model holds, given the bytes of its manifest.

    Without `trust` no signature is asked for: models fused by hand are unsigned.

    Raises:
        TrustError: a file differs from the manifest, or the signature does not hold.

    """
    for finding in examine(folder, manifest, trust):
        if finding.error is not None:
            raise finding.error


def unsigned_remark(folder: Path) -> str:
    """Return what to say of a model whose signature cannot be checked."""
    if is_signed(folder):
        return f"{folder} is signed, but by whom was not checked: give the kit of its federation with --kit"
    return f"{folder} is not signed: nobody vouches for it, its files are as they were fused"


def signer_named(folder: Path, manifest: bytes, trust: Trust) -> str:
    """Return which of the trusted keys signed a model, in words.

    Raises:
        TrustError: none did.

    """
    signer = signer_of(folder, manifest, trust.keys)
    which = "the operator's key" if signer == trust.keys[0] else "an earlier key of the operator"
    return f"signed with {which} {key_digest(signer)[:16]}, as in {trust.origin}"


def signing_key_of(folder: Path, kit: Path | None = None) -> str:
    """Return the public key (PEM) that signed a model.

    Raises:
        TrustError: there is no kit to know the key from, or none of its keys signed the model.

    """
    if (trust := trust_for(folder, kit)) is None:
        raise TrustError(f"{folder} lies in no state folder: give the kit of its federation with --kit")
    return signer_of(folder, read_manifest(folder), trust.keys)


def examine(folder: Path, manifest: bytes, trust: Trust | None) -> Iterator[Finding]:
    """Yield what holds and what does not of a model: signature, name, and each file by itself.

    Nothing is looked at if the manifest lists no files, and no signature without `trust`.
    """
    try:
        files = listed_files(folder, manifest)
    except TrustError as error:
        yield Finding(MANIFEST, error)
        return
    if trust is not None:
        yield _finding_of_signature(folder, manifest, trust)
    yield _finding_of_name(folder, manifest)
    signed = is_signed(folder)
    for name, file in files.items():
        try:
            check_file(folder, name, file, signed=signed)
        except TrustError as error:
            yield Finding(name, error)
        else:
            yield Finding(f"{name}: {file.size:,} bytes, sha256 {file.sha256}")


def _finding_of_signature(folder: Path, manifest: bytes, trust: Trust) -> Finding:
    try:
        return Finding(signer_named(folder, manifest, trust))
    except TrustError as error:
        return Finding("signature", error)


def _finding_of_name(folder: Path, manifest: bytes) -> Finding:
    try:
        check_name(folder, manifest)
    except TrustError as error:
        return Finding("name", error)
    round_ = manifest_name(manifest)
    return Finding(f"the model of {round_}" if round_ else "a model of no round")
