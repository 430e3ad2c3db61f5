"""Table (c): identity kept against the number of fused concepts, for every method, at two ranks; and (e): drift of the base.

At every n the first n concepts of the test half are fused, and the first few of them scored: the same ones at every n. A λ is
chosen at each n on the dev half, fused and scored in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mos_bench.identity.cases import Case, ceiling_case, floor_case, shared_case, single_case
from mos_bench.identity.concepts import BenchConcept
from mos_bench.identity.methods import Method
from mos_bench.identity.models import single, untouched
from mos_bench.identity.tuning import ED_LORA, ED_LORA_1, Variant
from mos_bench.identity.workshop import Workshop
from mos_common.files import write_atomically

COUNTS = (2, 3, 5, 8, 14, 20, 32)
RANKS = {4: ED_LORA, 1: ED_LORA_1}


@dataclass
class Curve:
    """All cases of one half, by name; `singles` are those before fusion, by rank; `chosen` says which λ dev chose and why."""

    cases: list[Case] = field(default_factory=list)
    singles: dict[int, Case] = field(default_factory=dict)
    bounds: list[Case] = field(default_factory=list)
    chosen: list[dict[str, object]] = field(default_factory=list)

    def case(self, n: int, method: str, rank: int = 4) -> Case | None:
        """One of the cases, if it was measured."""
        wanted = (n, method, rank)
        return next((c for c in self.cases if (c.about["n"], c.about["method"], c.about["rank"]) == wanted), None)

    def rivals(self, case: Case) -> list[Case]:
        """The other methods at the same n and rank."""
        same = [other for other in self.cases if all(other.about[k] == case.about[k] for k in ("n", "rank"))]
        return [other for other in same if other.about["method"] != case.about["method"]]


def measure_curve(
    workshop: Workshop, half: str, counts: Sequence[int], methods: Sequence[Method], ranks: Sequence[int]
) -> Curve:
    """Tune, fuse, draw and score."""
    curve, concepts = Curve(), workshop.half(half)[: max(counts)]
    for rank in ranks:
        variant = RANKS[rank]
        workshop.studio.tune_all(concepts, variant, workshop.sharing)
        curve.singles[rank] = singles_of(workshop, workshop.probed(concepts), variant)
        recipes = [workshop.recipe(concepts[:n], variant, method) for n in counts for method in methods]
        workshop.fuse_all(recipes, f"fusing at rank {rank}")
        for n in counts:
            scales = {m.name: choose_scale(workshop, m, n, variant, curve.chosen) for m in methods if m.grid}
            found = measure_methods(workshop, concepts[:n], variant, methods, scales)
            curve.cases += [_named(case, n, rank, workshop) for case in found]
    probed = workshop.probed(concepts)
    curve.bounds = [floor_case(workshop, untouched(), probed), ceiling_case(workshop, probed)]
    return curve


def singles_of(workshop: Workshop, concepts: Sequence[BenchConcept], variant: Variant) -> Case:
    """Every concept before fusion."""
    models = {c.name: single(workshop.base, workshop.studio.concept(c, variant)) for c in concepts}
    return single_case(workshop, models, concepts, f"single {variant.title}")


def measure_methods(
    workshop: Workshop,
    concepts: Sequence[BenchConcept],
    variant: Variant,
    methods: Sequence[Method],
    scales: Mapping[str, float],
) -> list[Case]:
    """Fused by each method: the probed concepts' scores, and drift."""
    probed, models = workshop.probed(concepts), {}
    for method in methods:
        recipe = workshop.recipe(concepts, variant, method, scales.get(method.name, 1.0))
        workshop.fuse_all([recipe], f"{method.name} of {len(concepts)}")
        models[method.name] = workshop.kitchen.model(recipe)
    requests = [r for model in models.values() for c in probed for r in workshop.requests(model, c)]
    requests += [r for model in [untouched(), *models.values()] for r in workshop.unrelated(model)]
    workshop.draw(requests, f"drawing {len(concepts)} {variant.title} fused")
    return [
        shared_case(workshop, model, probed, name, n=len(concepts), method=name, scale=scales.get(name, 1.0))
        for name, model in models.items()
    ]


def choose_scale(
    workshop: Workshop, method: Method, n: int, variant: Variant, chosen: list[dict[str, object]]
) -> float:
    """The λ of the highest image alignment on the first n dev concepts, the smallest of equals; written down in `chosen`."""
    concepts, scales = workshop.half("dev")[:n], method.scales(n)
    workshop.studio.tune_all(concepts, variant, workshop.sharing)
    probed = workshop.probed(concepts)
    recipes = {scale: workshop.recipe(concepts, variant, method, scale) for scale in scales}
    workshop.fuse_all(list(recipes.values())[:1], f"{method.name} of {n} dev concepts")
    models = {scale: workshop.kitchen.model(recipe) for scale, recipe in recipes.items()}
    requests = [r for model in models.values() for c in probed for r in workshop.requests(model, c)]
    workshop.draw(requests, f"λ of {method.name}, {n} dev concepts")
    file = workshop.choice_file([models[scale] for scale in scales], probed)

    def choose(_: Path) -> None:
        found = {str(scale): workshop.image_alignment(model, probed) for scale, model in models.items()}
        write_atomically(file, json.dumps(found).encode())

    workshop.sharing.all_of("choosing λ", [file], key=str, done=Path.is_file, do=choose)
    reached = {float(scale): float(value) for scale, value in json.loads(file.read_bytes()).items()}
    best = max(reached, key=lambda scale: (reached[scale], -scale))
    chosen.append(
        {"variant": variant.title, "method": method.name, "n": n, "scale": best, "dev_image_alignment": reached}
    )
    return best


def _named(case: Case, n: int, rank: int, workshop: Workshop) -> Case:
    """`n=14 gradient`, `n=14 rank=1 gradient`; n·r/d says how full the narrowest layer is."""
    method = case.about["method"]
    name = f"n={n} {method}" if rank == 4 else f"n={n} rank={rank} {method}"
    filled = n * rank / workshop.base.token_table.shape[1]
    return Case(name, case.scores, {**case.about, "rank": rank, "n·r/d": filled}, case.drift)
