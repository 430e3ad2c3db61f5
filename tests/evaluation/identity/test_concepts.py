"""The 64 concepts, their split, and the tuned ones that are shipped."""

from __future__ import annotations

from collections import Counter

import pytest

from mos_bench.identity.concepts.bench_concepts import (
    concepts_in,
    in_fusion_order,
    spare_icons,
    spare_people,
    split,
    tiny_concepts,
)
from mos_bench.identity.concepts.tuning import ED_LORA, SHIPPED, TunedConcepts
from mos_bench.identity.options import QUICK
from mos_common.concept import check_fits
from mos_common.errors import RequestError
from mos_common.names import CONCEPT_NAME


@pytest.fixture(scope="module")
def concepts():
    return tiny_concepts()


def test_there_are_64_concepts_whose_names_are_tokens(concepts):
    assert len({concept.name for concept in concepts}) == 64
    assert all(CONCEPT_NAME.fullmatch(concept.name) for concept in concepts)
    assert Counter(concept.category for concept in concepts)["objects"] >= 5


def test_the_split_halves_every_style(concepts):
    halves = split(concepts)
    dev, test = ({concept.name for concept in halves[half]} for half in ("dev", "test"))
    assert (len(dev), len(test), dev & test) == (32, 32, set())
    counts = [Counter(concept.style for concept in half) for half in halves.values()]
    assert all(abs(counts[0][style] - counts[1][style]) <= 1 for style in {c.style for c in concepts})


def test_the_split_does_not_depend_on_the_order_within_a_style(concepts):
    reversed_within = sorted(concepts, key=lambda c: ([x.style for x in concepts].index(c.style), c.name[::-1]))
    assert [c.name for c in split(reversed_within)["dev"]] == [c.name for c in split(concepts)["dev"]]


@pytest.mark.parametrize("n", [5, 8, 14, 20, 32])
def test_the_first_n_concepts_have_every_category_in_its_share(concepts, n):
    for half in split(concepts).values():
        whole, part = (Counter(c.category for c in some) for some in (half, in_fusion_order(half)[:n]))
        assert all(abs(part[category] - n * whole[category] / 32) <= 1 for category in whole)


def test_witnesses_learn_from_no_measured_concept(concepts):
    shown = {view.sprite.tobytes() for concept in concepts for view in concept.views}
    spare = [view for views in spare_people() for view in views] + spare_icons()
    assert spare
    assert not shown & {view.sprite.tobytes() for view in spare}


def test_the_concepts_of_quick_are_shipped_as_they_would_be_tuned(tiny, concepts, tmp_path):
    """Otherwise the command would silently tune sixteen concepts again."""
    tuned = TunedConcepts(tiny, tmp_path, tuned=tmp_path / "tuned")
    for half in ("dev", "test"):
        for concept in in_fusion_order(split(concepts)[half])[: max(QUICK.counts)]:
            path = tuned.path(concept, ED_LORA)
            assert path.parent == SHIPPED, concept.name
            check_fits(tuned.concept(concept, ED_LORA), tiny)
    assert {path.suffix for path in SHIPPED.iterdir()} == {".safetensors"}
    assert len(list(SHIPPED.iterdir())) == 2 * max(QUICK.counts)


@pytest.mark.parametrize("text", ['{"name": "<cup>"}', "[]", "cup"])
def test_a_folder_with_an_incomplete_concept_json_is_refused(tmp_path, text):
    (tmp_path / "cup").mkdir()
    (tmp_path / "cup" / "concept.json").write_text(text)
    with pytest.raises(RequestError, match=r"concept\.json: expected"):
        concepts_in(tmp_path)
