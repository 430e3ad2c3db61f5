"""Gradient fusion from end to end, against a dense implementation that stores every activation."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch

from mos_common.concept_file import content_digest
from mos_common.edlora import LowRank
from mos_common.errors import RequestError
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.gradient import GradientSettings
from reference import dense
from reference.small_fusion import SETTINGS, assert_bit_equal, energy_kept, relative

TEXT_ONLY = Group.TEXT, Group.CROSS


def mean_square(rows: torch.Tensor) -> float:
    return float(rows.square().sum()) / len(rows)


def dense_rows(base, group, named, settings, fused_text) -> dense.Rows:
    """What a concept (None: ordinary prompts) feeds a group, by the reference."""
    concept = named.concept if named else None
    changes = dense.dense(concept) if concept else {}
    if concept and group is Group.CROSS and settings.text_inputs == "fused":
        changes = {name: pair.change(torch.float64) for name, pair in fused_text.items()}
    return dense.rows_of(
        base,
        group,
        concept,
        settings.contexts if concept else settings.ordinary,
        changes,
        kind=settings.rows,
        steps=settings.steps,
        guidance=settings.guidance,
        first_seed=int(content_digest(concept)[:12], 16) if concept else 0,
    )


# Bounds on the change, by the number format of the model: activations carry the rounding errors of
# the forward passes, and a published change is float32. The bound on survivals is wider, since they
# are differences of nearly equal numbers.
CHANGE = {torch.float64: 1e-6, torch.float32: 1e-5}
SURVIVAL = 1e-4


def in_float64(base):
    """The same base with float64 weights."""
    parts = {name: copy.deepcopy(getattr(base, name)).double() for name in ("unet", "text_encoder", "vae")}
    return replace(base, **parts)


def compare_with_dense(base, concepts, settings, groups=tuple(Group)) -> None:
    """Every layer of every group is the least-squares solution over stored rows.

    Every survival is what those rows say.
    """
    fused = fuse(base, concepts, settings)
    text = {name: pair for name, pair in fused.changes.items() if name.startswith("text_encoder.")}
    survivals = {concept.token: concept.survival for concept in fused.manifest.concepts}
    for group in groups:
        rows = {named.token: dense_rows(base, group, named, settings, text) for named in concepts}
        ordinary = dense_rows(base, group, None, settings, text)
        own = {named.token: dense.dense(named.concept) for named in concepts}
        rest, energy = Counter(), Counter()
        for layer in (layer for layer in base.layout.attention if layer.group is group):
            nothing = torch.zeros(layer.d_out, layer.d_in, dtype=torch.float64)
            wanted = {token: changes.get(layer.name, nothing) for token, changes in own.items()}
            X = {token: kept[layer.name] for token, kept in rows.items()}
            expected = dense.solve(
                list(X.values()),
                list(wanted.values()),
                ordinary[layer.name],
                ridge=settings.ridge,
                preserve=len(concepts) * settings.preserve,
            )
            change = fused.changes[layer.name].change(torch.float64)
            assert relative(change, expected) < CHANGE[base.dtype], layer.name
            for token, stored in X.items():
                if layer.name in own[token]:
                    left, whole = (mean_square(stored @ by.T) for by in (change - wanted[token], wanted[token]))
                    assert survivals[token][group.name.lower()].residual[layer.name] == pytest.approx(
                        left, rel=SURVIVAL, abs=1e-12 * whole
                    )
                    rest[token] += left
                    energy[token] += whole
        for token in rest:
            kept = 1 - rest[token] / energy[token]
            assert survivals[token][group.name.lower()].energy_kept == pytest.approx(kept, abs=SURVIVAL)


@pytest.mark.parametrize("dtype", CHANGE, ids=["float64", "float32"])
def test_every_layer_is_the_dense_solution(base, make_concept, dtype):
    """Text encoder, keys and values, the rest of the UNet, on `tiny` and on a base of 16 layers.

    Three concepts of different kinds. One has no words and changes only some layers, as an
    imported LoRA does.
    """
    base = in_float64(base) if dtype is torch.float64 else base
    plain = make_concept(base, "<hat>", seed=7, words=0, class_word="cat", rank=1)
    some = {layer.name for layer in base.layout.attention[::3]}
    plain = replace(plain, pairs={name: pair for name, pair in plain.pairs.items() if name in some})
    concepts = [
        NamedConcept("alice", make_concept(base, "<cat>", seed=1, rank=2)),
        NamedConcept("bob", make_concept(base, "<dog>", seed=2, rank=3, words=1)),
        NamedConcept("carol", plain),
    ]
    compare_with_dense(base, concepts, SETTINGS)


@pytest.mark.parametrize("rows", ["words", "text", "all"])
@pytest.mark.parametrize("text_inputs", ["own", "fused"])
def test_text_rows_and_text_inputs_are_those_that_were_asked_for(tiny, three, rows, text_inputs):
    settings = replace(SETTINGS, rows=rows, text_inputs=text_inputs, steps=1)
    compare_with_dense(in_float64(tiny), three[:2], settings, TEXT_ONLY)


def test_one_concept_comes_back_unchanged_on_everything_it_reads(tiny, three):
    """Without a preserve term and with hardly a ridge, fusing one concept loses nothing."""
    fused = fuse(tiny, three[:1], replace(SETTINGS, ridge=1e-5, preserve=0.0))
    (concept,) = fused.manifest.concepts
    for group, survival in concept.survival.items():
        assert survival.energy_kept > 0.999, group


@pytest.mark.parametrize("sharpen", [1.0, 3.0])
def test_the_rank_is_at_most_the_sum_of_the_ranks(tiny, three, kept_moments, sharpen):
    fused = fuse(tiny, three, replace(SETTINGS, sharpen=sharpen), moments_dir=kept_moments)
    assert max(pair.rank for pair in fused.changes.values()) == 1 + 2 + 3


def test_sharpening_is_linear_and_leaves_the_mean_alone(tiny, three, kept_moments):
    """Δ(s) = Δ(0) + s (Δ(1) - Δ(0)), in keys and values, whose inputs do not depend on their s."""

    def changes(s: float) -> dict[str, torch.Tensor]:
        fused = fuse(tiny, three, replace(SETTINGS, sharpen=(1.0, s, 1.0)), moments_dir=kept_moments)
        return {it.name: fused.changes[it.name].change(torch.float64) for it in tiny.layout.by_group[Group.CROSS]}

    common, plain, sharp = changes(0.0), changes(1.0), changes(4.0)
    for name, change in sharp.items():
        assert relative(change, common[name] + 4 * (plain[name] - common[name])) < 1e-5, name
        assert relative(plain[name], common[name]) > 1e-3


def test_a_concept_alone_is_its_own_mean(tiny, three, kept_moments):
    plain, sharp = (
        fuse(tiny, three[:1], replace(SETTINGS, sharpen=s), moments_dir=kept_moments).changes for s in (1.0, 5.0)
    )
    for name, pair in plain.items():
        assert relative(sharp[name].change(), pair.change()) < 1e-6, name


def test_what_concepts_do_to_each_other_is_judged_without_sharpening(tiny, three, kept_moments):
    plain, sharp = (
        fuse(tiny, three, replace(SETTINGS, sharpen=(1.0, s, s)), moments_dir=kept_moments).manifest.influence
        for s in (1.0, 5.0)
    )
    assert sharp == plain


@pytest.mark.parametrize(
    ("setting", "value", "changed"),
    [
        ("ridge", 0.5, set(Group)),
        ("ridge_kind", "diagonal", set(Group)),
        ("preserve", 5.0, set(Group)),
        ("ridge", (0.01, 0.01, 0.5), {Group.SPATIAL}),
        ("preserve", (0.2, 5.0, 0.2), {Group.CROSS}),
        ("sharpen", 3.0, set(Group)),
        ("sharpen", (1.0, 3.0, 1.0), {Group.CROSS}),
        ("sharpen", (3.0, 1.0, 1.0), {Group.TEXT, Group.CROSS}),  # keys read the fused text encoder
        ("ordinary", ("a house",), set(Group)),
        ("contexts", ("V at night",), set(Group)),
        ("rows", "words", {Group.TEXT, Group.CROSS}),
        ("rows", "1,1,0.1", {Group.TEXT, Group.CROSS}),
        ("rows", "graded", {Group.TEXT, Group.CROSS}),
        ("towards", 0.5, set(Group)),
        ("text_inputs", "own", {Group.CROSS}),
        ("unet_inputs", "fused", {Group.SPATIAL}),
        ("unconditional", True, set(Group)),
        ("cap", 1e-3, set(Group)),
        ("steps", 3, {Group.SPATIAL}),
        ("guidance", 1.0, {Group.SPATIAL}),
        ("batch", 1, set()),
    ],
)
def test_every_setting_has_its_effect_and_no_other(tiny, three, kept_moments, setting, value, changed):
    """Also out of one folder of kept moments: none are mistaken for those of other settings."""
    before = fuse(tiny, three[:2], SETTINGS, moments_dir=kept_moments)
    after = fuse(tiny, three[:2], replace(SETTINGS, **{setting: value}), moments_dir=kept_moments)
    for group in Group:
        names = [layer.name for layer in tiny.layout.attention if layer.group is group]
        difference = max(relative(after.changes[n].change(), before.changes[n].change()) for n in names)
        assert (difference > 1e-3) == (group in changed), (group, difference)


@pytest.fixture(scope="module")
def kept_moments(tmp_path_factory):
    return tmp_path_factory.mktemp("moments")


@pytest.fixture(scope="module")
def peaceful(tiny, three):
    """Three concepts, fused once."""
    return fuse(tiny, three, SETTINGS)


def test_without_guidance_of_its_own_it_is_the_base_s(tiny, three):
    own = fuse(tiny, three[:1], replace(SETTINGS, guidance=None))
    assert_bit_equal(own, fuse(tiny, three[:1], replace(SETTINGS, guidance=tiny.preset.guidance)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"ridge": 0.0},
        {"ridge": -1.0},
        {"ridge": float("nan")},
        {"preserve": -0.1},
        {"towards": 2.0},
        {"cap": 0.0},
        {"ridge": (0.1, 0.0, 0.1)},
        {"preserve": (1.0, -1.0, 1.0)},
        {"sharpen": -1.0},
        {"sharpen": (1.0, 1.0, 1000.0)},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(RequestError):
        GradientSettings(**wrong)


@pytest.mark.parametrize("what", ["changes", "words"])
def test_a_huge_concept_does_not_drown_the_others(tiny, three, peaceful, what):
    """Changes a thousand times too large, or words that blow activations up.

    With the cap, the others keep what they kept without it.
    """
    hostile = three[2].concept
    if what == "changes":
        pairs = {name: LowRank(pair.A, pair.B, 1000 * pair.alpha) for name, pair in hostile.pairs.items()}
        hostile = replace(hostile, pairs=pairs)
    else:
        hostile = replace(hostile, words=[1e4 * hostile.words[0]])
    attacked = [*three[:2], NamedConcept("carol", hostile)]
    with_cap, without = (fuse(tiny, attacked, replace(SETTINGS, cap=cap)) for cap in (4.0, 1e30))
    for token in ("<alice/cat>", "<bob/dog>"):
        assert energy_kept(with_cap, token) > energy_kept(peaceful, token) - 0.1
        if what == "changes":
            assert energy_kept(without, token) < energy_kept(peaceful, token) - 1


def test_the_cap_leaves_ordinary_concepts_alone(tiny, three, peaceful):
    assert_bit_equal(peaceful, fuse(tiny, three, replace(SETTINGS, cap=GradientSettings.cap)))


def test_drift_is_what_ordinary_prompts_say(tiny, peaceful):
    """Energy that fusion adds over energy that the layers write, over stored ordinary rows."""
    for group in Group:
        rows = dense_rows(tiny, group, None, SETTINGS, {})
        layers = [layer for layer in tiny.layout.attention if layer.group is group]
        moved = sum(mean_square(rows[it.name] @ peaceful.changes[it.name].change(torch.float64).T) for it in layers)
        whole = sum(mean_square(rows[it.name] @ it.module.weight.double().T) for it in layers)
        assert peaceful.manifest.drift[group.name.lower()] == pytest.approx(moved / whole, rel=1e-3)


def test_preserving_more_drifts_less(tiny, three, tmp_path):
    drifts = [
        sum(fuse(tiny, three, replace(SETTINGS, preserve=it), moments_dir=tmp_path).manifest.drift.values())
        for it in (0.0, 0.5, 5.0)
    ]
    assert drifts == sorted(drifts, reverse=True)


def test_layers_beyond_the_attention_are_fused_too(tiny, three, tmp_path):
    """An imported concept changes a feed-forward and a 1x1 convolution.

    Alone on them, it keeps them; others' moments are made whole.
    """
    fuse(tiny, three[:2], SETTINGS, moments_dir=tmp_path)
    known = {layer.name for layer in tiny.layout.attention}
    extra = [it for it in tiny.layout.layers if it.name not in known and it.name.endswith(("mlp.fc1", "proj_in"))]
    assert {it.group for it in extra} == {Group.TEXT, Group.SPATIAL}
    pairs = {it.name: LowRank(0.1 * torch.randn(2, it.d_in), 0.1 * torch.randn(it.d_out, 2), 2.0) for it in extra}
    imported = NamedConcept("dan", replace(three[2].concept, pairs=pairs, name="<lora>"))
    fused = fuse(tiny, [*three[:2], imported], SETTINGS, moments_dir=tmp_path)
    assert pairs.keys() <= fused.changes.keys()
    assert_bit_equal(fused, fuse(tiny, [*three[:2], imported], SETTINGS))
    alone = fuse(tiny, [imported], replace(SETTINGS, preserve=0.0, ridge=1e-6))
    assert energy_kept(alone, "<dan/lora>") > 0.999
