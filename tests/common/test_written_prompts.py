"""Written prompts in the drawing loop: phases, weights in regions, and what is said."""

from __future__ import annotations

import logging

import pytest
import torch

from mos_common.conditioning import read_prompts
from mos_common.drawing import Drawing, decode, denoise, draw, draw_latents, generators_of, noise_from, scheduler_for
from mos_common.errors import RequestError
from mos_common.regions import Region
from mos_common.samplers import stepper
from mos_common.shapes import Box
from mos_common.written_prompts import concepts_named, read_written_prompts

HOW = Drawing(steps=4, guidance=3.0)
STEPS = {"steps": 4, "evaluations": 4}
SIDE = [Region("a dog", Box(0, 0, 0.5, 1))]


def same(found, expected) -> bool:
    pairs = [(found.features, expected.features), (found.pooled, expected.pooled)]
    pairs += [(f.features, e.features) for f, e in zip(found.regions, expected.regions, strict=True)]
    return all(e is f is None or torch.equal(f, e) for f, e in pairs)


@pytest.fixture(params=["tiny", "sixteen", "xl"])
def any_base(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("negative", ["", "a car"])
def test_plain_prompts_are_read_to_the_bit_as_read_prompts_reads_them(any_base, negative):
    settings = {"guidance": 3.0, "negative": negative, "regions": SIDE, "size": (8, 16)}
    prompts = ["a cat in the snow", "b", "a cat in the snow"]
    with torch.no_grad():
        (phase,) = read_written_prompts(any_base, prompts, {}, **STEPS, **settings)
        assert phase.begins == 0
        assert same(phase.conditioning, read_prompts(any_base, prompts, {}, **settings))


def by_hand(base, texts: list[tuple[int, str]], how: Drawing) -> torch.Tensor:
    """Draw with diffusers' scheduler and a new conditioning for each range of steps."""
    scheduler, generators = scheduler_for(base, how), generators_of([7])
    latents = noise_from(base, generators, base.picture_size, base.picture_size) * scheduler.init_noise_sigma
    take = stepper(scheduler, generators)
    from mos_common.attention import conditioned

    with torch.inference_mode():
        for number, t in enumerate(scheduler.timesteps):
            text = [said for begins, said in texts if begins <= number][-1]
            with conditioned(base, read_prompts(base, [text], {}, guidance=how.guidance)) as unet:
                rows = scheduler.scale_model_input(torch.cat([latents, latents]), t)
                unconditional, conditional = unet.predict(rows, t).chunk(2)
                latents = take(unconditional + how.guidance * (conditional - unconditional), t, latents)
        return base.decode_latents(latents)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a [cat:dog:0.5] here", [(0, "a cat here"), (2, "a dog here")]),
        ("[a cat::3]", [(0, "a cat"), (3, "")]),
        ("[[a:b:1]:c:0.75]", [(0, "a"), (1, "b"), (3, "c")]),
    ],
)
def test_a_prompt_that_changes_draws_the_one_and_then_the_other(any_base, prompt, texts):
    found = draw(any_base, [prompt], [7], how=HOW)
    assert torch.equal(found, by_hand(any_base, texts, HOW))
    assert not torch.equal(found, draw(any_base, [texts[0][1]], [7], how=HOW))


def test_keys_and_values_are_computed_once_for_each_phase(sixteen):
    calls, handles = [], []
    for cross in sixteen.layout.cross_attentions:
        handles.append(cross.module.to_k.register_forward_pre_hook(lambda *_: calls.append(1)))
    try:
        draw(sixteen, ["[cat:dog:0.5]"], [0], how=HOW)
    finally:
        for handle in handles:
            handle.remove()
    assert len(calls) == 16 * 2


