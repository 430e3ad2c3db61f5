"""Everything is drawn and fused once, and scores say what was drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import mos_bench.identity.drawing.requests as drawings
import mos_bench.identity.measuring.multi as multi
from mos_bench.identity.concepts.tuning import ED_LORA
from mos_bench.identity.drawing.models import single, untouched, with_own, words_only
from mos_bench.identity.drawing.protocol import Protocol
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.curve import measure_curve, sets_of
from mos_bench.identity.measuring.layer_groups import alone
from mos_bench.identity.measuring.methods import AVERAGE, SUM_TUNED, Method
from mos_bench.identity.options import Options
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import find_pictures
from mos_common.base_model import load_base
from mos_common.drawing import Drawing, draw
from mos_common.errors import RequestError
from mos_common.layers import Group
from mos_common.own.attach import attached_with_own

PROTOCOL = Protocol(prompts=1, seeds=1, probed=2, how=Drawing(steps=1))


SUM = Method("sum-tuned", SUM_TUNED.settings, (0.3, 0.6))


def test_a_second_run_draws_nothing_and_returns_the_same_scores(open_bench, drawn):
    methods = [AVERAGE, SUM]
    first = measure_curve(open_bench(), "test", [2], methods, [4])
    once = drawn.total()
    again = measure_curve(open_bench(), "test", [2], methods, [4])
    assert once > 0 and drawn.total() == once
    for one, other in zip(first.cases, again.cases, strict=True):
        np.testing.assert_array_equal(one.matrix("image_alignment"), other.matrix("image_alignment"))
        np.testing.assert_array_equal(one.drift, other.drift)
    assert first.chosen == again.chosen


def test_disjoint_sets_are_fused_separately_and_pooled(open_bench):
    """Two models of one concept each: both are scored, and averaging one loses nothing."""
    curve = measure_curve(open_bench(), "test", [1, 2], [AVERAGE, SUM], [4], disjoint=True)
    alone, together = curve.case(1, "average"), curve.case(2, "average")
    assert alone.about["sets"] == 2 and together.about["sets"] == 1
    assert set(alone.scores) == set(together.scores) and len(alone.scores) == 2
    np.testing.assert_allclose(  # to rounding: the pair of one is factored anew
        alone.matrix("image_alignment"), curve.singles[4].restricted(alone).matrix("image_alignment"), atol=1e-3
    )
    assert alone.drift.shape == together.drift.shape
    assert [list(one) for one in sets_of(range(7), 3, disjoint=True)] == [[0, 1, 2], [3, 4, 5]]
    assert [list(one) for one in sets_of(range(7), 3, disjoint=False)] == [[0, 1, 2]]


def test_a_killed_run_continues_from_the_drawings_it_had(open_bench, drawn, monkeypatch):
    model, counting = untouched(), drawings.draw
    bench = open_bench()
    wanted = [
        request for concept in bench.concepts for request in bench.drawings.requests(model, concept, of_class=True)
    ]
    wanted += bench.drawings.unrelated(model)
    calls = []

    def killed(*arguments, **others):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return counting(*arguments, **others)

    monkeypatch.setattr(drawings, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        bench.drawings.draw(wanted, "half")
    before = drawn.total()
    monkeypatch.setattr(drawings, "draw", counting)
    again = open_bench()
    again.drawings.draw(wanted, "the rest")
    assert 0 < before < drawn.total() == len({request.key for request in wanted})


def test_the_untouched_base_does_not_drift_and_a_changed_one_does(open_bench, tiny):
    bench = open_bench()
    concept = bench.half("test")[0]
    changed = single(tiny, bench.tuned.concept(concept, ED_LORA))
    bench.drawings.draw([*bench.drawings.unrelated(untouched()), *bench.drawings.unrelated(changed)], "ordinary")
    assert bench.scoring.drift(untouched()).max() < 1e-5
    assert bench.scoring.drift(changed).mean() > 1e-4


def test_words_alone_do_not_change_drawings_of_ordinary_prompts(open_bench, tiny):
    """They are even the same drawings: nothing of the concept is in what made them."""
    bench = open_bench()
    with_words = words_only(tiny, bench.tuned.concept(bench.half("test")[0], ED_LORA))
    assert [r.key for r in bench.drawings.unrelated(with_words)] == [
        r.key for r in bench.drawings.unrelated(untouched())
    ]


def test_identical_drawings_have_no_diversity(open_bench, monkeypatch):
    bench = open_bench(replace(PROTOCOL, seeds=3))
    concept = bench.half("test")[0]

    def same(base, prompts, seeds, **others):
        return torch.full((len(prompts), 3, 64, others["how"].width or 64), 0.25)

    monkeypatch.setattr(drawings, "draw", same)
    model = untouched()
    bench.drawings.draw(bench.drawings.requests(model, concept, of_class=True), "the same")
    assert bench.scoring.scores(model, concept, of_class=True).diversity == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("shown", "each", "all_of_them"), [((0, 1), 1.0, 1.0), ((0, 0), 0.5, 0.0), ((1, 0), 0.0, 0.0)])
def test_a_picture_of_two_concepts_is_right_only_with_each_in_its_own_half(
    open_bench, tiny, monkeypatch, shown, each, all_of_them
):
    bench = open_bench()
    two = bench.half("test")
    real = [
        tiny.decode_latents(tiny.encode_pictures(load_pictures(find_pictures(bench.tuned.pictures(c))[:1], 64)))[0]
        for c in two
    ]
    side_by_side = torch.cat([real[i] for i in shown], dim=2)
    monkeypatch.setattr(drawings, "draw", lambda base, prompts, seeds, **others: side_by_side[None])
    (scene,) = multi.scenes_of(two, 2)
    case = multi.scene_case(bench, untouched(), [scene], multi.CLASSES, "two")
    assert case.figure("identity_accuracy").mean == each
    assert case.figure("all_recognised").mean == all_of_them


def test_a_fused_model_with_all_groups_of_one_concept_draws_that_concept(open_bench, tiny):
    """Groups are exchanged one after the other; each group alone leaves only its changes."""
    bench = open_bench()
    concepts = bench.half("test")
    own = bench.tuned.concept(concepts[0], ED_LORA)
    spec = bench.spec(concepts, ED_LORA, AVERAGE)
    bench.fuse_all([spec], "two")
    fused = mixed = bench.fused.model(spec)
    for group in Group:
        mixed = with_own(tiny, mixed, own, group)
    models = {"fused": fused, "mixed": mixed, "single": single(tiny, own)}
    requests = {name: bench.drawings.requests(model, concepts[0]) for name, model in models.items()}
    bench.drawings.draw([request for of_model in requests.values() for request in of_model], "three")
    pictures = {name: torch.stack([bench.cache.picture(r.key) for r in rs[:1]]) for name, rs in requests.items()}
    assert torch.equal(pictures["mixed"], pictures["single"])
    assert not torch.equal(pictures["fused"], pictures["single"])
    apart = [set(alone(tiny, fused, group).changes()) for group in Group]
    assert set().union(*apart) == set(fused.changes()) and sum(map(len, apart)) == len(fused.changes())


def test_own_is_drawn_as_the_product_draws_a_concept_with_its_own_changes_beside(open_bench, tiny):
    """By the product's own changes, and by one set of changes made for this concept."""
    bench = open_bench()
    concepts = bench.half("test")
    ordinary, models = bench.models_of(concepts, ED_LORA, Method("own", AVERAGE.settings, own=True))
    fused = bench.fused.model(bench.spec(concepts, ED_LORA, AVERAGE))
    tuned = {concept.name: bench.tuned.concept(concept, ED_LORA) for concept in concepts}
    for concept in concepts:
        requests = bench.drawings.requests(models[concept.name], concept)[:1]
        bench.drawings.draw(requests, "own")
        with attached_with_own(tiny, fused.changes(), {name: one.pairs for name, one in tuned.items()}) as own:
            (expected,) = draw(
                tiny,
                [requests[0].prompt],
                [requests[0].seed],
                vocabulary=fused.vocabulary,
                how=requests[0].how,
                own=own,
            )
        torch.testing.assert_close(bench.cache.picture(requests[0].key), expected, atol=2 / 255, rtol=0)
    assert [r.key for r in bench.drawings.unrelated(ordinary)] == [r.key for r in bench.drawings.unrelated(untouched())]


