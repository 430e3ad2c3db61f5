"""The options of `mos-bench influence`, its run, and the tables that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from mos_bench.identity.concepts.bench_concepts import in_fusion_order, split, tiny_concepts
from mos_bench.identity.concepts.tuning import TunedConcepts
from mos_bench.identity.measuring.curve import RANKS
from mos_bench.identity.pages.results import table
from mos_bench.identity.storage.sharing import Sharing
from mos_bench.influence.measuring import GROUPS, Attack, Honest, Measuring, named, random_sets
from mos_bench.rows import command_line, device_name, versions
from mos_common.base_model import load_base
from mos_common.concept import Concept
from mos_common.errors import RequestError
from mos_common.files import write_atomically
from mos_common.settings import changed, parse_settings
from mos_common.shell import say
from mos_server.fusion.methods.gradient import GradientSettings

COUNTS = (3, 8, 14, 32, 64)
STRENGTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.99)
ATTACKED = (8, 14)


@dataclass(frozen=True)
class Options:
    """The options of the command line. `each` is the sets at each n, `batch` that of tuning."""

    out: Path
    counts: tuple[int, ...] = COUNTS
    ranks: tuple[int, ...] = (4, 1)
    each: int = 4
    attacked: tuple[int, ...] = ATTACKED
    strengths: tuple[float, ...] = STRENGTHS
    per_half: int | None = None
    sets: tuple[str, ...] = ()
    tuned: Path | None = None
    steps: int | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.ranks) - set(RANKS):
            raise RequestError(f"--ranks {min(unknown)}: choose from {', '.join(map(str, RANKS))}")
        available = sum(map(len, self.pools().values()))
        if (most := max((*self.counts, *self.attacked))) > available:
            raise RequestError(f"--n {most}: there are {available} concepts; use at most {available}")
        if any(not 0 < strength < 1 for strength in self.strengths):
            raise RequestError(
                f"--strengths {min(self.strengths)}: expected shares of a layer's norm, above 0, below 1"
            )

    def pools(self) -> dict[str, list[str]]:
        """Return the names of `dev` and of `test` in the order in which they are fused."""
        halves = split(tiny_concepts())
        return {
            half: [concept.name for concept in in_fusion_order(halves[half])][: self.per_half]
            for half in ("dev", "test")
        }

    @property
    def settings(self) -> GradientSettings:
        """The settings of fusion."""
        return changed(GradientSettings(), parse_settings(GradientSettings, self.sets))


def run_influence(options: Options, *, helper: bool = False) -> tuple[list[Honest], list[Attack]]:
    """Tune what is missing, measure, and write influence.json and influence.md.

    A helper only tunes. Tuned files and moments are kept in `out` for the next run.
    """
    torch.set_num_threads(1)
    base = load_base("tiny", device="cpu")
    folder, pools = options.out / base.fingerprint[:12], options.pools()
    tuned = TunedConcepts(base, folder, tuned=options.tuned or folder / "tuned", steps=options.steps)
    wanted = [concept for concept in tiny_concepts() if any(concept.name in pool for pool in pools.values())]
    measuring = Measuring(base, folder / "moments", options.settings)
    honest, attacks = list[Honest](), list[Attack]()
    for rank in options.ranks:
        variant = RANKS[rank]
        if options.batch is not None:
            variant = replace(variant, settings={**variant.settings, "batch": str(options.batch)})
        tuned.tune_all(wanted, variant, Sharing(folder / "locks", helper=helper))
        if helper:
            continue
        concepts = {concept.name: tuned.concept(concept, variant) for concept in wanted}
        honest += _honest(measuring, concepts, options, rank)
        attacks += _attacks(measuring, concepts, options, rank)
    if not helper:
        _write(options.out, options, honest, attacks)
    return honest, attacks


def _honest(measuring: Measuring, concepts: Mapping[str, Concept], options: Options, rank: int) -> list[Honest]:
    rows = []
    for n in options.counts:
        for half, names in random_sets(options.pools(), n, options.each):
            rows += (found := measuring.honest(named(concepts, names), rank, half))
            say(f"rank {rank}, n = {n}, {half}: " + ", ".join(f"{r.group} {r.least:.2f} {r.toll:.2f}" for r in found))
    return rows


def _attacks(measuring: Measuring, concepts: Mapping[str, Concept], options: Options, rank: int) -> list[Attack]:
    rows = []
    for n in options.attacked:
        for number, (_, names) in enumerate(random_sets(options.pools(), n, 2)):
            rows += (found := measuring.attacked(named(concepts, names), rank, options.strengths, number))
            for each in found:
                say(f"rank {rank}, {n} honest, attack {each.strength:g}: {each.left_out or 'nobody is left out'}")
    return rows


def honest_table(rows: Sequence[Honest]) -> str:
    """Return Markdown: the least share and the greatest toll at each rank and n, by group."""
    lines = []
    for rank, n in dict.fromkeys((row.rank, row.n) for row in rows):
        of_n = [row for row in rows if (row.rank, row.n) == (rank, n)]
        by_group = {group: [row for row in of_n if row.group == group] for group in GROUPS}
        cells = [f"{min(row.least for row in by_group[group]):.2f}" for group in GROUPS]
        cells += [
            f"{max(row.toll for row in by_group[group]):.2f} ({max(row.multiple for row in by_group[group]):.2f})"
            for group in GROUPS
        ]
        loudest = max(row.loudness for row in of_n)
        left_out = len({row.left_out for row in of_n if row.left_out})
        lines.append([rank, n, len(by_group[GROUPS[0]]), *cells, f"{loudest:.2f}", left_out])
    header = ["rank", "n", "sets", *(f"least share, {group}" for group in GROUPS)]
    header += [*(f"toll (over the median), {group}" for group in GROUPS), "loudness over the median", "left out"]
    return table(header, lines)


def attack_table(rows: Sequence[Attack]) -> str:
    """Return Markdown: what an attacker costs if it is fused, and what it costs by default."""
    lines = []
    for row in rows:
        lost = [f"{100 * row.lost[group]:.0f} % ({100 * row.newcomer[group]:.0f} %)" for group in GROUPS]
        who, _, why = row.left_out.partition(": ")
        lines.append([row.rank, row.n, f"{row.strength:g}", *lost, f"{who}: {why.split(': ')[0]}" if why else "nobody"])
    header = ["rank", "honest", "random changes", *(f"lost, {group} (to a typical one)" for group in GROUPS)]
    return table([*header, "left out by default"], lines)


def _write(out: Path, options: Options, honest: Sequence[Honest], attacks: Sequence[Attack]) -> None:
    report = {
        "device": device_name(),
        "versions": versions(),
        "tuning": {"steps": options.steps, "batch": options.batch},
        "honest": [asdict(row) for row in honest],
        "attacks": [asdict(row) for row in attacks],
    }
    write_atomically(out / "influence.json", json.dumps(report, indent=1).encode() + b"\n")
    page = ["# Influence, measured", f"    {command_line()}", honest_table(honest), attack_table(attacks)]
    write_atomically(out / "influence.md", ("\n\n".join(page) + "\n").encode())
    say(f"{out}: influence.md, influence.json")
