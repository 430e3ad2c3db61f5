"""What the tests of fusion share: a few concepts, and a count of what is recorded."""

from __future__ import annotations

from collections import Counter

import pytest

from mos_common.fused_model import NamedConcept
from mos_server.fusion import statistics
from mos_server.fusion.ordinary_folder import CACHE


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    """Every test records ordinary prompts itself."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def three(tiny, make_concept) -> list[NamedConcept]:
    """Three participants' concepts of different ranks: tests must not change them."""
    return [
        NamedConcept(participant, make_concept(tiny, name, seed=seed, rank=seed + 1, class_word=name[1:-1]))
        for seed, (participant, name) in enumerate((("alice", "<cat>"), ("bob", "<dog>"), ("carol", "<tree>")))
    ]


@pytest.fixture
def two(tiny, make_concept) -> list[NamedConcept]:
    """Two participants' concepts of ranks 2 and 3."""
    return [
        NamedConcept("alice", make_concept(tiny, "<cat>", seed=1, rank=2)),
        NamedConcept("bob", make_concept(tiny, "<dog>", seed=2, rank=3)),
    ]


@pytest.fixture
def recordings(monkeypatch) -> Counter:
    """How often each group was recorded."""
    counted: Counter = Counter()
    record = statistics.record_group

    def counting(group, *arguments):
        counted[group] += 1
        return record(group, *arguments)

    monkeypatch.setattr(statistics, "record_group", counting)
    return counted
