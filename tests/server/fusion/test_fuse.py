"""Fusion from end to end, against a dense implementation that stores every activation; joining, leaving, settings, errors."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mos_common.concept_file import content_digest
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError, FusionError, RequestError
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group, adaptable_layers, concept_layers
from mos_server.fusion import statistics
from mos_server.fusion.fuse import fuse
from mos_server.fusion.settings import FusionSettings
from mos_server.models.publish import write_fused
from reference import dense

SETTINGS = FusionSettings(
    ridge=1e-2,
    ridge_kind="trace",
    towards=0.0,
    preserve=0.2,
    rows="all",
    text_inputs="fused",
    contexts=("V", "photo of a V"),
    ordinary=("", "a tree"),
    steps=2,
    guidance=3.0,
    batch=2,
    cap=1e30,  # none: the equation alone
)
TEXT_ONLY = Group.TEXT, Group.CROSS


@pytest.fixture
def three(tiny, make_concept) -> list[NamedConcept]:
    """Three participants' concepts of different ranks."""
    return [
        NamedConcept(who, make_concept(tiny, name, seed=seed, rank=seed + 1, class_word=name[1:-1]))
        for seed, (who, name) in enumerate((("alice", "<cat>"), ("bob", "<dog>"), ("carol", "<tree>")))
    ]


def contents(fused) -> dict[str, torch.Tensor]:
    """Everything in a fused model, to compare to the bit."""
    halves = {f"{name}.{half}": getattr(pair, half) for name, pair in fused.changes.items() for half in "AB"}
    return halves | dict(fused.vocabulary)


