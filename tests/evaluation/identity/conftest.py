"""A bench on four concepts, and pictures of concepts as drawings would show them."""

from __future__ import annotations

from collections import Counter

import pytest

import mos_bench.identity.drawing.requests as drawings
from mos_bench.identity.concepts.bench_concepts import tiny_concepts, write_pictures
from mos_bench.identity.concepts.tuning import ED_LORA
from mos_bench.identity.drawing.protocol import Protocol
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.scoring.claims import ClaimChecker
from mos_bench.identity.scoring.scorers import EfficientNet
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import split_pictures
from mos_common.concept_file import write_concept
from mos_common.drawing import Drawing, draw
from mos_tiny.recipe.compose import World
from mos_tiny.recipe.witnesses.of_prompts import LessonSizes

COUNT = 16  # concepts that these tests look at: every style of people


PROTOCOL = Protocol(prompts=1, seeds=1, probed=2, how=Drawing(steps=1))


@pytest.fixture(scope="session")
def world():
    return World()


@pytest.fixture(scope="session")
def pictures(tiny, world, tmp_path_factory):
    """(tuned on, held back) of some concepts, through the VAE as drawings are."""
    folder, found = tmp_path_factory.mktemp("pictures"), {}
    for concept in tiny_concepts()[:: 64 // COUNT]:
        halves = split_pictures(write_pictures(concept, folder, world))
        found[concept] = [tiny.decode_latents(tiny.encode_pictures(load_pictures(half, 64))) for half in halves]
    return found


@pytest.fixture(scope="session")
def checker(tiny):
    return ClaimChecker(tiny, sizes=LessonSizes(each=1, scenes=40, people=40, colours=40))


@pytest.fixture
def open_bench(tiny, make_concept, checker, tmp_path):
    """Open a bench on four concepts (two dev, two test) with random tuned files, in one folder."""
    concepts, caches = tiny_concepts()[::16], []

    def opened(protocol: Protocol = PROTOCOL, *variants) -> Bench:
        found = Bench.on(tiny, tmp_path / "out", protocol, scorer=EfficientNet(), concepts=concepts)
        found.scoring.claims = checker
        caches.append(found.cache)
        for i, concept in enumerate(concepts):
            for variant in variants or (ED_LORA,):
                path = found.tuned.path(concept, variant)
                if not path.is_file():
                    random = make_concept(tiny, concept.name, seed=i, strength=0.05, class_word=concept.class_word)
                    write_concept(random, path)
        return found

    yield opened
    for cache in caches:
        cache.close()


@pytest.fixture
def drawn(monkeypatch):
    """How many pictures were really drawn, by prompt."""
    counts: Counter[str] = Counter()

    def counting(base, prompts, seeds, **others):
        counts.update(prompts)
        return draw(base, prompts, seeds, **others)

    monkeypatch.setattr(drawings, "draw", counting)
    return counts
