"""Identity against the number of fused concepts, by method and rank, and drift of the base.

At every n the first n concepts of the test half are fused, and the first few of them are scored,
the same at every n. Since few concepts say little about a method, `disjoint` fuses as many sets of
n as the half has and pools their scores. λ is chosen at each n on the dev half, fused and scored in
the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_bench.identity.concepts.tuning import ED_LORA, ED_LORA_1, Variant
from mos_bench.identity.drawing.models import single, untouched
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.cases import Case, ceiling_case, floor_case, shared_case, single_case
from mos_bench.identity.measuring.methods import Method
from mos_common.files import write_atomically

COUNTS = (2, 3, 5, 8, 14, 20, 32, 64)
RANKS = {4: ED_LORA, 1: ED_LORA_1}


@dataclass
class Curve:
    """All cases of one half.

    `singles` are the cases before fusion, by rank; `chosen` records each λ chosen on dev and why.
    """

    cases: list[Case] = field(default_factory=list)
    singles: dict[int, Case] = field(default_factory=dict)
    bounds: list[Case] = field(default_factory=list)
    chosen: list[dict[str, object]] = field(default_factory=list)

    def case(self, n: int, method: str, rank: int = 4) -> Case | None:
        """Return one of the cases, or None if it was not measured."""
        wanted = (n, method, rank)
        return next((c for c in self.cases if (c.about["n"], c.about["method"], c.about["rank"]) == wanted), None)

    def rivals(self, case: Case) -> list[Case]:
        """Return the other methods at the same n and rank."""
        same = [other for other in self.cases if all(other.about[k] == case.about[k] for k in ("n", "rank"))]
        return [other for other in same if other.about["method"] != case.about["method"]]


def measure_curve(
    bench: Bench,
    half: str,
    counts: Sequence[int],
    methods: Sequence[Method],
    ranks: Sequence[int],
    *,
    disjoint: bool = False,
) -> Curve:
    """Tune, fuse, draw and score."""
    curve = Curve()
    sets = {n: sets_of(bench.half(half), n, disjoint=disjoint) for n in counts}
    needed = {concept for of_n in sets.values() for members in of_n for concept in members}
    probed = {concept for of_n in sets.values() for members in of_n for concept in bench.probed(members)}
    concepts, scored = ([c for c in bench.half(half) if c in wanted] for wanted in (needed, probed))
    for rank in ranks:
        variant = RANKS[rank]
        bench.tuned.tune_all(concepts, variant, bench.sharing)
        curve.singles[rank] = singles_of(bench, scored, variant)
        specs = [bench.spec(members, variant, method) for n in counts for members in sets[n] for method in methods]
        bench.fuse_all(specs, f"fusing at rank {rank}")
        for n in counts:
            scales = {
                m.name: choose_scale(bench, m, n, variant, curve.chosen, disjoint=disjoint) for m in methods if m.grid
            }
            of_sets = [measure_methods(bench, members, variant, methods, scales) for members in sets[n]]
            curve.cases += [_named(pooled(cases), n, rank, bench) for cases in zip(*of_sets, strict=True)]
    curve.bounds = [floor_case(bench, untouched(), scored), ceiling_case(bench, scored)]
    return curve


def sets_of(concepts: Sequence[BenchConcept], n: int, *, disjoint: bool) -> list[Sequence[BenchConcept]]:
    """Return the first n concepts, or with `disjoint` every consecutive n."""
    return [concepts[start : start + n] for start in range(0, len(concepts) - n + 1 if disjoint else 1, n)]


def pooled(cases: Sequence[Case]) -> Case:
    """Return one case of the same method on several sets, with the mean drift of every prompt."""
    first = cases[0]
    scores = {name: scores for case in cases for name, scores in case.scores.items()}
    drifts = [case.drift for case in cases if case.drift is not None]
    drift = np.mean(drifts, axis=0) if drifts else None
    return Case(first.name, scores, {**first.about, "sets": len(cases)}, drift)


def singles_of(bench: Bench, concepts: Sequence[BenchConcept], variant: Variant) -> Case:
    """Score every concept before fusion."""
    models = {c.name: single(bench.base, bench.tuned.concept(c, variant)) for c in concepts}
    return single_case(bench, models, concepts, f"single {variant.title}")


def measure_methods(
    bench: Bench,
    concepts: Sequence[BenchConcept],
    variant: Variant,
    methods: Sequence[Method],
    scales: Mapping[str, float],
) -> list[Case]:
    """Fuse by each method; return the probed concepts' scores and drift."""
    probed = bench.probed(concepts)
    models = {m.name: bench.models_of(concepts, variant, m, scales.get(m.name, 1.0)) for m in methods}
    requests = [r for _, of in models.values() for c in probed for r in bench.drawings.requests(of[c.name], c)]
    ordinary = [untouched(), *(plain for plain, _ in models.values())]
    requests += [request for model in ordinary for request in bench.drawings.unrelated(model)]
    bench.drawings.draw(requests, f"drawing {len(concepts)} {variant.title} fused")
    return [
        shared_case(bench, of, plain, probed, name, n=len(concepts), method=name, scale=scales.get(name, 1.0))
        for name, (plain, of) in models.items()
    ]


def choose_scale(
    bench: Bench,
    method: Method,
    n: int,
    variant: Variant,
    chosen: list[dict[str, object]],
    *,
    disjoint: bool = False,
) -> float:
    """Return the λ with the highest image alignment on dev concepts fused n at a time.

    Ties go to the smallest. The choice is appended to `chosen`.
    """
    sets, scales = sets_of(bench.half("dev"), n, disjoint=disjoint), method.scales(n)
    bench.tuned.tune_all([concept for members in sets for concept in members], variant, bench.sharing)
    specs = {scale: [bench.spec(members, variant, method, scale) for members in sets] for scale in scales}
    bench.fuse_all(specs[scales[0]], f"{method.name} of {n} dev concepts")
    pairs_of = {
        scale: [
            (bench.fused.model(spec), concept)
            for spec, members in zip(of_scale, sets, strict=True)
            for concept in bench.probed(members)
        ]
        for scale, of_scale in specs.items()
    }
    everything = [pair for pairs in pairs_of.values() for pair in pairs]
    bench.drawings.draw(
        [r for model, c in everything for r in bench.drawings.requests(model, c)], f"λ of {method.name}, n = {n}"
    )
    file = bench.scoring.choice_file(everything)

    def choose(_: Path) -> None:
        alignments = {str(scale): bench.scoring.image_alignment(pairs) for scale, pairs in pairs_of.items()}
        write_atomically(file, json.dumps(alignments).encode())

    bench.sharing.all_of("choosing λ", [file], key=str, done=Path.is_file, do=choose)
    reached = {float(scale): float(value) for scale, value in json.loads(file.read_bytes()).items()}
    best = max(reached, key=lambda scale: (reached[scale], -scale))
    chosen.append(
        {"variant": variant.title, "method": method.name, "n": n, "scale": best, "dev_image_alignment": reached}
    )
    return best


def _named(case: Case, n: int, rank: int, bench: Bench) -> Case:
    """Return the case named `n=14 gradient` or `n=14 rank=1 gradient`.

    n·r/d is how full the narrowest layer is.
    """
    method = case.about["method"]
    name = f"n={n} {method}" if rank == 4 else f"n={n} rank={rank} {method}"
    filled = n * rank / bench.base.token_table.shape[1]
    return Case(name, case.scores, {**case.about, "rank": rank, "n·r/d": filled}, case.drift)
