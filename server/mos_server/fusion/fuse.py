"""Fuse the concepts of a round: words, then the text encoder, then keys and values of cross-attention, then the rest of the UNet.

The order is the paper's. Keys and values read what the *fused* text encoder writes, so the text encoder is solved before they are
recorded. Everything is summed in the order of the content digests: any subset of concepts gives the same model, to the bit,
whenever and in whatever order its members came.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from mos_common.base_model import BaseModel
from mos_common.concept import Concept, check_fits
from mos_common.concept_file import content_digest
from mos_common.edlora import LowRank, attached
from mos_common.errors import ConceptError, FusionError
from mos_common.files import canonical_json
from mos_common.fused_model import FusedConcept, FusedModel, Manifest, NamedConcept, Survival
from mos_common.layers import Group, Layer, concept_layers
from mos_common.prompts import about
from mos_server.config import FusionSettings
from mos_server.fusion.activations import record_group
from mos_server.fusion.moments import Moments, read_moments, write_moments
from mos_server.fusion.solve import refactored, residual, solve_change, stacked_left

log = logging.getLogger(__name__)
Progress = Callable[[str], None]
RECORDING = 1  # raise when the recording of activations changes: moments kept from before are then recorded anew


def fuse(
    base: BaseModel,
    concepts: Sequence[NamedConcept],
    settings: FusionSettings | None = None,
    *,
    moments_dir: Path | None = None,
    progress: Progress = log.info,
) -> FusedModel:
    """One model that draws every concept.

    Second moments are kept in `moments_dir` by content digest, base and settings, and found there by a later fusion: a concept
    that joins is the only one to be recorded. Without it they live as long as the call.

    Raises:
        FusionError: there is nothing to fuse, or two concepts would share a token.
        ConceptError: a concept does not fit the base.

    """
    settings = settings or FusionSettings()
    ordered = _in_canonical_order(concepts, base)
    with ExitStack() as stack:
        if moments_dir is None:
            moments_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mos-moments-")))
        moments_dir.mkdir(parents=True, exist_ok=True)
        if settings.method == "gradient":
            changes, survival = _gradient(base, ordered, settings, moments_dir, progress)
        else:
            weight = 1 / len(ordered) if settings.method == "average" else settings.sum_weight
            changes, survival = weighted_sum(base, ordered, weight), [{} for _ in ordered]
    vocabulary = {named.token: named.concept.words[0].float() for named in ordered if named.concept.words}
    return FusedModel(changes, vocabulary, _manifest(base, ordered, settings, survival))


def weighted_sum(base: BaseModel, concepts: Sequence[NamedConcept], weight: float) -> dict[str, LowRank]:
    """Weight · Σi ΔWi for every layer: FedAvg with 1/n, the scaled sum with anything else."""
    changes = {}
    for layer in concept_layers(base):
        pairs = [named.concept.pairs[layer.name] for named in concepts if layer.name in named.concept.pairs]
        if pairs:
            right = torch.cat([weight * pair.scale * pair.A.double() for pair in pairs])
            changes[layer.name] = refactored(stacked_left(pairs), right)
    return changes


def _gradient(
    base: BaseModel, concepts: Sequence[NamedConcept], settings: FusionSettings, folder: Path, progress: Progress
) -> tuple[dict[str, LowRank], list[dict[str, Survival]]]:
    changes: dict[str, LowRank] = {}
    survival: list[dict[str, Survival]] = [{} for _ in concepts]
    for group in Group:
        layers = [layer for layer in concept_layers(base) if layer.group is group]
        recorder = _Recorder(base, group, layers, settings, folder, changes)
        moments = [
            recorder.keep(named, f"{i}/{len(concepts)} {named.token}", progress) for i, named in enumerate(concepts, 1)
        ]
        preserved = recorder.keep(None, "ordinary prompts", progress) if settings.preserve else None
        started = time.monotonic()
        changes |= _solve_group(layers, concepts, moments, preserved, settings)
        progress(f"{group}: {len(layers)} layers solved in {time.monotonic() - started:.1f} s")
        for i, named in enumerate(concepts):
            survival[i][group.name.lower()] = _survival(layers, named.concept, read_kept(moments[i]), changes)
    return changes, survival


def _solve_group(
    layers: Sequence[Layer],
    concepts: Sequence[NamedConcept],
    kept: Sequence[Path],
    preserved: Path | None,
    settings: FusionSettings,
) -> dict[str, LowRank]:
    """Sum the normal equation of every layer, one concept's moments in memory at a time, and solve it."""
    S: dict[str, Tensor] = {}
    left: dict[str, list[LowRank]] = {layer.name: [] for layer in layers}
    right: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    for named, path in zip(concepts, kept, strict=True):
        moments = read_kept(path)
        means = {reads: moments.mean(reads) for reads in moments.sums}
        for reads, G in means.items():
            S[reads] = S[reads] + G if reads in S else G.clone()
        for layer in layers:
            if pair := named.concept.pairs.get(layer.name):
                left[layer.name].append(pair)
                right[layer.name].append(pair.scale * pair.A.double() @ means[layer.reads])
    if preserved is not None:
        ordinary = read_kept(preserved)
        for reads in S:
            S[reads] += settings.preserve * ordinary.mean(reads)
    return {
        layer.name: solve_change(
            S[layer.reads],
            stacked_left(left[layer.name]),
            torch.cat(right[layer.name]),
            ridge=settings.ridge,
            ridge_kind=settings.ridge_kind,
        )
        for layer in layers
        if left[layer.name]
    }


