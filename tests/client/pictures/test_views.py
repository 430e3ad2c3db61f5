"""How the base sees a picture: sizes that fit it, crops that keep the concept, mirroring."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mos_client.pictures import examples as examples_module
from mos_client.pictures.examples import LATENTS, load_examples
from mos_client.pictures.folder import Picture, find_pictures
from mos_client.pictures.views import MASK_KEPT, View, bucket_for, bucket_sizes, mask_cells, views_of


def test_sizes_are_whole_cells_of_about_the_base_s_pixels_and_no_longer_than_twice_their_width(base):
    sizes = bucket_sizes(base)
    assert (base.picture_size, base.picture_size) in sizes
    for width, height in sizes:
        assert width % base.size_unit == height % base.size_unit == 0
        assert width * height <= base.picture_size**2
        assert 0.5 <= width / height <= 2
    assert {(h, w) for w, h in sizes if w < h} <= {(h, w) for w, h in sizes}


def test_stable_diffusion_s_sizes_are_those_that_people_know(tiny):
    """512 x 512 in cells of 64 pixels: the aspect buckets of every trainer."""

    class Like512:
        size_unit, picture_size = 64, 512

    assert {(512, 512), (576, 448), (640, 384), (448, 576), (384, 640)} <= set(bucket_sizes(Like512))


@given(st.integers(20, 5000), st.integers(20, 5000))
def test_a_picture_goes_to_the_size_of_the_nearest_shape(width, height):
    sizes = [(64, 64), (80, 48), (48, 80), (48, 48)]
    chosen = bucket_for((width, height), sizes)
    nearness = [abs(math.log(w / h) - math.log(width / height)) for w, h in sizes]
    assert abs(math.log(chosen[0] / chosen[1]) - math.log(width / height)) == pytest.approx(min(nearness))
    assert chosen != (48, 48), "of two squares the larger"


def test_the_first_view_is_the_largest_part_of_that_shape_from_the_middle():
    (view,) = views_of(Image.new("RGB", (200, 100)), None, (64, 64), crops=1, mirror=False, seed="a")
    assert view == View((50.0, 0.0, 150.0, 100.0), (64, 64))


def test_mirrored_views_are_the_same_crops_turned_round():
    picture = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3))
    views = list(views_of(picture, None, (64, 64), crops=2, mirror=True, seed="a"))
    assert [view.mirrored for view in views] == [False, True, False, True]
    for plain, turned in zip(views[::2], views[1::2], strict=True):
        assert np.array_equal(np.asarray(plain.of(picture))[:, ::-1], np.asarray(turned.of(picture)))


@given(st.text(max_size=8), st.integers(2, 6))
def test_crops_never_cut_the_concept_off(seed, crops):
    """The concept touches the left edge, so most crops would."""
    mask = Image.new("L", (100, 60), 0)
    mask.paste(255, (0, 20, 30, 60))
    whole = np.asarray(mask, dtype=float)
    for view in views_of(Image.new("RGB", (100, 60)), mask, (80, 48), crops=crops, mirror=False, seed=seed):
        left, top, right, bottom = (round(edge) for edge in view.box)
        assert whole[top:bottom, left:right].sum() >= MASK_KEPT * whole.sum()
        assert left >= 0
        assert top >= 0
        assert right <= 100
        assert bottom <= 60


def test_the_mask_is_cut_and_mirrored_with_its_picture():
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 8, 32))
    box = (0.0, 0.0, 32.0, 32.0)
    plain, turned = (mask_cells(mask, View(box, (32, 32), mirrored=m), (8, 8)) for m in (False, True))
    assert plain.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]] * 8
    assert turned.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1]] * 8


def test_every_view_is_a_latent_of_the_right_shape_with_its_mask_and_its_captions(tiny, make_pictures):
    folder = make_pictures(3)
    Image.new("RGB", (128, 64), (0, 90, 200)).save(folder / "03.png")
    mask = Image.new("L", (128, 64), 0)
    mask.paste(255, (0, 0, 64, 64))
    mask.save(folder / "03.mask.png")
    (folder / "03.txt").write_text("V on the left")
    examples = load_examples(tiny, find_pictures(folder), crops=2, mirror=True)
    assert [len(example.views) for example in examples] == [4] * 4
    wide = examples[3].views
    width, height = bucket_for((128, 64), bucket_sizes(tiny))
    assert {tuple(view.latent.shape) for view in wide} == {(4, height // 4, width // 4)}
    assert wide[0].mask[:, : width // 8 - 1].min() == 1
    assert wide[0].mask[:, width // 8 + 1 :].mean() == 0
    assert torch.equal(wide[1].mask, wide[0].mask.flip(1))
    assert [examples[3].captions_of(view) for view in wide[:2]] == [("V on the left",), ("V on the right",)]
    assert examples[0].views[0].mask is None


def test_latents_are_kept_on_disk_for_the_same_pictures_and_only_for_them(tiny, make_pictures, tmp_path, monkeypatch):
    folder = make_pictures(3)
    encoded = []
    encode = type(tiny).encode_pictures
    monkeypatch.setattr(type(tiny), "encode_pictures", lambda self, x: encoded.append(len(x)) or encode(self, x))
    first = load_examples(tiny, find_pictures(folder), mirror=True, cache=tmp_path / "work")
    assert sum(encoded) == 6
    again = load_examples(tiny, find_pictures(folder), mirror=True, cache=tmp_path / "work")
    assert sum(encoded) == 6
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(x.latent, y.latent) for x, y in zip(a.views, b.views, strict=True))
    Image.new("RGB", (64, 64), "red").save(folder / "00.png")
    load_examples(tiny, find_pictures(folder), mirror=True, cache=tmp_path / "work")
    assert sum(encoded) == 12
    (tmp_path / "work" / LATENTS).write_bytes(b"damaged")
    load_examples(tiny, find_pictures(folder), cache=tmp_path / "work")
    assert sum(encoded) == 15


def test_pictures_are_taken_from_minus_one_to_one(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 255)).save(tmp_path / "a.png")
    tensor = examples_module.load_pictures([Picture(tmp_path / "a.png")], 4)
    assert tensor[0, :, 0, 0].tolist() == [1, -1, 1]
