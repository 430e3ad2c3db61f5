"""Gradient fusion, solved exactly from second moments (`solve.py` has the equation)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mos_common.base_model import Base
from mos_common.bounds import relative_change
from mos_common.concept import Concept
from mos_common.edlora import LowRank
from mos_common.errors import RequestError
from mos_common.fused_model import NamedConcept, Survival
from mos_common.layers import Group, Layer
from mos_common.settings import setting
from mos_server.fusion.attachments import Inputs, attached_changes
from mos_server.fusion.influence import MeanOf, kept_without
from mos_server.fusion.layerwise import changed_layers
from mos_server.fusion.leaving_out import Influence, check_influence
from mos_server.fusion.methods.method import Method, Option, Solved
from mos_server.fusion.normal_equation import NormalEquations
from mos_server.fusion.per_group import PerGroup, of_group, values_of
from mos_server.fusion.presets import PRESETS, Preset, Terms, describe_presets
from mos_server.fusion.recording_settings import RecordingSettings
from mos_server.fusion.statistics import Mean, Recording, Statistics, wanted_inputs
from mos_server.fusion.survival import survival_in
from mos_server.tracing import span

_PER_GROUP = "; or three, for text encoder, keys and values, rest of the UNet; none: the preset's"


@dataclass(frozen=True)
class GradientSettings(RecordingSettings):
    """The terms of the equation, and what is recorded for it.

    docs/fusion.md gives the reasons for the defaults.
    """

    method: ClassVar[str] = "gradient"
    preset: Preset = setting(
        "identity",
        "what sharpen, ridge and preserve are where they are none, for most of each concept (identity) or for ordinary "
        f"prompts that move less than by the average (faithful). {describe_presets()}",
    )
    sharpen: PerGroup | None = setting(
        None, f"s, how far the concepts' targets stand out from their mean; 1: the paper{_PER_GROUP}"
    )
    ridge: PerGroup | None = setting(None, f"λ, the ridge{_PER_GROUP}", unit="mean second moments of the input")
    ridge_kind: Literal["trace", "diagonal"] = setting(
        "trace", "unit of the ridge: the mean second moment (trace), or each input's own (diagonal)"
    )
    towards: float = setting(
        0.5, "c, the change that the ridge shrinks to, as a share of the summed changes; 0, the paper: no change"
    )
    preserve: PerGroup | None = setting(
        None,
        "μ, the weight of ordinary prompts on the untouched base; 1: as much as all concepts; 0: the paper"
        f"{_PER_GROUP}",
    )
    text_inputs: Inputs = setting(
        "fused", "text encoder whose features keys and values are recorded on: fused (the paper), or each concept's own"
    )
    unet_inputs: Inputs = setting(
        "own",
        "model that the rest of the UNet is recorded on: each concept's own (the paper's text), or the fused text "
        "encoder, keys and values with the concept's own remaining changes (the paper's code)",
    )
    cap: float = setting(
        4.0,
        "energy above which a concept's inputs, or its effect on a layer, count less, so that none drowns the others",
        unit="times the base's on ordinary prompts",
    )
    least_share: float | None = setting(
        0.25,
        "share of its fair part that every concept leaves every other, or it is left out; none: nobody is left out",
        unit="of what one of n equals leaves",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        terms = self.terms
        ridge, preserve, sharpen = (values_of(each) for each in (terms.ridge, terms.preserve, terms.sharpen))
        if not all(0 < each <= 1e3 for each in ridge) or not all(0 <= each <= 1e3 for each in preserve):
            raise RequestError(
                f"ridge {terms.ridge}, preserve {terms.preserve}: expected ridge above 0 and preserve at least 0, "
                "both at most 1000"
            )
        if not all(0 <= each <= 100 for each in sharpen):
            raise RequestError(f"sharpen {terms.sharpen}: expected factors from 0 to 100")
        if not 0 <= self.towards <= 1:
            raise RequestError(f"towards {self.towards}: expected a share from 0 to 1")
        if not self.cap > 0:
            raise RequestError(f"cap {self.cap}: expected a factor above 0")
        if self.least_share is not None and not 0 <= self.least_share <= 1:
            raise RequestError(f"least_share {self.least_share}: expected a share from 0 to 1, or none")

    @property
    def terms(self) -> Terms:
        """s, λ and μ: those that are set, and the preset's."""
        preset = PRESETS[self.preset]
        return Terms(
            preset.sharpen if self.sharpen is None else self.sharpen,
            preset.ridge if self.ridge is None else self.ridge,
            preset.preserve if self.preserve is None else self.preserve,
        )