class _Recorder:
    """Records one group's moments of one concept after the other, and keeps them on disk under a key that says what made them."""

    def __init__(
        self,
        base: BaseModel,
        group: Group,
        layers: Sequence[Layer],
        settings: FusionSettings,
        folder: Path,
        solved: Mapping[str, LowRank],
    ) -> None:
        self.base, self.group, self.layers, self.settings, self.folder = base, group, layers, settings, folder
        self.fused_text = solved if group is Group.CROSS and settings.text_inputs == "fused" else None

    def keep(self, named: NamedConcept | None, title: str, progress: Progress) -> Path:
        """The file with the moments of a concept (None: of ordinary prompts on the base), recorded now if it is not there."""
        whose = content_digest(named.concept) if named else "ordinary"  # `concepts withdraw` erases by this name
        path = self.folder / f"{whose}-{self._key(named)}.safetensors"
        if read_moments(path) is not None:
            progress(f"{self.group}: {title} is known")
            return path
        started = time.monotonic()
        write_moments(self._record(named), path)
        progress(f"{self.group}: {title} recorded in {time.monotonic() - started:.1f} s")
        return path

    def _record(self, named: NamedConcept | None) -> Moments:
        changes: Mapping[str, LowRank] = named.concept.pairs if named else {}
        if self.fused_text is not None and named:
            changes = self.fused_text
        prompts, vocabulary = self._prompts(named)
        try:
            with attached(self.base, changes):
                return record_group(
                    self.group,
                    self.base,
                    self.layers,
                    prompts,
                    self._seeds(named, len(prompts)),
                    vocabulary,
                    self.settings,
                )
        except FusionError as error:
            raise ConceptError(f"concept {named.token if named else 'of ordinary prompts'}: {error}") from error

    def _prompts(self, named: NamedConcept | None) -> tuple[Sequence[str], dict[str, Tensor]]:
        if named is None:
            return self.settings.ordinary, {}
        words = named.concept.words
        subject = named.concept.name if words else named.concept.class_word
        return [about(context, subject) for context in self.settings.contexts], {
            named.concept.name: words[0].float()
        } if words else {}

    def _seeds(self, named: NamedConcept | None, count: int) -> list[int]:
        first = int(content_digest(named.concept)[:12], 16) if named else 0
        return [first + i for i in range(count)]

    def _key(self, named: NamedConcept | None) -> str:
        settings = self.settings
        made_by: dict[str, object] = {
            "recording": RECORDING,
            "base": self.base.fingerprint,
            "number format": str(self.base.dtype),
            "group": self.group.name,
            "concept": content_digest(named.concept) if named else None,
            "prompts": list(settings.contexts if named else settings.ordinary),
            "subject": None if named is None or named.concept.words else named.concept.class_word,
        }
        if self.group is Group.SPATIAL:
            made_by |= {"steps": settings.steps, "guidance": settings.guidance, "batch": settings.batch}
        else:
            made_by |= {"rows": settings.rows}
        if self.fused_text is not None and named:
            made_by["text encoder"] = _digest(self.fused_text)
        return hashlib.sha256(canonical_json(made_by)).hexdigest()


def read_kept(path: Path) -> Moments:
    """Moments that were just recorded or found.

    Raises:
        FusionError: the file has gone or is damaged.

    """
    moments = read_moments(path)
    if moments is None:
        raise FusionError(f"moments {path} disappeared while fusing: fuse again, they are recorded anew")
    return moments


def _survival(layers: Sequence[Layer], concept: Concept, moments: Moments, changes: Mapping[str, LowRank]) -> Survival:
    left_over = energy = 0.0
    residuals = {}
    for layer in layers:
        if layer.name in concept.pairs:
            rest, own = residual(moments.mean(layer.reads), changes[layer.name], concept.pairs[layer.name])
            residuals[layer.name] = rest
            left_over, energy = left_over + rest, energy + own
    return Survival(energy_kept=1 - left_over / energy if energy else 1.0, residual=residuals)


def _in_canonical_order(concepts: Sequence[NamedConcept], base: BaseModel) -> list[NamedConcept]:
    if not concepts:
        raise FusionError("no concepts to fuse: at least one is needed")
    tokens = [named.token for named in concepts]
    if len(set(tokens)) < len(tokens):
        twice = sorted({token for token in tokens if tokens.count(token) > 1})
        raise FusionError(
            f"two concepts are called {', '.join(twice)}: a prompt could not tell them apart. Rename one, or leave it out"
        )
    for named in concepts:
        check_fits(named.concept, base)
    return sorted(concepts, key=lambda named: (content_digest(named.concept), named.token))


def _manifest(
    base: BaseModel, concepts: Sequence[NamedConcept], settings: FusionSettings, survival: Sequence[dict[str, Survival]]
) -> Manifest:
    return Manifest(
        base=base.fingerprint,
        base_name=Path(base.name).name,  # a path is the operator's business
        method=settings.method,
        settings={name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()},
        versions={name: version(name) for name in ("federated-mix-of-show", "torch", "diffusers", "transformers")},
        concepts=[
            FusedConcept(
                token=named.token,
                participant=named.participant,
                name=named.concept.name,
                class_word=named.concept.class_word,
                digest=content_digest(named.concept),
                licence=named.concept.licence,
                author=named.concept.author,
                survival=survived,
            )
            for named, survived in zip(concepts, survival, strict=True)
        ],
    )


def _digest(changes: Mapping[str, LowRank]) -> str:
    digest = hashlib.sha256()
    for name, pair in sorted(changes.items()):
        digest.update(name.encode())
        for half in (pair.A, pair.B):
            digest.update(half.contiguous().numpy().data)
    return digest.hexdigest()