def assert_bit_equal(one, other) -> None:
    ours, theirs = contents(one), contents(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def relative(change: torch.Tensor, expected: torch.Tensor) -> float:
    return float((change - expected).norm() / expected.norm())


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


def compare_with_dense(base, concepts, settings, groups=tuple(Group)) -> None:
    """Every layer of every group is the least-squares solution over stored rows, and every survival is what those rows say."""
    fused = fuse(base, concepts, settings)
    text = {name: pair for name, pair in fused.changes.items() if name.startswith("text_encoder.")}
    told = {concept.token: concept.survival for concept in fused.manifest.concepts}
    for group in groups:
        rows = {named.token: dense_rows(base, group, named, settings, text) for named in concepts}
        ordinary = dense_rows(base, group, None, settings, text)
        own = {named.token: dense.dense(named.concept) for named in concepts}
        rest, energy = Counter(), Counter()
        for layer in (layer for layer in concept_layers(base) if layer.group is group):
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
            assert relative(change, expected) < 1e-3, layer.name
            for token, stored in X.items():
                if layer.name in own[token]:
                    left, whole = (mean_square(stored @ by.T) for by in (change - wanted[token], wanted[token]))
                    assert told[token][group.name.lower()].residual[layer.name] == pytest.approx(left, rel=1e-2)
                    rest[token] += left
                    energy[token] += whole
        for token in rest:
            kept = 1 - rest[token] / energy[token]
            assert told[token][group.name.lower()].energy_kept == pytest.approx(kept, abs=1e-3)


def test_every_layer_is_the_dense_solution(base, make_concept):
    """Text encoder, keys and values, the rest of the UNet: on `tiny` and on 16 layers, three concepts of different kinds.

    One of them has no words and changes only some layers, as an imported LoRA does.
    """
    plain = make_concept(base, "<hat>", seed=7, words=0, class_word="cat", rank=1)
    some = {layer.name for layer in concept_layers(base)[::3]}
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
    compare_with_dense(tiny, three[:2], settings, TEXT_ONLY)


def test_one_concept_comes_back_unchanged_on_everything_it_reads(tiny, three):
    """Without a preserve term and with hardly a ridge, fusing one concept loses nothing."""
    fused = fuse(tiny, three[:1], replace(SETTINGS, ridge=1e-5, preserve=0.0))
    (concept,) = fused.manifest.concepts
    for group, survival in concept.survival.items():
        assert survival.energy_kept > 0.999, group


def test_the_rank_is_at_most_the_sum_of_the_ranks(tiny, three):
    fused = fuse(tiny, three, SETTINGS)
    assert max(pair.rank for pair in fused.changes.values()) == 1 + 2 + 3


def test_words_are_kept_under_the_tokens_of_their_participants(tiny, three):
    fused = fuse(tiny, three, SETTINGS)
    assert sorted(fused.vocabulary) == ["<alice/cat>", "<bob/dog>", "<carol/tree>"]
    assert torch.equal(fused.vocabulary["<bob/dog>"], three[1].concept.words[0])


def test_the_base_is_left_as_it_was(tiny, three):
    before = {layer.name: layer.module.weight.clone() for layer in concept_layers(tiny)}
    fuse(tiny, three[:2], SETTINGS)
    assert all(torch.equal(layer.module.weight, before[layer.name]) for layer in concept_layers(tiny))


# -- joining and leaving ------------------------------------------------------------------------------------------------


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


def test_a_concept_that_leaves_has_never_been_there(tiny, three, tmp_path, recordings):
    """Fusing who remains from kept moments is, to the bit, fusing them from scratch; none of them is sampled again."""
    fuse(tiny, three, SETTINGS, moments_dir=tmp_path)
    recordings.clear()
    remaining = fuse(tiny, [three[0], three[2]], SETTINGS, moments_dir=tmp_path)
    assert set(recordings) == {Group.CROSS}
    from_scratch = fuse(tiny, [three[0], three[2]], SETTINGS)
    assert_bit_equal(remaining, from_scratch)
    assert remaining.manifest == from_scratch.manifest


def test_a_concept_that_joins_is_the_only_one_sampled(tiny, three, tmp_path, recordings):
    """Keys and values read the fused text encoder, which a join changes: they are recorded again, in one cheap text pass each."""
    fuse(tiny, three[:2], SETTINGS, moments_dir=tmp_path)
    recordings.clear()
    joined = fuse(tiny, three, SETTINGS, moments_dir=tmp_path)
    assert recordings == {Group.TEXT: 1, Group.SPATIAL: 1, Group.CROSS: 3}
    assert_bit_equal(joined, fuse(tiny, three, SETTINGS))


def test_with_own_text_inputs_a_join_records_the_new_concept_only(tiny, three, tmp_path, recordings):
    settings = replace(SETTINGS, text_inputs="own")
    fuse(tiny, three[:2], settings, moments_dir=tmp_path)
    recordings.clear()
    fuse(tiny, three, settings, moments_dir=tmp_path)
    assert recordings == dict.fromkeys(Group, 1)


def test_the_order_of_the_concepts_does_not_matter_to_the_bit(tiny, three):
    one, other = fuse(tiny, three, SETTINGS), fuse(tiny, three[::-1], SETTINGS)
    assert_bit_equal(one, other)
    assert one.manifest == other.manifest


def test_fusing_again_records_nothing_and_changes_nothing(tiny, three, tmp_path, recordings):
    first = fuse(tiny, three, SETTINGS, moments_dir=tmp_path)
    recordings.clear()
    assert_bit_equal(fuse(tiny, three, SETTINGS, moments_dir=tmp_path), first)
    assert not recordings


def test_damaged_moments_are_recorded_again(tiny, three, tmp_path):
    first = fuse(tiny, three[:2], SETTINGS, moments_dir=tmp_path)
    for kept in tmp_path.iterdir():
        kept.write_bytes(kept.read_bytes()[:100])
    assert_bit_equal(fuse(tiny, three[:2], SETTINGS, moments_dir=tmp_path), first)


def test_kept_moments_carry_the_digest_of_their_concept(tiny, three, tmp_path):
    """So whoever withdraws can have them erased."""
    fuse(tiny, three[:2], SETTINGS, moments_dir=tmp_path)
    owners = Counter(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert owners == {**{content_digest(named.concept): 3 for named in three[:2]}, "ordinary": 3}


def test_a_licence_or_a_new_name_needs_no_new_recording(tiny, three, tmp_path, recordings):
    fuse(tiny, three, SETTINGS, moments_dir=tmp_path)
    recordings.clear()
    edited = replace(three[0].concept, licence="CC0", name="<my-cat>")
    fuse(tiny, [NamedConcept("alice", edited), *three[1:]], SETTINGS, moments_dir=tmp_path)
    assert not recordings


@pytest.mark.parametrize("what", ["alpha", "class word"])
def test_what_changes_the_recording_is_recorded_anew(tiny, make_concept, tmp_path, what):
    """The same tensors with another alpha, or, without words of its own, another class word, are not the same concept."""
    one = make_concept(tiny, "<cat>", words=0)
    other = replace(one, class_word="house")
    if what == "alpha":
        other = replace(one, pairs={name: LowRank(p.A, p.B, 3 * p.alpha) for name, p in one.pairs.items()})
    fuse(tiny, [NamedConcept("", one)], SETTINGS, moments_dir=tmp_path)
    kept = fuse(tiny, [NamedConcept("", other)], SETTINGS, moments_dir=tmp_path)
    assert_bit_equal(kept, fuse(tiny, [NamedConcept("", other)], SETTINGS))


# -- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "changed"),
    [
        ("ridge", 0.5, set(Group)),
        ("ridge_kind", "diagonal", set(Group)),
        ("preserve", 5.0, set(Group)),
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
        ("sum_weight", 0.1, set()),
    ],
)
def test_every_setting_has_its_effect_and_no_other(tiny, three, kept_moments, setting, value, changed):
    """Also out of one folder of kept moments: none are mistaken for those of other settings."""
    before = fuse(tiny, three[:2], SETTINGS, moments_dir=kept_moments)
    after = fuse(tiny, three[:2], replace(SETTINGS, **{setting: value}), moments_dir=kept_moments)
    for group in Group:
        names = [layer.name for layer in concept_layers(tiny) if layer.group is group]
        difference = max(relative(after.changes[n].change(), before.changes[n].change()) for n in names)
        assert (difference > 1e-3) == (group in changed), (group, difference)


@pytest.fixture(scope="module")
def kept_moments(tmp_path_factory):
    return tmp_path_factory.mktemp("moments")


def test_guidance_0_is_the_base_s_own(tiny, three):
    own = fuse(tiny, three[:1], replace(SETTINGS, guidance=0.0))
    assert_bit_equal(own, fuse(tiny, three[:1], replace(SETTINGS, guidance=tiny.preset.guidance)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"ridge": 0.0},
        {"ridge": -1.0},
        {"preserve": -0.1},
        {"ridge": float("nan")},
        {"contexts": ()},
        {"steps": 0},
        {"batch": 0},
        {"cap": 0.0},
        {"rows": "none"},
        {"rows": "0,0,0"},
        {"rows": "1,-1,1"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(RequestError):
        FusionSettings(**wrong)


# -- the rivals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "weight"), [("average", 1 / 3), ("sum", 0.7)])
def test_average_and_sum_are_weighted_sums_of_the_changes(tiny, three, method, weight):
    fused = fuse(tiny, three, FusionSettings(method=method, sum_weight=0.7))
    for layer in concept_layers(tiny):
        expected = weight * sum(dense.dense(named.concept)[layer.name] for named in three)
        assert relative(fused.changes[layer.name].change(torch.float64), expected) < 1e-6
    assert sorted(fused.vocabulary) == sorted(named.token for named in three)
    assert all(concept.survival == {} for concept in fused.manifest.concepts)


def test_a_concept_counts_by_its_alpha(tiny, make_concept):
    concept = make_concept(tiny)
    stronger = replace(concept, pairs={name: LowRank(p.A, p.B, 2 * p.alpha) for name, p in concept.pairs.items()})
    once, twice = (
        fuse(tiny, [NamedConcept("", it)], FusionSettings(method="average")).changes for it in (concept, stronger)
    )
    for name in once:
        torch.testing.assert_close(twice[name].change(), 2 * once[name].change())


# -- errors -------------------------------------------------------------------------------------------------------------


def test_nothing_to_fuse_is_an_error(tiny):
    with pytest.raises(FusionError, match="at least one"):
        fuse(tiny, [])


def test_two_concepts_of_one_token_are_an_error(tiny, make_concept):
    twice = [NamedConcept("", make_concept(tiny, "<cat>", seed=seed)) for seed in (1, 2)]
    with pytest.raises(FusionError, match=r"two concepts are called <cat>.*Rename one"):
        fuse(tiny, twice)


def test_two_participants_may_use_one_name_and_even_bring_one_concept(tiny, make_concept, tmp_path):
    """Equal concepts under two tokens fuse to what one of them is, ordinary prompts counting as much; both tokens are in the model."""
    concept = make_concept(tiny, "<cat>")
    both = fuse(tiny, [NamedConcept("alice", concept), NamedConcept("bob", concept)], SETTINGS)
    alone = fuse(tiny, [NamedConcept("alice", concept)], SETTINGS)
    for name, pair in alone.changes.items():
        assert relative(both.changes[name].change(), pair.change()) < 1e-4
    write_fused(both, tmp_path / "fused")
    assert sorted(both.vocabulary) == ["<alice/cat>", "<bob/cat>"]


def test_a_concept_of_another_base_is_refused(tiny, sixteen, make_concept):
    with pytest.raises(ConceptError, match=r"<cat> was tuned on base model .*, this is tiny"):
        fuse(tiny, [NamedConcept("alice", make_concept(sixteen, "<cat>"))])


# -- one bad concept ----------------------------------------------------------------------------------------------------


def overflowing(concept, layer: str):
    """The concept with one change that is finite and makes what the layer writes infinite."""
    pair = concept.pairs[layer]
    return replace(concept, pairs={**concept.pairs, layer: LowRank(pair.A * 1e19, pair.B * 1e19, pair.alpha)})


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_a_concept_that_breaks_the_forward_pass_is_left_out_by_name(tiny, three, part):
    """Finite weights can still overflow: the others are fused as if it had never come, and the manifest says whose they were."""
    layer = next(it.name for it in concept_layers(tiny) if it.name.startswith(part) and it.group is not Group.CROSS)
    broken = NamedConcept("bob", overflowing(three[1].concept, layer))
    told: list[str] = []
    fused = fuse(tiny, [three[0], broken, three[2]], SETTINGS, progress=told.append)
    (excluded,) = fused.manifest.excluded
    assert excluded.token == "<bob/dog>"
    assert f"activations of {part}" in excluded.reason
    assert any("<bob/dog> is left out" in line for line in told)
    assert_bit_equal(fused, fuse(tiny, [three[0], three[2]], SETTINGS))


def test_if_nothing_can_be_fused_the_error_names_concept_and_layer(tiny, three):
    layer = next(it.name for it in concept_layers(tiny))
    broken = NamedConcept("bob", overflowing(three[1].concept, layer))
    with pytest.raises(FusionError, match=r"concept <bob/dog>: the activations of text_encoder\..* are not finite"):
        fuse(tiny, [broken], SETTINGS)


def kept(fused, token: str) -> float:
    """The worst of a concept's energies kept, over the groups."""
    told = next(concept for concept in fused.manifest.concepts if concept.token == token)
    return min(survival.energy_kept for survival in told.survival.values())


@pytest.mark.parametrize("what", ["changes", "words"])
def test_a_huge_concept_does_not_drown_the_others(tiny, three, what):
    """Changes a thousand times too large, or words that blow activations up: with the cap, the others keep what they kept without it."""
    hostile = three[2].concept
    if what == "changes":
        pairs = {name: LowRank(pair.A, pair.B, 1000 * pair.alpha) for name, pair in hostile.pairs.items()}
        hostile = replace(hostile, pairs=pairs)
    else:
        hostile = replace(hostile, words=[1e4 * hostile.words[0]])
    attacked = [*three[:2], NamedConcept("carol", hostile)]
    with_cap, without = (fuse(tiny, attacked, replace(SETTINGS, cap=cap)) for cap in (4.0, 1e30))
    peaceful = fuse(tiny, three, SETTINGS)
    for token in ("<alice/cat>", "<bob/dog>"):
        assert kept(with_cap, token) > kept(peaceful, token) - 0.1
        if what == "changes":
            assert kept(without, token) < kept(peaceful, token) - 1


def test_the_cap_leaves_ordinary_concepts_alone(tiny, three):
    assert_bit_equal(fuse(tiny, three, SETTINGS), fuse(tiny, three, replace(SETTINGS, cap=FusionSettings.cap)))


# -- weights and drift --------------------------------------------------------------------------------------------------


def test_a_weight_of_two_counts_as_two_of_the_same(tiny, three):
    twice = [NamedConcept("mallory", three[0].concept), *three[:2]]
    weighted = fuse(tiny, three[:2], SETTINGS, weights={"<alice/cat>": 2.0})
    for name, pair in fuse(tiny, twice, SETTINGS).changes.items():
        assert relative(weighted.changes[name].change(torch.float64), pair.change(torch.float64)) < 1e-5
    assert {it.token: it.weight for it in weighted.manifest.concepts} == {"<alice/cat>": 2.0, "<bob/dog>": 1.0}


@pytest.mark.parametrize("weights", [{"<nobody>": 1.0}, {"<bob/dog>": 0.0}, {"<bob/dog>": float("nan")}])
def test_weights_for_nobody_or_of_nothing_are_refused(tiny, three, weights):
    with pytest.raises(FusionError, match=r"weight"):
        fuse(tiny, three[:2], SETTINGS, weights=weights)


def test_drift_is_what_ordinary_prompts_say(tiny, three):
    """Over stored rows of ordinary prompts: what fusion adds to what the layers write, in energy."""
    fused = fuse(tiny, three, SETTINGS)
    for group in Group:
        rows = dense_rows(tiny, group, None, SETTINGS, {})
        layers = [layer for layer in concept_layers(tiny) if layer.group is group]
        moved = sum(mean_square(rows[it.name] @ fused.changes[it.name].change(torch.float64).T) for it in layers)
        whole = sum(mean_square(rows[it.name] @ it.module.weight.double().T) for it in layers)
        assert fused.manifest.drift[group.name.lower()] == pytest.approx(moved / whole, rel=1e-3)


def test_preserving_more_drifts_less(tiny, three, tmp_path):
    drifts = [
        sum(fuse(tiny, three, replace(SETTINGS, preserve=it), moments_dir=tmp_path).manifest.drift.values())
        for it in (0.0, 0.5, 5.0)
    ]
    assert drifts == sorted(drifts, reverse=True)


# -- interruption, layers beyond the attention --------------------------------------------------------------------------


def test_an_interrupted_fusion_goes_on(tiny, three, tmp_path, monkeypatch, recordings):
    """Stopped while the UNet was recorded: what was recorded before is not recorded again, and the model is the same."""
    counting = statistics.record_group

    def interrupted(group, *arguments):
        if group is Group.SPATIAL and recordings[group] == 2:
            raise KeyboardInterrupt
        return counting(group, *arguments)

    monkeypatch.setattr(statistics, "record_group", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fuse(tiny, three, SETTINGS, moments_dir=tmp_path)
    monkeypatch.setattr(statistics, "record_group", counting)
    before = recordings.copy()
    resumed = fuse(tiny, three, SETTINGS, moments_dir=tmp_path)
    assert recordings - before == {Group.SPATIAL: 2}
    assert_bit_equal(resumed, fuse(tiny, three, SETTINGS))


def test_layers_beyond_the_attention_are_fused_too(tiny, three, tmp_path):
    """An imported concept changes a feed-forward and a 1x1 convolution: alone on them, it keeps them; others' moments are made whole."""
    fuse(tiny, three[:2], SETTINGS, moments_dir=tmp_path)
    known = {layer.name for layer in concept_layers(tiny)}
    extra = [it for it in adaptable_layers(tiny) if it.name not in known and it.name.endswith(("mlp.fc1", "proj_in"))]
    assert {it.group for it in extra} == {Group.TEXT, Group.SPATIAL}
    pairs = {it.name: LowRank(0.1 * torch.randn(2, it.d_in), 0.1 * torch.randn(it.d_out, 2), 2.0) for it in extra}
    imported = NamedConcept("dan", replace(three[2].concept, pairs=pairs, name="<lora>"))
    fused = fuse(tiny, [*three[:2], imported], SETTINGS, moments_dir=tmp_path)
    assert pairs.keys() <= fused.changes.keys()
    assert_bit_equal(fused, fuse(tiny, [*three[:2], imported], SETTINGS))
    alone = fuse(tiny, [imported], replace(SETTINGS, preserve=0.0, ridge=1e-6))
    assert kept(alone, "<dan/lora>") > 0.999
