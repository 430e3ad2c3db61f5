"""Several in a picture: who stands where, how rivals draw them, and what is counted."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import permutations
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch

from mos_bench.identity.concepts.tuning import ED_LORA, SHIPPED, TunedConcepts
from mos_bench.identity.drawing.models import untouched
from mos_bench.identity.storage.cache import Cache
from mos_bench.recognising import Recogniser
from mos_bench.several.judging import Judged, Row, gates, judged
from mos_bench.several.models import Models
from mos_bench.several.rivals.masked import masked
from mos_bench.several.rivals.mixed import blended, composite, switched
from mos_bench.several.run import Options, order, run_several
from mos_bench.several.scenes import ALONE, LAYOUTS, scenes, sentence
from mos_bench.several.ways import OWN_IN_REGIONS, SEVERAL_BY, WAYS, WAYS_ALONE, single
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import find_pictures
from mos_common.digests import modules_of
from mos_common.drawing import Drawing, draw_latents
from mos_common.edlora import attached
from mos_common.errors import RequestError
from mos_server.fusion.methods.gradient import GradientSettings

BRIEFLY = GradientSettings(steps=1, contexts=("V in the snow",), ordinary=("a dog",))
TWO, THREE, ONE_CLASS, OVERLAP = LAYOUTS
RIVALS = (masked, switched, composite, blended)


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory) -> TunedConcepts:
    return TunedConcepts(tiny, tmp_path_factory.mktemp("several"), tuned=SHIPPED)


@pytest.fixture(scope="module")
def concepts():
    return order()[:4]


@pytest.fixture(scope="module")
def models(tiny, tuned, concepts) -> Models:
    """Four concepts, and a fused model that is the base itself."""
    return Models(tiny, untouched(), {each.name: tuned.concept(each, ED_LORA) for each in concepts})


# Who stands where


def test_those_that_come_tuned_are_taken_first_and_everybody_once(tuned):
    taken = order()
    assert len(taken) == len(set(taken)) == 64
    assert all(tuned.path(each, ED_LORA).is_file() for each in taken[:16])
    assert {file.name.partition(".")[0] for file in SHIPPED.iterdir()} == {each.slug for each in taken[:16]}


@pytest.mark.parametrize("n", [14, 32])
@pytest.mark.parametrize("layout", [ALONE, *LAYOUTS], ids=lambda layout: layout.slug)
def test_in_every_round_everybody_stands_at_every_place_once_and_nobody_twice_in_a_picture(layout, n):
    of = order()[:n]
    size = len(layout.circle(of))
    asked = scenes(layout, of, 3 * size)
    for turn in range(3):
        of_round = asked[turn * size : (turn + 1) * size]
        for k in range(len(layout.spans)):
            assert len({each.concepts[k] for each in of_round}) == size
    assert all(len(set(each.concepts)) == len(layout.spans) for each in asked)
    assert [each.seed for each in asked] == list(range(3 * size))
    if layout.one_class:
        assert all(len({concept.class_word for concept in each.concepts}) == 1 for each in asked)
    if len(layout.spans) > 1 and size > 3:
        assert asked[0].concepts != asked[size].concepts, "in another round everybody meets others"


def test_too_few_concepts_for_a_picture_are_refused(concepts):
    with pytest.raises(RequestError, match=r"two: 1 of 1 concepts .* fuse more concepts"):
        scenes(TWO, concepts[:1], 1)


def test_the_part_of_a_region_is_square_and_around_its_middle():
    columns = torch.arange(128.0).expand(3, 64, 128)
    assert [TWO.part(columns, k)[0, 0, [0, -1]].tolist() for k in (0, 1)] == [[0, 63], [64, 127]]
    # 30 % of the picture is in both regions, whose middles are at 0.325 and 0.675
    (_, right), (left, _) = OVERLAP.spans
    assert right - left == pytest.approx(0.3)
    assert [OVERLAP.part(columns, k)[0, 0, [0, -1]].tolist() for k in (0, 1)] == [[10, 73], [54, 117]]
    three = torch.arange(192.0).expand(3, 64, 192)
    assert [THREE.part(three, k)[0, 0, 0].item() for k in range(3)] == [0, 64, 128]


def test_a_sentence_names_all_from_left_to_right():
    assert sentence(["<a>"], "in a room") == "<a> in a room"
    assert sentence(["<a>", "a cat"], "in a room") == "<a> on the left and a cat on the right in a room"
    assert sentence(["<a>", "<b>", "<c>"], "in a room") == "<a> and <b> and <c> in a room"


# Rivals


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.__name__)
def test_one_concept_over_the_whole_picture_is_drawn_as_by_its_own_model(models, concepts, rival):
    """`single` attaches ΔW to all weights and uses the product's own loop."""
    (asked,) = scenes(ALONE, concepts, 1)
    how = Drawing(steps=3)
    torch.testing.assert_close(rival(models, asked, how), single(models, asked, how), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.__name__)
def test_one_concept_without_guidance_is_drawn_as_by_its_own_model(models, concepts, rival):
    (asked,) = scenes(ALONE, concepts, 1)
    how = Drawing(steps=2, guidance=1.0)
    torch.testing.assert_close(rival(models, asked, how), single(models, asked, how), atol=1e-4, rtol=0)


