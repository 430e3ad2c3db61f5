"""Fuse the concepts of a round: words, then the text encoder, then keys and values of cross-attention, then the rest of the UNet.

The order is the paper's. Keys and values read what the *fused* text encoder writes, so the text encoder is solved before they are
recorded. Everything is summed in the order of the content digests: any subset of concepts gives the same model, to the bit,
whenever and in whatever order its members came.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from mos_common.base_model import Base
from mos_common.concept import Concept, check_fits, words_of
from mos_common.concept_file import content_digest
from mos_common.edlora import LowRank
from mos_common.errors import FusionError
from mos_common.fused_model import Excluded, FusedConcept, FusedModel, Manifest, NamedConcept, Survival
from mos_common.layers import Group, Layer, adaptable_layers, concept_layers
from mos_server.fusion import rivals
from mos_server.fusion.lbfgs import lbfgs_fusion
from mos_server.fusion.moments import Moments
from mos_server.fusion.normal_equation import NormalEquations
from mos_server.fusion.settings import FusionSettings
from mos_server.fusion.solve import residual
from mos_server.fusion.statistics import Recorder, Recording, Statistics, UnusableConceptError, wanted_inputs

log = logging.getLogger(__name__)
Progress = Callable[[str], None]


def fuse(
    base: Base,
    concepts: Sequence[NamedConcept],
    settings: FusionSettings | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    moments_dir: Path | None = None,
    recorder: Recorder | None = None,
    progress: Progress = log.info,
) -> FusedModel:
    """One model that draws every concept.

    `weights` by token say how much a concept counts (wi, default 1). Second moments are kept in `moments_dir` by content digest,
    base and settings, and found there by a later fusion: a concept that joins is the only one to be recorded, and a fusion that
    was interrupted goes on. Without it they live as long as the call. `recorder` runs the models elsewhere (`cluster.py`). A concept whose forward pass is not finite is left out, and
    the manifest says why.

    Raises:
        FusionError: there is nothing to fuse, two concepts would share a token, or a weight is for nobody or not positive.
        ConceptError: a concept does not fit the base.

    """
    settings = settings or FusionSettings()
    remaining, excluded = _in_canonical_order(concepts, base), list[Excluded]()
    weights = _checked_weights(weights or {}, remaining)
    with ExitStack() as stack:
        if moments_dir is None:
            moments_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mos-moments-")))
        statistics = Statistics(base, moments_dir, progress, recorder)
        while True:
            try:
                solved = _solve(base, remaining, weights, settings, statistics)
                break
            except UnusableConceptError as error:
                remaining = [named for named in remaining if named.token != error.token]
                if not remaining or len(remaining) + len(excluded) == len(concepts):
                    raise
                excluded.append(Excluded(token=error.token, reason=error.reason))
                progress(f"{error.token} is left out: {error.reason}")
    vocabulary = {named.token: words_of(named.concept, base) for named in remaining}
    return FusedModel(solved.changes, vocabulary, _manifest(base, remaining, weights, settings, solved, excluded))


@dataclass
class Solved:
    """Δ* of every layer, what survives of each concept by token and group, and the drift of ordinary prompts by group."""

    changes: dict[str, LowRank] = field(default_factory=dict)
    survival: dict[str, dict[str, Survival]] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)


def _solve(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: FusionSettings,
    statistics: Statistics,
) -> Solved:
    if settings.method == "gradient":
        return gradient(base, concepts, weights, settings, statistics)
    return Solved(_rival(base, concepts, weights, settings, statistics.progress))


def _rival(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: FusionSettings,
    progress: Progress,
) -> dict[str, LowRank]:
    scaled = {token: settings.sum_weight * weight for token, weight in weights.items()}
    match settings.method:
        case "ties":
            return rivals.ties(base, concepts, scaled, settings.density)
        case "dare":
            return rivals.dare(base, concepts, scaled, settings.density)
        case "custom-diffusion":
            return rivals.custom_diffusion(base, concepts, settings.ordinary)
        case "lbfgs":
            return lbfgs_fusion(base, concepts, settings, progress)
        case "average":
            total = sum(weights.values())
            scaled = {token: weight / total for token, weight in weights.items()}
    return rivals.weighted_sum(base, concepts, scaled)


def gradient(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: FusionSettings,
    statistics: Statistics,
) -> Solved:
    """Gradient fusion, group after group.

    Raises:
        UnusableConceptError: a concept's forward pass is not finite.

    """
    solved = Solved(survival={named.token: {} for named in concepts})
    for group in Group:
        layers = _changed_layers(base, concepts, group)
        if not layers:
            continue
        recordings = _recordings(base, concepts, group, layers, settings, solved.changes)
        statistics.gather([*recordings.values()])
        started = time.monotonic()
        equations = NormalEquations(layers, statistics.of(recordings[None]), settings)
        for named in concepts:
            equations.add(named.concept, statistics.of(recordings[named.token]), weights[named.token])
        changes = equations.solve()
        solved.changes |= changes
        solved.drift[group.name.lower()] = equations.drift(changes)
        statistics.progress(f"{group}: {len(layers)} layers solved in {time.monotonic() - started:.1f} s")
        for named in concepts:
            moments = statistics.of(recordings[named.token])
            solved.survival[named.token][group.name.lower()] = _survival(layers, named.concept, moments, changes)
    return solved


def _changed_layers(base: Base, concepts: Sequence[NamedConcept], group: Group) -> list[Layer]:
    changed = {name for named in concepts for name in named.concept.pairs}
    return [layer for layer in adaptable_layers(base) if layer.group is group and layer.name in changed]


def _recordings(
    base: Base,
    concepts: Sequence[NamedConcept],
    group: Group,
    layers: Sequence[Layer],
    settings: FusionSettings,
    solved: Mapping[str, LowRank],
) -> dict[str | None, Recording]:
    """What is to be recorded for a group, by token; None is for ordinary prompts on the untouched base."""
    reads = wanted_inputs(layers, concept_layers(base), group)
    group_of = {layer.name: layer.group for layer in adaptable_layers(base)}
    recordings: dict[str | None, Recording] = {None: Recording(group, None, {}, reads, settings)}
    for named in concepts:
        own = dict(named.concept.pairs)
        if group is not Group.SPATIAL:
            own = {name: pair for name, pair in own.items() if group_of[name] is Group.TEXT}
            if group is Group.CROSS and settings.text_inputs == "fused":
                own = dict(solved)
        elif settings.unet_inputs == "fused":
            own = dict(solved) | {name: pair for name, pair in own.items() if group_of[name] is Group.SPATIAL}
        recordings[named.token] = Recording(group, named, own, reads, settings)
    return recordings


def _survival(layers: Sequence[Layer], concept: Concept, moments: Moments, changes: Mapping[str, LowRank]) -> Survival:
    left_over = energy = 0.0
    residuals = {}
    for layer in layers:
        if layer.name in concept.pairs:
            rest, own = residual(moments.mean(layer.reads), changes[layer.name], concept.pairs[layer.name])
            residuals[layer.name] = rest
            left_over, energy = left_over + rest, energy + own
    return Survival(energy_kept=1 - left_over / energy if energy else 1.0, residual=residuals)


def _in_canonical_order(concepts: Sequence[NamedConcept], base: Base) -> list[NamedConcept]:
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
    _report_shared_triggers(concepts)
    return sorted(concepts, key=lambda named: (content_digest(named.concept), named.token))


def _report_shared_triggers(concepts: Sequence[NamedConcept]) -> None:
    """Concepts without words of their own are told apart by what their prompts say: two that say the same draw a mixture."""
    called: dict[str, list[str]] = {}
    for named in concepts:
        if not named.concept.words:
            text = named.concept.trigger or named.concept.class_word
            called.setdefault(" ".join(text.lower().split()), []).append(named.token)  # as CLIP reads it
    for trigger, tokens in called.items():
        if len(tokens) > 1:
            log.warning(
                "%s are all called %r in prompts and will be drawn as a mixture: import them with different --trigger",
                ", ".join(tokens),
                trigger,
            )


def _checked_weights(weights: Mapping[str, float], concepts: Sequence[NamedConcept]) -> dict[str, float]:
    tokens = {named.token for named in concepts}
    if unknown := weights.keys() - tokens:
        raise FusionError(f"a weight is given for {min(unknown)}; there is {', '.join(sorted(tokens))}")
    if wrong := [token for token, weight in weights.items() if not 0 < weight < 1e6]:
        raise FusionError(f"the weight of {wrong[0]} is {weights[wrong[0]]}: expected a number above 0")
    return {token: float(weights.get(token, 1.0)) for token in sorted(tokens)}


def _manifest(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: FusionSettings,
    solved: Solved,
    excluded: Sequence[Excluded],
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
                weight=weights[named.token],
                survival=solved.survival.get(named.token, {}),
            )
            for named in concepts
        ],
        excluded=list(excluded),
        drift=solved.drift,
    )
