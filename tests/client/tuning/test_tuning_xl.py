"""Tuning on a base laid out like Stable Diffusion XL, from pictures to a concept file."""

from __future__ import annotations

import torch

from mos_client.pictures.examples import load_examples
from mos_client.pictures.folder import find_pictures
from mos_client.tuning.loop import Tuning
from mos_client.tuning.settings import TuningSettings
from mos_client.tuning.tune_folder import tuned_concept
from mos_common.concept import check_fits
from mos_common.concept_file import read_concept, write_concept
from mos_common.drawing import Drawing, draw
from mos_common.edlora import attached
from mos_common.pipeline.models import open_model

CONFIG = TuningSettings(
    steps=2,
    batch=2,
    learning_rate_words=1e-2,
    learning_rate_text=1e-3,
    learning_rate_unet=1e-3,
    noise_offset=0.0,
    rank=2,
)


def test_two_steps_move_words_and_pairs_of_both_text_encoders_and_the_file_draws(xl, make_pictures, tmp_path):
    before = {name: tensor.clone() for name, tensor in xl.text_encoder_2.state_dict().items()}
    tuning = Tuning(xl, "cat", load_examples(xl, find_pictures(make_pictures(3))), CONFIG)
    started = tuning.words.detach().clone()
    losses = [step.loss for step in tuning.steps()]
    assert len(losses) == 2
    moved = tuning.words.detach() - started
    for part in torch.split(
        moved, [24, 32], dim=2
    ):  # all layers except where a word does not reach: XL pools the first
        assert (part.abs().amax(dim=(1, 2)) > 0).all()
    still = {name for name, (_, B) in tuning.pairs.items() if not B.any()}
    # XL reads the last but one layer of the first text encoder: the last is unused
    assert {name.rpartition(".self_attn")[0] for name in still} == {"text_encoder.text_model.encoder.layers.1"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in xl.text_encoder_2.state_dict().items())

    concept = tuned_concept(tuning, "<cat>")
    write_concept(concept, tmp_path / "cat.safetensors")
    read = read_concept(tmp_path / "cat.safetensors")
    check_fits(read, xl)
    assert [words.shape for words in read.words] == [(11, 2, 24), (11, 2, 32)]
    opened = open_model(tmp_path / "cat.safetensors", xl)
    with attached(xl, opened.changes):
        picture = draw(xl, ["a <cat>"], [0], vocabulary=opened.vocabulary, how=Drawing(steps=1))
    assert torch.isfinite(picture).all()