def test_the_first_step_of_lora_composite_is_the_mean_of_the_single_models_steps(models, concepts):
    """One step of a deterministic sampler is linear in the prediction."""
    (asked,) = scenes(TWO, concepts, 1)
    latents = []
    for name in asked.names:
        with attached(models.base, models.changes(name)):
            latents.append(
                draw_latents(
                    models.base,
                    [asked.prompt],
                    [asked.seed],
                    vocabulary=models.words,
                    how=asked.sized(Drawing(steps=1)),
                )
            )
    expected = models.base.decode_latents(torch.stack(latents).mean(dim=0))[0]
    torch.testing.assert_close(composite(models, asked, Drawing(steps=1)), expected, atol=1e-4, rtol=0)


def test_lora_switch_begins_with_the_first_concept_alone(models, concepts):
    (asked,) = scenes(TWO, concepts, 1)
    with attached(models.base, models.changes(asked.names[0])):
        latents = draw_latents(
            models.base, [asked.prompt], [asked.seed], vocabulary=models.words, how=asked.sized(Drawing(steps=1))
        )
    expected = models.base.decode_latents(latents)[0]
    torch.testing.assert_close(switched(models, asked, Drawing(steps=1)), expected, atol=1e-4, rtol=0)


def test_a_step_blends_each_half_from_the_model_of_its_concept(models, concepts):
    """Cells of one region follow that concept's model as if it drew the whole picture."""
    (asked,) = scenes(TWO, concepts, 1)
    halves = []
    for k, (name, region) in enumerate(zip(asked.names, asked.regions, strict=True)):
        with attached(models.base, models.changes(name)):
            latents = draw_latents(
                models.base, [region.prompt], [asked.seed], vocabulary=models.words, how=asked.sized(Drawing(steps=1))
            )
        halves.append(latents.chunk(2, dim=3)[k])
    expected = models.base.decode_latents(torch.cat(halves, dim=3))[0]
    torch.testing.assert_close(blended(models, asked, Drawing(steps=1)), expected, atol=1e-4, rtol=0)


def test_masked_loras_with_nothing_changed_are_the_base_with_those_regions(tiny, concepts, models):
    """Without changes only words are left, and the product draws the same."""
    bare = {name: replace(concept, pairs={}) for name, concept in models.concepts.items()}
    nothing = Models(tiny, untouched(), bare)
    (asked,) = scenes(TWO, concepts, 1)
    how = Drawing(steps=2)
    product = OWN_IN_REGIONS.draw(nothing, asked, how)
    torch.testing.assert_close(masked(nothing, asked, how), product, atol=1e-4, rtol=0)


def test_a_rival_leaves_the_base_as_it_was(models, concepts):
    (asked,) = scenes(TWO, concepts, 1)
    before = {name: weight.clone() for name, weight in models.base.unet.state_dict().items()}
    for rival in RIVALS:
        rival(models, asked, Drawing(steps=1))
    after = models.base.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks for module in models.base.unet.modules())


def test_how_often_the_unet_is_run_in_a_step(models, concepts):
    """The page's table of costs says so."""
    (asked,) = scenes(THREE, concepts, 1)
    passes, counted = {}, [0]

    def count(*_: object) -> None:
        counted[0] += 1

    with models.base.unet.register_forward_hook(count):
        for way in WAYS:
            counted[0] = 0
            way.draw(models, asked, Drawing(steps=1))
            passes[way.title] = counted[0]
    several = {"LoRA Composite, one prompt": 3, "blended predictions, regions": 3}
    assert passes == {way.title: several.get(way.title, 1) for way in WAYS}


# Judging


def test_the_recogniser_knows_pictures_that_it_was_shown_and_held_back_ones(tiny, tuned, concepts):
    shown = Recogniser.of(tiny, {each.name: tuned.pictures(each) for each in concepts})
    for concept in concepts:
        pictures = load_pictures(find_pictures(tuned.pictures(concept)), tiny.picture_size)
        named = shown.names(tiny.decode_latents(tiny.encode_pictures(pictures)))
        assert named.count(concept.name) >= len(named) - 1


@pytest.mark.parametrize("size", [2, 3])
def test_the_best_assignment_is_that_of_trying_them_all(size):
    random = np.random.default_rng(0)
    known = ["<a>", "<b>", "<c>", "<d>", "<e>"]
    for _ in range(50):
        asked = [str(name) for name in random.permutation(known)[:size]]
        likeness = random.random((size, len(known)))
        best, total = (), -inf
        for order_ in permutations(range(size)):
            if (found := sum(likeness[k, known.index(asked[c])] for k, c in enumerate(order_))) > total:
                best, total = order_, found
        assert judged(asked, likeness, known).assigned == best


