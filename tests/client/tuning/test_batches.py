"""What a batch shows: shapes, captions, noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mos_client.pictures.examples import Encoded, Example
from mos_client.tuning.batches import next_batch
from mos_client.tuning.reach import Reach
from reference.small_tuning import CONFIG, examples


def test_noise_offset_shifts_whole_channels(tiny):
    """Channel means of the noise have deviation √(1/cells + offset²)."""
    config = replace(CONFIG, noise_offset=0.5, batch=64)
    batch = next_batch(examples(tiny, 1), config, 1000, torch.Generator().manual_seed(0))
    cells = batch.noise.shape[2] * batch.noise.shape[3]
    assert float(batch.noise.mean(dim=(2, 3)).std()) == pytest.approx((1 / cells + 0.25) ** 0.5, rel=0.15)
    plain = next_batch(examples(tiny, 1), replace(config, noise_offset=0.0), 1000, torch.Generator().manual_seed(0))
    assert float(plain.noise.mean(dim=(2, 3)).std()) == pytest.approx(cells**-0.5, rel=0.15)


def test_templates_replace_their_share_of_the_captions(tiny):
    one = [Example(examples(tiny, 1)[0].views, ("V asleep",))]
    for share, expected in ((0.0, 0.0), (0.25, 0.25), (1.0, 1.0)):
        config = replace(CONFIG, template_share=share, batch=400)
        captions = next_batch(one, config, 1000, torch.Generator().manual_seed(0)).captions
        assert sum(caption != "V asleep" for caption in captions) / 400 == pytest.approx(expected, abs=0.06)


def test_captions_are_shuffled_part_by_part_unless_that_is_off(tiny):
    one = [Example(examples(tiny, 1)[0].views, ("V, a, b, c",))]
    for shuffled in (True, False):
        config = replace(CONFIG, shuffle_captions=shuffled, batch=200)
        captions = set(next_batch(one, config, 1000, torch.Generator().manual_seed(0)).captions)
        assert len(captions) == (6 if shuffled else 1)
        assert all(caption.startswith("V, ") for caption in captions)


def test_a_shuffle_leaves_the_concept_within_reach(tiny):
    """V in the third part, and more tokens than the base reads: V is never carried past the end."""
    parts = ["photo", "at night", "V on a chair", *["a very red balloon on a sandy beach"] * 12]
    one = [Example(examples(tiny, 1)[0].views, (", ".join(parts),))]
    config = replace(CONFIG, batch=200)
    shuffled = set(next_batch(one, config, 1000, torch.Generator().manual_seed(0), Reach(tiny, 2)).captions)
    assert len(shuffled) > 20
    for caption in shuffled:
        assert sorted(caption.split(", ")) == sorted(parts), "nothing is lost but what the base never reads"
        tokens = tiny.tokenizer(caption[: caption.index("V")], add_special_tokens=False).input_ids
        assert len(tokens) + 2 <= tiny.text_length - 2
    loose = set(next_batch(one, config, 1000, torch.Generator().manual_seed(0)).captions)
    assert loose - shuffled, "some shuffles had to be mended"


def test_captions_that_fit_in_any_order_are_shuffled_as_they_come(tiny):
    one = [Example(examples(tiny, 1)[0].views, ("photo, V, on a chair, at night",))]
    drawn = [
        next_batch(one, replace(CONFIG, batch=50), 1000, torch.Generator().manual_seed(0), reach).captions
        for reach in (None, Reach(tiny, 2))
    ]
    assert drawn[0] == drawn[1]


def test_a_batch_is_of_one_shape_and_shapes_come_as_often_as_their_pictures(tiny):
    square, wide = torch.zeros(4, 16, 16), torch.zeros(4, 12, 20)
    mixed = [Example((Encoded(square),), ("V",))] * 3 + [Example((Encoded(wide),), ("V",))]
    generator = torch.Generator().manual_seed(0)
    shapes = [next_batch(mixed, CONFIG, 1000, generator).latents.shape[1:] for _ in range(200)]
    assert shapes.count(square.shape) == pytest.approx(150, abs=20)
    assert shapes.count(square.shape) + shapes.count(wide.shape) == 200
