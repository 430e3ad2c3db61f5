"""The 128 concepts, their split, and the tuned ones that are shipped."""

from __future__ import annotations

from collections import Counter
from itertools import product
from random import Random

import numpy as np
import pytest
import torch

from mos_bench.identity.concepts.bench_concepts import (
    concepts_in,
    described,
    in_fusion_order,
    spare_icons,
    spare_people,
    split,
    tiny_concepts,
)
from mos_bench.identity.concepts.tuning import ED_LORA, SHIPPED, TunedConcepts
from mos_bench.identity.options import QUICK
from mos_bench.identity.scoring.scorers import EfficientNet
from mos_common.concept import check_fits
from mos_common.errors import RequestError
from mos_common.names import CONCEPT_NAME
from mos_tiny.recipe.demonstration import picture_of
from mos_tiny.recipe.pictures import as_tensor

GROUPS = sorted({concept.group for concept in tiny_concepts("alike")})


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


@pytest.mark.parametrize(("which", "n"), [*product(["first"], [5, 8, 14, 20, 32]), *product(["all"], [5, 14, 32, 64])])
def test_the_first_n_concepts_have_every_category_in_its_share(which, n):
    for half in split(tiny_concepts(which)).values():
        whole, part = (Counter(c.category for c in some) for some in (half, in_fusion_order(half)[:n]))
        assert all(abs(part[category] - n * whole[category] / len(half)) <= 1 for category in whole)


def test_people_who_look_alike_are_of_the_bases_own_styles_four_to_a_group():
    alike = tiny_concepts("alike")
    assert len({concept.name for concept in (*alike, *tiny_concepts())}) == 128
    assert all(CONCEPT_NAME.fullmatch(concept.name) and concept.person for concept in alike)
    assert set(Counter(concept.group for concept in alike).values()) == {4}
    assert described(alike) == "64 people, alike (56 micah, 8 personas)"
    assert all(len({c.class_word for c in alike if c.group == group}) == 1 for group in GROUPS)


def test_all_concepts_are_split_as_the_first_and_those_alike_are_each():
    together, first, alike = (split(tiny_concepts(which)) for which in ("all", "first", "alike"))
    for half in ("dev", "test"):
        assert len(together[half]) == 64
        assert {*first[half], *alike[half]} == {*together[half]}
    assert Counter(c.style for c in alike["dev"]) == Counter(c.style for c in alike["test"])


@pytest.mark.parametrize("which", ["alike", "all"])
def test_people_who_look_alike_are_fused_together(which):
    """A group is in one half, and complete before the next one begins."""
    for half in split(tiny_concepts(which)).values():
        groups = [concept.group for concept in in_fusion_order(half) if concept.group]
        assert len(groups) == 32
        assert all(len(set(groups[start : start + 4])) == 1 for start in range(0, 32, 4))


def test_members_of_a_group_look_more_alike_than_other_people_of_their_style(world):
    """By the features that judge drawings, of one view of each person on white."""
    alike = tiny_concepts("alike")
    shown = [picture_of(concept.views[0].sprite, "white", True, Random(0), world)[0] for concept in alike]
    features = torch.nn.functional.normalize(EfficientNet().features(as_tensor(np.stack(shown))), dim=1)
    cosines = (features @ features.T).numpy()
    groups, styles = (np.array([getattr(c, name) for c in alike]) for name in ("group", "style"))
    within = (groups[:, None] == groups) & ~np.eye(len(alike), dtype=bool)
    between = (groups[:, None] != groups) & (styles[:, None] == styles)
    for group in GROUPS:
        of_group = groups == group
        assert cosines[of_group][within[of_group]].mean() > cosines[of_group][between[of_group]].mean(), group
    assert cosines[within].mean() > cosines[between].mean() + 0.1


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
