"""Describe a fused model's folder: for `mos-client inspect`, and line by line for `verify`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mos_common.errors import FusionError, TrustError
from mos_common.fused_model import ADAPTER, EMBEDDINGS, FusedConcept, Manifest, read_fused
from mos_common.json_models import JsonModelError, from_json
from mos_common.model_files import MANIFEST, not_listed, read_manifest
from mos_common.model_folder import Trust, examine, signer_named, trust_for, unsigned_remark
from mos_common.own.folder import examine_own
from mos_common.signing import SIGNATURES
from mos_common.texts import visible


@dataclass(frozen=True)
class Verdict:
    """What `verify` found: lines for people, and how many of them say that something is wrong."""

    lines: tuple[str, ...]
    wrong: int


def describe_model(folder: Path, kit: Path | None = None) -> Iterator[str]:
    """Yield lines about a fused model of which everything holds.

    They say who signed it, who is in it, how it was fused and how large it is.

    Raises:
        FusionError: the folder is not a fused model, or is damaged.
        TrustError: a file was changed, or the signature does not hold.

    """
    model = read_fused(folder, kit=kit)
    manifest, trust = model.manifest, trust_for(folder, kit)
    size = sum(file.size for file in manifest.files.values())
    yield f"{folder}: a fused model, {size:,} bytes, no pictures, no captions, nothing executable"
    yield f"signature   {_signature(folder, trust)}"
    yield f"round       {manifest.round or '-'}"
    yield f"base        {manifest.base_name} ({manifest.base})"
    settings = ", ".join(visible(f"{name}={value}") for name, value in sorted(manifest.settings.items()))
    yield f"method      {manifest.method}{f': {settings}' if settings else ''}"
    yield f"written by  {', '.join(f'{name} {version}' for name, version in sorted(manifest.versions.items())) or '-'}"
    if manifest.drift:
        yield f"drift       {', '.join(f'{group} {value:.3g}' for group, value in sorted(manifest.drift.items()))}"
    yield from describe_concepts(manifest)
    for concept in manifest.concepts:
        yield from _fate(concept)
    for name, file in sorted(manifest.files.items()):
        yield f"  {name}  {file.size:,} bytes, sha256 {file.sha256}"
    ranks = [pair.A.shape[0] for pair in model.changes.values()]
    yield f"{len(ranks)} layers of rank {max(ranks, default=0)} or less, {len(model.vocabulary)} concepts with words"


def describe_concepts(manifest: Manifest) -> Iterator[str]:
    """Yield a line for each concept in a model, and for each that was left out."""
    for concept in sorted(manifest.concepts, key=lambda concept: concept.token):
        made = f"author {concept.author or '-'}, licence {concept.licence or '-'}"
        own = ", own changes published" if concept.own else ""
        yield f"concept     {concept.token}, a {concept.class_word}: {made}, digest {concept.digest}{own}"
    for excluded in manifest.excluded:
        yield f"left out    {excluded.token}: {excluded.reason}"


def verify_folder(folder: Path, kit: Path | None = None) -> Verdict:
    """Return what holds and what does not of a model's folder.

    Raises:
        FusionError: the folder has no file of a fused model.
        TrustError: the kit cannot be read.

    """
    if not any((folder / name).exists() for name in (MANIFEST, ADAPTER, EMBEDDINGS, *SIGNATURES)):
        raise FusionError(f"{folder} is not a fused model: {MANIFEST} is missing")
    trust = trust_for(folder, kit)
    try:
        data = read_manifest(folder)
    except TrustError as error:
        return Verdict((_wrong(error),), 1)
    findings = list(examine(folder, data, trust))
    wrong = [finding.error for finding in findings if finding.error is not None]
    lines = [_wrong(finding.error) if finding.error else f"holds   {finding.text}" for finding in findings]
    if trust is None:
        lines.insert(0, f"        {unsigned_remark(folder)}")
    try:
        manifest = from_json(Manifest, data)
        unlisted = [name for name in (ADAPTER, EMBEDDINGS) if name not in manifest.files]
        more = [f"the manifest does not list {name}, so nobody vouches for it" for name in unlisted]
        more += [
            f"{visible(name)[:80]!r} is in the folder and not in the manifest: nothing reads it, remove it"
            for name in (not_listed(folder, data, SIGNATURES) if manifest.files else ())
        ]
        told = list(describe_concepts(manifest))
        of_own = list(examine_own(folder, manifest, trust))
        more += [str(finding.error) for finding in of_own if finding.error]
        lines += [f"holds   {finding.text}" for finding in of_own if not finding.error]
    except (JsonModelError, TrustError) as error:
        more, told = [f"the manifest is not that of a fused model ({str(error).splitlines()[0]})"], []
    lines += [f"WRONG   {line}" for line in more]
    return Verdict((*lines, *told), len(wrong) + len(more))


def _wrong(error: TrustError) -> str:
    return f"WRONG   {error}"


def _signature(folder: Path, trust: Trust | None) -> str:
    return signer_named(folder, read_manifest(folder), trust) if trust else unsigned_remark(folder)


def _fate(concept: FusedConcept) -> Iterator[str]:
    kept = ", ".join(f"{group} {each.energy_kept:.2f}" for group, each in sorted(concept.survival.items()))
    scored = f"; identity {concept.identity.fused:.3f}" if concept.identity else ""
    flagged = ", flagged: it lost much of its identity" if concept.flagged else ""
    yield f"  {concept.token}  weight {concept.weight:g}; energy kept {kept or '-'}{scored}{flagged}"