def test_weights_and_changes_hold_in_regions_and_in_the_negative_prompt(tiny):
    how = Drawing(steps=4, guidance=3.0, negative="[car:(tree:0.5):0.5]")
    regions = [Region("[a cat:(a dog:1.5):2]", Box(0, 0, 0.5, 1))]
    found = draw(tiny, ["snow"], [7], regions=regions, how=how)
    with torch.inference_mode():
        phases = read_written_prompts(
            tiny, ["snow"], {}, **STEPS, guidance=3.0, negative=how.negative, regions=regions, size=(8, 8)
        )
        assert [phase.begins for phase in phases] == [0, 2]
        plain = read_prompts(
            tiny, ["snow"], {}, guidance=3.0, negative="car", regions=[Region("a cat", Box(0, 0, 0.5, 1))]
        )
        assert torch.equal(phases[0].conditioning.features, plain.features)
        assert torch.equal(phases[0].conditioning.regions[0].features, plain.regions[0].features)
        generators = generators_of([7])
        noise = noise_from(tiny, generators, 64, 64)
        latents = denoise(tiny, noise, phases, scheduler_for(tiny, how), 4, generators)
        assert torch.equal(decode(tiny, latents, how), found)


def test_a_long_prompt_is_read_to_its_end(tiny):
    """Drawn, it is neither its beginning nor what was cut before."""
    long = "a red car, " * 20 + "in the snow"
    how = Drawing(steps=2, guidance=3.0)
    assert not torch.equal(draw(tiny, [long], [1], how=how), draw(tiny, ["a red car, " * 20], [1], how=how))


def test_rows_of_a_batch_have_as_many_chunks_as_the_longest(xl):
    with torch.no_grad():
        (phase,) = read_written_prompts(xl, ["a " * 40, "b"], {}, **STEPS, guidance=3.0, regions=SIDE, size=(8, 8))
        zeros = read_prompts(xl, ["b"], {}, guidance=3.0)
    tokens = 3 * xl.text_length
    assert phase.conditioning.features.shape[2] == tokens
    assert phase.conditioning.regions[0].features.shape[1] == tokens
    assert phase.conditioning.pooled.shape == (4, zeros.pooled.shape[1])


def test_xl_s_pooled_prompt_is_that_of_the_first_chunk_without_weights(xl):
    room = xl.text_length - 2
    with torch.no_grad():
        (phase,) = read_written_prompts(xl, ["(" + "a " * room + ":1.5) b"], {}, **STEPS)
        expected = read_prompts(xl, ["a " * room], {}).pooled
    torch.testing.assert_close(phase.conditioning.pooled, expected)


def test_fusion_records_plain_texts(tiny):
    """A context with a bracket is recorded as the text that the text encoder's moments are of."""
    how, prompt = Drawing(steps=2, guidance=1.0), ["a (cat:1.5)"]
    latents = draw_latents(tiny, prompt, [1], how=how)
    with torch.no_grad():
        generators = generators_of([1])
        plain = read_prompts(tiny, prompt, {})
        expected = denoise(tiny, noise_from(tiny, generators, 64, 64), plain, scheduler_for(tiny, how), 2, generators)
    assert torch.equal(latents, expected)
    assert not torch.equal(tiny.decode_latents(latents), draw(tiny, prompt, [1], how=how))


def test_one_line_says_what_was_cut_or_not_understood(tiny, caplog):
    long = "a " * (16 * (tiny.text_length - 2)) + "house at night"
    with caplog.at_level(logging.WARNING), torch.no_grad():
        read_written_prompts(tiny, [long, "[a|b] (c"], {}, **STEPS, guidance=2, negative="x BREAK y")
    (record,) = caplog.records
    assert record.getMessage() == (
        "prompt: cut after 864 tokens: 'house at night'; not understood, and read as text: 'BREAK', '[a|b]', "
        "a lone '(' (a bracket is written \\( or \\[)"
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING), torch.no_grad():
        read_written_prompts(tiny, [r"a (cat:1.2) \(here\) [a:b:0.5]", "a " * 100], {}, **STEPS)
    assert not caplog.records


def test_a_concept_is_named_wherever_it_stands_in_the_grammar(tiny):
    known = dict.fromkeys(("<alice/cat>", "<bob/dog>", "<carol/car>"))
    prompt = "a [(<cat>:1.2):x [<dog>]:0.5] <cat>"
    assert concepts_named(tiny, prompt, known) == ["<alice/cat>", "<bob/dog>"]
    assert concepts_named(tiny, "a cat", known) == []


def test_an_unknown_concept_that_would_come_later_is_refused_before_anything_is_drawn(tiny):
    with pytest.raises(RequestError, match="unknown concept <cat>"):
        draw(tiny, ["[dog:<cat>:0.9]"], [0], how=HOW, on_step=lambda *_: pytest.fail("drew"))
