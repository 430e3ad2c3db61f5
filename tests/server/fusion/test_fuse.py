"""What every fusion has in common: words, the base, weights, errors, broken concepts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mos_common.edlora import LowRank
from mos_common.errors import ConceptError, FusionError
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group
from mos_common.settings import settings_to_json
from mos_server.fusion.fuse import fuse
from mos_server.models.publish import write_fused
from reference.small_fusion import SETTINGS, assert_bit_equal, relative


def test_words_are_kept_under_the_tokens_of_their_participants(tiny, three):
    fused = fuse(tiny, three, SETTINGS)
    assert sorted(fused.vocabulary) == ["<alice/cat>", "<bob/dog>", "<carol/tree>"]
    assert torch.equal(fused.vocabulary["<bob/dog>"], three[1].concept.words[0])


def test_the_base_is_left_as_it_was(tiny, three):
    before = {layer.name: layer.module.weight.clone() for layer in tiny.layout.attention}
    fuse(tiny, three[:2], SETTINGS)
    assert all(torch.equal(layer.module.weight, before[layer.name]) for layer in tiny.layout.attention)


def test_the_manifest_says_by_which_method_and_settings(tiny, three):
    """All of them, not only those that differ from the defaults."""
    manifest = fuse(tiny, three[:1], SETTINGS).manifest
    assert manifest.method == "gradient"
    assert manifest.settings == settings_to_json(SETTINGS)


def test_nothing_to_fuse_is_an_error(tiny):
    with pytest.raises(FusionError, match="at least one"):
        fuse(tiny, [])


def test_two_concepts_of_one_token_are_an_error(tiny, make_concept):
    twice = [NamedConcept("", make_concept(tiny, "<cat>", seed=seed)) for seed in (1, 2)]
    with pytest.raises(FusionError, match=r"two concepts are called <cat>.*Rename one"):
        fuse(tiny, twice)


def test_two_participants_may_use_one_name_and_even_bring_one_concept(tiny, make_concept, tmp_path):
    """Equal concepts under two tokens fuse to what one of them is.

    Ordinary prompts count as much; both tokens are in the model.
    """
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


def overflowing(concept, layer: str):
    """The concept with one change that is finite and makes what the layer writes infinite."""
    pair = concept.pairs[layer]
    return replace(concept, pairs={**concept.pairs, layer: LowRank(pair.A * 1e19, pair.B * 1e19, pair.alpha)})


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_a_concept_that_breaks_the_forward_pass_is_left_out_by_name(tiny, three, part):
    """Finite weights can still overflow.

    The others are fused as if it had never come, and the manifest says whose they were.
    """
    layer = next(it.name for it in tiny.layout.attention if it.name.startswith(part) and it.group is not Group.CROSS)
    broken = NamedConcept("bob", overflowing(three[1].concept, layer))
    lines: list[str] = []
    fused = fuse(tiny, [three[0], broken, three[2]], SETTINGS, progress=lines.append)
    (excluded,) = fused.manifest.excluded
    assert excluded.token == "<bob/dog>"
    assert f"activations of {part}" in excluded.reason
    assert any("<bob/dog> is left out" in line for line in lines)
    assert_bit_equal(fused, fuse(tiny, [three[0], three[2]], SETTINGS))


def test_if_nothing_can_be_fused_the_error_names_concept_and_layer(tiny, three):
    layer = next(it.name for it in tiny.layout.attention)
    broken = NamedConcept("bob", overflowing(three[1].concept, layer))
    with pytest.raises(FusionError, match=r"concept <bob/dog>: the activations of text_encoder\..* are not finite"):
        fuse(tiny, [broken], SETTINGS)


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
