"""Choose the pairs of a study, have their pictures drawn by the identity bench, and write the page.

Every pair of methods is compared on the same concepts, prompts and seeds: the concepts take turns,
and each gives its prompts and seeds in an order that depends on its name alone. So the choice is
the same at every run, and looks at no picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from random import Random

import torch

from mos_bench.identity.concepts.bench_concepts import SETS, BenchConcept, concepts_in, tiny_concepts
from mos_bench.identity.drawing.models import Model, single
from mos_bench.identity.drawing.protocol import Protocol
from mos_bench.identity.drawing.requests import Request
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.curve import RANKS, choose_scale
from mos_bench.identity.measuring.methods import CURVE, Method
from mos_bench.identity.options import METHODS, check_split
from mos_bench.identity.scoring.scorers import EfficientNet
from mos_bench.rows import command_line, versions
from mos_bench.study.assembly import Assembly, Cell, Real
from mos_bench.study.page import KEY, PAGE, check_new, write_study
from mos_bench.study.trials import Key, random_name
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import Picture, split_pictures
from mos_common.base_model import load_base
from mos_common.errors import RequestError
from mos_common.shell import say

SINGLE = "single"
ALL = (SINGLE, *METHODS)
REFERENCES = 4


@dataclass(frozen=True)
class StudyOptions:
    """What a study compares: `pairs` for each pair of methods, of `count` fused concepts."""

    out: Path
    kept: Path
    methods: tuple[str, ...]
    count: int = 14
    rank: int = 4
    half: str = "test"
    pairs: int = 20
    catches: int = 8
    protocol: Protocol = field(default_factory=Protocol)
    base: str = "tiny"
    concepts: str = "first"
    tuned: Path | None = None
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        check_split(self.half)
        if unknown := set(self.methods) - set(ALL):
            raise RequestError(f"--methods {min(unknown)}: choose from {', '.join(ALL)}")
        if len(set(self.methods)) != len(self.methods) or len(self.methods) < 2:
            raise RequestError(f"--methods {','.join(self.methods)}: expected two or more, each once")
        if self.rank not in RANKS:
            raise RequestError(f"--rank {self.rank}: choose from {', '.join(map(str, RANKS))}")


def run_make(options: StudyOptions, *, helper: bool = False) -> Key | None:
    """Write a study; a helper only does its share of the drawing."""
    torch.set_num_threads(1)
    if not helper:
        check_new(options.out)
    tiny, base = options.concepts in SETS, load_base(options.base, device=options.device, dtype=options.dtype)
    bench = Bench.on(
        base,
        options.kept,
        options.protocol,
        scorer=EfficientNet(),
        concepts=tiny_concepts(options.concepts) if tiny else concepts_in(Path(options.concepts)),
        tiny=tiny,
        tuned=options.tuned,
        helper=helper,
    )
    with closing(bench.cache):
        return make(bench, options)


def make(bench: Bench, options: StudyOptions) -> Key | None:
    """Draw what is missing in the bench's folder, and write page and key."""
    bench.counts_in(options.half, [options.count])
    concepts = bench.half(options.half)[: options.count]
    probed = bench.probed(concepts)
    by_method = {name: requests_by(bench, name, concepts, options) for name in options.methods}
    cells = cells_of(bench, probed, options.pairs)
    wanted = [by_method[name][cell.concept.name][cell.place] for name in options.methods for cell in cells]
    bench.drawings.draw(wanted, "drawing for the study")
    if bench.sharing.helper:
        return None
    assembly = Assembly({concept.name: _real_pictures(bench, concept) for concept in probed})
    for pair in combinations(options.methods, 2):
        for cell in cells:
            keys = [by_method[name][cell.concept.name][cell.place].key for name in pair]
            assembly.add(cell, pair, [bench.cache.picture(key) for key in keys])
    assembly.add_catches(probed, options.catches)
    about = {"command": command_line(), "versions": versions(), "base": bench.base.fingerprint}
    key = Key(random_name(), options.methods, tuple(assembly.trials), about)
    write_study(options.out, key, assembly.shown, assembly.pictures)
    say(f"{options.out / PAGE / 'index.html'}: {len(assembly.trials)} pairs; give raters the folder {PAGE}/")
    say(f"{options.out / KEY}: keep it to yourself; mos-bench study tally needs it")
    return key


def requests_by(
    bench: Bench, name: str, concepts: Sequence[BenchConcept], options: StudyOptions
) -> dict[str, list[Request]]:
    """Return the requests for all drawings of each concept by one method, tuned and fused first."""
    variant, probed = RANKS[options.rank], bench.probed(concepts)
    bench.tuned.tune_all(concepts, variant, bench.sharing)
    models: dict[str, Model]
    if name == SINGLE:
        models = {c.name: single(bench.base, bench.tuned.concept(c, variant)) for c in probed}
    else:
        method: Method = next(method for method in CURVE if method.name == name)
        scale = choose_scale(bench, method, len(concepts), variant, []) if method.grid else 1.0
        _, models = bench.models_of(concepts, variant, method, scale)
    return {c.name: bench.drawings.requests(models[c.name], c) for c in probed}


def cells_of(bench: Bench, concepts: Sequence[BenchConcept], most: int) -> list[Cell]:
    """Return at most `most` prompts with seeds; the concepts take turns."""
    seeds, turns = range(bench.protocol.seeds), []
    for concept in concepts:
        texts = [prompt.about("V", class_word=concept.class_word) for prompt in bench.drawings.prompts(concept)]
        of_concept = [(text, seed) for text in texts for seed in seeds]
        cells = [Cell(concept, text, seed, place) for place, (text, seed) in enumerate(of_concept)]
        Random(concept.name).shuffle(cells)
        turns.append(cells)
    return [cell for turn in zip(*turns, strict=True) for cell in turn][:most]


def _real_pictures(bench: Bench, concept: BenchConcept) -> Real:
    tuned_on, held_back = split_pictures(bench.tuned.pictures(concept))
    few = max(1, min(REFERENCES - len(held_back), len(tuned_on) - 1))
    size, base = bench.base.picture_size, bench.base
    others: list[Picture] = tuned_on[few:] or tuned_on
    rebuilt = base.decode_latents(base.encode_pictures(load_pictures(others, size)))
    texts = [picture.captions[0] for picture in others]
    return Real(
        load_pictures([*held_back, *tuned_on[:few]], size), list(zip(texts, rebuilt.float().cpu(), strict=True))
    )
