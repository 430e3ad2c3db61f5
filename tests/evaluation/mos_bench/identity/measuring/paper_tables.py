"""The paper's Tables 1 (single to fused) and 2 (tuning x fusion), and its Figure 3."""

from __future__ import annotations

from dataclasses import dataclass

from mos_bench.identity.concepts.tuning import (
    CUSTOM_DIFFUSION,
    ED_LORA,
    LORA,
    P_PLUS,
    TEXTUAL_INVERSION,
    Variant,
)
from mos_bench.identity.drawing.models import words_only
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.cases import Case, single_case
from mos_bench.identity.measuring.curve import choose_scale, measure_methods, singles_of
from mos_bench.identity.measuring.methods import AVERAGE, GRADIENT, SUM_TUNED, Method
from mos_bench.identity.measuring.methods import CUSTOM_DIFFUSION as CUSTOM_MERGE

FUSED = 14  # as many as in the paper
TABLE_1: tuple[tuple[str, Variant, Method | None], ...] = (
    ("Textual Inversion", TEXTUAL_INVERSION, None),
    ("P+", P_PLUS, None),
    ("Custom Diffusion + its merge", CUSTOM_DIFFUSION, CUSTOM_MERGE),
    ("LoRA + average", LORA, AVERAGE),
    ("ED-LoRA + gradient (ours)", ED_LORA, GRADIENT),
)


@dataclass(frozen=True)
class TableRow:
    """One row of Table 1 or 2: concepts alone, and in one model."""

    title: str
    single: Case
    fused: Case


def measure_table_1(bench: Bench, half: str, count: int = FUSED) -> list[TableRow]:
    """Measure Table 1. Words alone change no weights, so their fused case is the single one."""
    concepts, rows = bench.half(half)[:count], []
    for title, variant, method in TABLE_1:
        needed = bench.probed(concepts) if method is None else concepts
        bench.tuned.tune_all(needed, variant, bench.sharing)
        single = singles_of(bench, bench.probed(concepts), variant)
        fused = single
        if method is not None:
            fused = measure_methods(bench, concepts, variant, [method], {})[0]
        rows.append(TableRow(title, single, fused))
    return rows


def measure_table_2(bench: Bench, half: str, count: int = FUSED) -> list[TableRow]:
    """Measure LoRA and ED-LoRA, each merged in three ways; λ of the sum is chosen on dev."""
    concepts, rows = bench.half(half)[:count], []
    for variant in (LORA, ED_LORA):
        bench.tuned.tune_all(concepts, variant, bench.sharing)
        single = singles_of(bench, bench.probed(concepts), variant)
        scale = choose_scale(bench, SUM_TUNED, len(concepts), variant, [])
        methods = (AVERAGE, SUM_TUNED, GRADIENT)
        cases = measure_methods(bench, concepts, variant, methods, {SUM_TUNED.name: scale})
        rows += [TableRow(f"{variant.title} + {case.name}", single, case) for case in cases]
    return rows


def measure_figure_3(bench: Bench, half: str, count: int = FUSED) -> list[Case]:
    """Measure V's words on the untouched base and with the changes, for LoRA and ED-LoRA."""
    concepts = bench.probed(bench.half(half)[:count])
    cases = []
    for variant in (LORA, ED_LORA):
        bench.tuned.tune_all(concepts, variant, bench.sharing)
        alone = {c.name: words_only(bench.base, bench.tuned.concept(c, variant)) for c in concepts}
        cases.append(single_case(bench, alone, concepts, f"{variant.title}: words alone"))
        whole = singles_of(bench, concepts, variant)
        cases.append(Case(f"{variant.title}: words and changes", whole.scores))
    return cases
