"""Recording a concept: prompts, positions, layers and steps; the model is left unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from mos_common.edlora import attached
from mos_common.errors import FusionError
from mos_common.layers import Group
from mos_common.words import tokenise
from mos_server.fusion.activations import position_weights, record_group
from mos_server.fusion.moments import Moments
from mos_server.fusion.recording_settings import ROWS, RecordingSettings

SETTINGS = RecordingSettings(rows="all", contexts=("V",), steps=2, guidance=3.0, batch=2)
PROMPTS = ("<cat>", "photo of a <cat>")


@pytest.fixture
def vocabulary(base, make_concept):
    return {"<cat>": make_concept(base, "<cat>").words[0]}


@pytest.fixture
def vocabulary_of_tiny(tiny, make_concept):
    return {"<cat>": make_concept(tiny, "<cat>").words[0]}


def record(group, base, vocabulary, prompts: Sequence[str] = PROMPTS, seeds=(1, 2), settings=SETTINGS):
    layers = [layer for layer in base.layout.attention if layer.group is group]
    return record_group(group, base, layers, prompts, seeds, vocabulary, settings, Moments())


def per_layer(moments, base) -> list[torch.Tensor]:
    return [moments.mean(f"unet.{cross.name}.text") for cross in base.layout.cross_attentions]


@pytest.mark.parametrize("group", Group)
def test_every_input_of_the_group_is_recorded_and_no_other(base, vocabulary, group):
    expected = {layer.reads: layer.d_in for layer in base.layout.attention if layer.group is group}
    moments = record(group, base, vocabulary)
    assert {reads: len(total) for reads, total in moments.sums.items()} == expected


def test_keys_and_values_of_each_layer_have_moments_of_their_own(base, vocabulary):
    """Layer k reads encoding k; a prompt that names no concept reads the same in every layer."""
    named = per_layer(record(Group.CROSS, base, vocabulary), base)
    plain = per_layer(record(Group.CROSS, base, vocabulary, ["a tree"]), base)
    assert not any(torch.allclose(named[0], other, rtol=1e-3) for other in named[1:])
    assert all(torch.equal(plain[0], other) for other in plain[1:])


def test_keys_and_values_read_what_the_attached_text_encoder_writes(base, vocabulary, make_concept):
    text = {name: pair for name, pair in make_concept(base).pairs.items() if name.startswith("text_encoder.")}
    before = per_layer(record(Group.CROSS, base, vocabulary), base)
    with attached(base, text):
        within = per_layer(record(Group.CROSS, base, vocabulary), base)
    after = per_layer(record(Group.CROSS, base, vocabulary), base)
    assert not torch.allclose(before[0], within[0], rtol=1e-3)
    assert torch.equal(before[0], after[0])


def test_the_text_encoder_reads_a_concept_s_prompt_once_for_each_layer_and_others_once(base, vocabulary):
    count, length = len(base.layout.cross_attentions), base.text_length
    assert set(record(Group.TEXT, base, vocabulary).rows.values()) == {len(PROMPTS) * count * length}
    assert set(record(Group.TEXT, base, vocabulary, ["a tree", "a tree"]).rows.values()) == {length}


def test_only_conditional_rows_of_a_drawing_are_recorded(tiny, make_concept):
    """Cells x steps x prompts, whatever the guidance; DPM-Solver calls the UNet once per step."""
    vocabulary = {"<cat>": make_concept(tiny, "<cat>").words[0]}
    reads = next(layer for layer in tiny.layout.attention if layer.group is Group.SPATIAL).reads
    for guidance in (1.0, 3.0):
        settings = RecordingSettings(contexts=("V",), steps=3, guidance=guidance, batch=2)
        moments = record(Group.SPATIAL, tiny, vocabulary, settings=settings)
        assert moments.rows[reads] == 8 * 8 * 3 * len(PROMPTS)
        both = record(Group.SPATIAL, tiny, vocabulary, settings=replace(settings, unconditional=True))
        assert both.rows[reads] == (2 if guidance != 1 else 1) * moments.rows[reads]


def test_a_batch_is_a_matter_of_speed(base, vocabulary):
    prompts, seeds = [*PROMPTS, "a <cat>"], (1, 2, 3)
    one, other = (
        record(Group.SPATIAL, base, vocabulary, prompts, seeds, RecordingSettings(steps=2, guidance=3.0, batch=batch))
        for batch in (1, 2)
    )
    assert one.rows == other.rows
    for reads in one.sums:
        torch.testing.assert_close(one.mean(reads), other.mean(reads), rtol=1e-3, atol=1e-4)


def test_too_little_memory_means_smaller_batches(tiny, vocabulary_of_tiny, monkeypatch):
    """A GPU that can hold two pictures at a time records all five all the same, each once."""
    prompts, seeds = ["a <cat>"] * 5, range(5)
    settings = RecordingSettings(steps=1, guidance=1.0, batch=5)
    expected = record(Group.SPATIAL, tiny, vocabulary_of_tiny, prompts, seeds, settings)
    forward = tiny.unet.forward

    def small(latents, *args, **kwargs):
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(latents, *args, **kwargs)

    monkeypatch.setattr(tiny.unet, "forward", small)
    recorded = record(Group.SPATIAL, tiny, vocabulary_of_tiny, prompts, seeds, settings)
    assert recorded.rows == expected.rows
    for reads in expected.sums:
        torch.testing.assert_close(recorded.mean(reads), expected.mean(reads), rtol=1e-3, atol=1e-4)


def test_a_seed_is_a_recording(tiny, make_concept):
    vocabulary = {"<cat>": make_concept(tiny, "<cat>").words[0]}
    one, same, other = (record(Group.SPATIAL, tiny, vocabulary, seeds=seeds) for seeds in ((1, 2), (1, 2), (3, 4)))
    assert all(torch.equal(one.sums[reads], same.sums[reads]) for reads in one.sums)
    assert not any(torch.equal(one.sums[reads], other.sums[reads]) for reads in one.sums)


def test_chosen_positions(tiny, make_concept):
    """ "photo of a V": start, three tokens, two words, end, padding."""
    vocabulary = {"<cat>": make_concept(tiny, "<cat>").words[0]}
    texts = [tokenise(tiny, prompt, vocabulary) for prompt in ("photo of a <cat>", "photo of a")]
    first = [position for position, _, _ in texts[0].words]
    assert texts[0].end == first[-1] + 1
    named, plain = position_weights(texts, ROWS["words"])
    assert named.nonzero().flatten().tolist() == [*first, texts[0].end]
    assert plain.nonzero().flatten().tolist() == list(range(texts[1].end + 1))
    assert position_weights(texts, ROWS["text"]).sum(dim=1).tolist() == [texts[0].end + 1, texts[1].end + 1]
    assert position_weights(texts, ROWS["all"]).all()
    weighted = position_weights(texts, (4.0, 2.0, 0.5))[0].tolist()
    assert weighted == [2.0] * first[0] + [4.0] * 3 + [0.5] * (tiny.text_length - texts[0].end - 1)


def test_weighted_rows_are_counted_by_their_weights(base, vocabulary):
    """G is Σ w x xᵀ / Σ w: the mean of one recording per kind, weighted by the kinds."""
    of_kind = {
        kind: record(Group.CROSS, base, vocabulary, settings=RecordingSettings(rows=kind))
        for kind in ("1,0,0", "0,1,0", "0,0,1", "3,1,0.25")
    }
    *kinds, together = of_kind.values()
    for reads in together.sums:
        total = sum(w * one.sums[reads] for w, one in zip((3, 1, 0.25), kinds, strict=True))
        count = sum(w * one.rows[reads] for w, one in zip((3, 1, 0.25), kinds, strict=True))
        torch.testing.assert_close(together.mean(reads), total / count, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("group", Group)
def test_nothing_is_left_on_the_model(base, vocabulary, group):
    """Neither hooks nor attention processors, whether it went well or not."""
    processors = [cross.module.processor for cross in base.layout.cross_attentions]
    record(group, base, vocabulary)
    broken = {"<cat>": vocabulary["<cat>"] * float("nan")}
    with pytest.raises(FusionError, match=r"activations of .* are not finite"):
        record(group, base, broken)
    modules = [*base.unet.modules(), *base.text_encoder.modules()]
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules) == 0
    assert [cross.module.processor for cross in base.layout.cross_attentions] == processors