def test_recognised_collapsed_and_confused_of_made_up_likenesses():
    known = ["<a>", "<b>", "<c>"]

    def of(*parts: list[float]) -> Judged:
        return judged(["<a>", "<b>"], np.array(parts), known)

    as_asked, exchanged = of([0.9, 0.1, 0.2], [0.1, 0.9, 0.2]), of([0.1, 0.9, 0.2], [0.9, 0.1, 0.2])
    assert (as_asked.right, as_asked.collapsed, as_asked.confused) == ([True, True], False, False)
    assert (exchanged.right, exchanged.collapsed, exchanged.confused) == ([False, False], False, True)
    # <a> twice: the second part is more like <a> than like anybody, but the first even more so
    twice = of([0.9, 0.1, 0.2], [0.6, 0.5, 0.2])
    assert (twice.right, twice.collapsed, twice.confused) == ([True, False], True, False)
    # two strangers: nobody is recognised, and yet the two are not exchanged
    strangers = of([0.5, 0.4, 0.8], [0.4, 0.5, 0.8])
    assert (strangers.right, strangers.collapsed, strangers.confused) == ([False, False], True, False)


def pictures(*rights: tuple[bool, ...]) -> tuple[Judged, ...]:
    names = ("<a>", "<b>", "<c>")
    return tuple(
        Judged(
            names[: len(r)], tuple(n if ok else "<x>" for n, ok in zip(names, r, strict=False)), tuple(range(len(r)))
        )
        for r in rights
    )


def test_a_row_counts_subjects_and_pictures_with_wilsons_interval():
    row = Row("two", "fused", pictures((True, True), (True, False), (True, True), (False, False)))
    assert (row.recognised.mean, row.recognised.concepts) == (5 / 8, 8)
    assert (row.all_in.mean, row.all_in.concepts) == (0.5, 4)
    # Wilson's: (p + z²/2n ± z·sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n), with p = 1/2 and n = 4
    z, n = 1.959964, 4
    half = z * (0.25 / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
    assert (row.all_in.low, row.all_in.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)


def test_goals_are_shares_of_what_the_same_concepts_reach_alone():
    """Alone <a> is recognised always and <b> in half; <x>, who is in no picture, never."""
    alone = Row("one alone", "its own model", (
        *(Judged(("<a>",), ("<a>",), (0,)) for _ in range(2)),
        Judged(("<b>",), ("<b>",), (0,)),
        Judged(("<b>",), ("<a>",), (0,)),
        *(Judged(("<x>",), ("<a>",), (0,)) for _ in range(9)),
    ))  # fmt: skip
    own = Row("two", "own, regions", pictures((True, True), (True, False), (True, True), (True, False)))
    worse = Row("two", "fused, regions", pictures((True, True), (False, False)))
    each, both = gates(alone, own, [worse, worse])
    assert (each.needed, each.reached.mean, each.verdict) == (pytest.approx(0.95 * 0.75), 0.75, "reached")
    assert (both.needed, both.reached.mean, both.verdict) == (pytest.approx(0.9 * 0.75**2), 0.5, "missed")
    assert (each.by_fused.mean, both.by_fused.mean) == (0.5, 0.5)


# The command


def test_every_way_of_every_layout_is_drawn_once_judged_and_published(monkeypatch, tmp_path: Path):
    """Briefly: three concepts, two pictures, one step. A second run draws nothing."""
    options = Options(
        tmp_path, counts=(3,), only=("overlap",), pictures=2, steps=1, docs=tmp_path / "docs", settings=BRIEFLY
    )
    rows = run_several(options)[3]
    ways = [(ALONE.title, way.title) for way in WAYS_ALONE]
    ways += [(OVERLAP.title, way.title) for way in WAYS]
    assert [(row.layout, row.way) for row in rows] == ways
    assert all(len(row.pictures) == 2 for row in rows)
    table = (tmp_path / "docs/several.md").read_text()
    assert all(row.way in table for row in rows)
    assert table.count("reached |") + table.count("missed |") == 2
    lines = list(csv.DictReader((tmp_path / "docs/several.csv").read_text().splitlines()))
    assert [(line["n"], line["in one picture"], line["drawn by"]) for line in lines] == [("3", *way) for way in ways]
    last = rows[-1].confused
    found = [float(lines[-1][f"confusion{end}"]) for end in ("", " low", " high")]
    assert found == pytest.approx([last.mean, last.low, last.high], abs=1e-5)
    assert len(list((tmp_path / "results").glob("sheet-3-*.png"))) == 2
    monkeypatch.setattr(Cache, "put", lambda *_: pytest.fail("something is drawn again"))
    assert run_several(options)[3] == rows


def test_unknown_layouts_and_numbers_are_refused(tmp_path: Path):
    with pytest.raises(RequestError, match=r"--only four: .* known: two, three, one-class, overlap"):
        Options(tmp_path, only=("four",))
    with pytest.raises(RequestError, match="--n 65: expected at most 64"):
        run_several(Options(tmp_path, counts=(65,)))


def test_pictures_are_drawn_again_when_a_way_to_draw_changes():
    decide = {"mos_bench.several.models", "mos_bench.several.scenes", "mos_bench.several.ways"}
    assert decide | {*modules_of("mos_bench.several.rivals"), *modules_of("mos_common.own")} <= set(SEVERAL_BY)