def test_drawings_of_different_models_prompts_or_scales_have_different_keys(open_bench, tiny):
    bench = open_bench()
    first, second = bench.half("test")
    one, other = (single(tiny, bench.tuned.concept(c, ED_LORA)) for c in (first, second))
    keys = {r.key for model, c in ((one, first), (other, second)) for r in bench.drawings.requests(model, c)}
    keys |= {r.key for r in bench.drawings.requests(untouched(), first, of_class=True)}
    keys |= {r.key for r in bench.drawings.requests(replace(one, scale=0.5), first)}
    assert len(keys) == 4 * 4


def test_counts_beyond_the_number_of_concepts_are_reported_and_left_out(open_bench, capsys):
    bench = open_bench()
    assert bench.counts_in("test", (1, 2, 14)) == [1, 2]
    assert "n = 14 left out: test has 2 concepts" in capsys.readouterr().out
    with pytest.raises(RequestError, match="test has 2 concepts"):
        bench.counts_in("test", (14, 40))
    with pytest.raises(RequestError, match="--ranks 2: choose from 4, 1"):
        Options(bench.fused.folder, ranks=(4, 2))


def test_results_of_another_number_format_are_kept_apart(open_bench, tmp_path):
    bench, base = open_bench(), load_base("tiny", dtype="bfloat16")
    half = Bench.on(base, tmp_path / "out", PROTOCOL, scorer=bench.scoring.scorer, concepts=bench.concepts)
    half.cache.close()
    assert half.fused.folder != bench.fused.folder and half.fused.folder.parent == bench.fused.folder.parent
