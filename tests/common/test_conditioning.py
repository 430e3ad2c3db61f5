"""Conditioning as a value: its rows, its regions, and that nothing can change it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from mos_common.conditioning import Conditioning, read_prompts
from mos_common.regions import Region
from mos_common.shapes import Box
from mos_common.words import encode_prompts

PROMPTS = ["a cat", "a dog in the snow"]


def test_without_guidance_the_rows_are_the_prompts(base):
    conditioning = read_prompts(base, PROMPTS, {})
    assert torch.equal(conditioning.features, encode_prompts(base, PROMPTS, {}))
    assert conditioning.unconditional_rows == 0


def test_with_guidance_the_first_half_of_the_rows_is_the_negative_text(base):
    conditioning = read_prompts(base, PROMPTS, {}, guidance=3.0, negative="a car")
    assert torch.equal(conditioning.features, encode_prompts(base, ["a car", "a car", *PROMPTS], {}))
    assert conditioning.unconditional_rows == 2


def test_a_region_has_the_text_of_its_prompt(base):
    regions = [Region("a cat", Box(0, 0, 0.5, 1)), Region("a dog", Box(0.5, 0, 1, 1))]
    conditioning = read_prompts(base, ["snow"], {}, regions=regions, size=(16, 32))
    assert [text.region for text in conditioning.regions] == regions
    texts = torch.stack([text.features for text in conditioning.regions])
    torch.testing.assert_close(texts, encode_prompts(base, ["a cat", "a dog"], {}))
    assert conditioning.size == (16, 32)


def test_only_xl_has_pooled_prompts_one_for_every_row(tiny, xl):
    assert read_prompts(tiny, PROMPTS, {}, guidance=3.0).pooled is None
    assert read_prompts(xl, PROMPTS, {}, guidance=3.0).pooled.shape[0] == 4


@pytest.mark.parametrize("name", [each.name for each in fields(Conditioning)])
def test_a_conditioning_cannot_be_changed(tiny, name):
    conditioning = read_prompts(tiny, ["a cat"], {}, regions=[Region("a cat", Box(0, 0, 1, 1))])
    with pytest.raises(FrozenInstanceError):
        setattr(conditioning, name, None)
    assert isinstance(conditioning.regions, tuple)


def test_guidance_without_an_unconditional_row_for_each_prompt_is_refused(tiny):
    with pytest.raises(AssertionError, match="1 rows"):
        Conditioning(read_prompts(tiny, ["a cat"], {}).features, guidance=3.0)