def merge(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: GradientSettings,
    statistics: Statistics,
) -> Solved:
    """Solve for the one change of each layer that acts on each concept's inputs as its own did.

    The order is the paper's: text encoder, keys and values of cross-attention, the rest of the
    UNet. Keys and values read the features of the fused text encoder, which is solved before them.

    Raises:
        UnusableConceptError: a concept's forward pass is not finite, or it ruins others.
        UndecidedError: concepts only ruin each other.

    """
    solved, terms = Solved(survival={named.token: {} for named in concepts}), settings.terms
    for group in Group:
        layers = changed_layers(base, concepts, group)
        if not layers:
            continue
        recordings = _recordings(base, concepts, group, layers, settings, solved.changes)
        with span("recording", group=group.name.lower(), recordings=len(recordings)):
            statistics.gather([*recordings.values()])
        started = time.monotonic()
        with span("solving", group=group.name.lower(), layers=len(layers)):
            equations = NormalEquations(
                layers,
                statistics.of(recordings[None]),
                preserve=of_group(terms.preserve, group),
                ridge=of_group(terms.ridge, group),
                ridge_kind=settings.ridge_kind,
                towards=settings.towards,
                cap=settings.cap,
            )
            for named in concepts:
                equations.add(named.concept, statistics.of(recordings[named.token]), weights[named.token])
            sharpen = of_group(terms.sharpen, group)
            changes = equations.solve(sharpen)
        solved.changes |= changes
        solved.drift[group.name.lower()] = equations.drift(changes)
        statistics.progress(f"{group}: {len(layers)} layers solved in {time.monotonic() - started:.1f} s")
        readers = [statistics.means(recording) for recording in recordings.values()]

        def mean_of(concept: int | None, reads: str, readers: Sequence[Mean] = readers) -> Tensor:
            return readers[0 if concept is None else concept + 1](reads)

        # Sharpening moves targets away from what was asked for, so what concepts take from each
        # other is judged without it.
        solutions = [changes] if sharpen == 1 else [changes, equations.solve_uncut()]
        survival = survival_in(equations, solutions, mean_of, len(concepts))
        for named, left in zip(concepts, survival[0], strict=True):
            solved.survival[named.token][group.name.lower()] = left
        if len(concepts) > 1:
            influence = _influence(equations, group, concepts, survival[-1], mean_of)
            statistics.progress(f"{group}: what is left of each computed in {time.monotonic() - started:.1f} s")
            solved.influence[group.name.lower()] = influence
            if settings.least_share is not None:
                check_influence(influence, settings.least_share)
    return solved


def _influence(
    equations: NormalEquations,
    group: Group,
    concepts: Sequence[NamedConcept],
    unsharpened: Sequence[Survival],
    mean_of: MeanOf,
) -> Influence:
    """Return what concepts do to each other."""
    kept = torch.tensor([each.energy_kept for each in unsharpened]).double()
    without, energy = kept_without(equations, mean_of, len(concepts))
    loudness = torch.tensor([_loudness(equations.layers, named.concept) for named in concepts]).double()
    return Influence(group, [named.token for named in concepts], kept, without, energy, loudness)


def _loudness(layers: Sequence[Layer], concept: Concept) -> float:
    """Return ‖ΔW‖/‖W‖, the root of the mean square over the layers that the concept changes."""
    changes = [relative_change(layer, concept.pairs[layer.name]) for layer in layers if layer.name in concept.pairs]
    return math.sqrt(sum(change**2 for change in changes) / len(changes)) if changes else 0.0


def _recordings(
    base: Base,
    concepts: Sequence[NamedConcept],
    group: Group,
    layers: Sequence[Layer],
    settings: GradientSettings,
    solved: Mapping[str, LowRank],
) -> dict[str | None, Recording]:
    """Return a group's recordings by token; None: ordinary prompts on the untouched base."""
    reads = wanted_inputs(layers, base.layout.attention, group)
    recordings: dict[str | None, Recording] = {None: Recording(group, None, {}, reads, settings)}
    for named in concepts:
        attached = attached_changes(
            base,
            group,
            named.concept,
            solved,
            text_inputs=settings.text_inputs,
            unet_inputs=settings.unet_inputs,
        )
        recordings[named.token] = Recording(group, named, attached, reads, settings)
    return recordings


METHOD = Method(GradientSettings, merge, honours=frozenset({Option.WEIGHTS, Option.WORKERS, Option.MOMENTS}))
