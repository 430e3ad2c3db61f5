"""Masks drawn by a segmentation model on disk: a real CLIPSeg at toy size."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor

from mos_client.pictures.folder import find_pictures
from mos_client.pictures.reading import open_picture
from mos_client.pictures.segmentation import KNOWN, draw_masks, model_on_disk
from mos_common.errors import PicturesError, RequestError


def write_clipseg(folder: Path, tokenizer: object, bias: float) -> Path:
    """Write a random CLIPSeg; a large `bias` makes it mark everything, a small one nothing."""
    from transformers import ViTImageProcessorPil

    sides = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "max_position_embeddings": 20, **sides, **ids}
    torch.manual_seed(1)
    model = CLIPSegForImageSegmentation(
        CLIPSegConfig(
            text_config=text,
            vision_config={"num_hidden_layers": 3, "image_size": 32, "patch_size": 8, **sides},
            projection_dim=16,
            extract_layers=[0, 1, 2],
            reduce_dim=8,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=16,
        )
    )
    model.decoder.transposed_convolution.bias.data.add_(bias)
    model.save_pretrained(folder)
    CLIPSegProcessor(ViTImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory, make_tokenizer) -> dict[str, Path]:
    """Models that mark something, everything and nothing."""
    root = tmp_path_factory.mktemp("clipseg")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return {
        name: write_clipseg(root / name, make_tokenizer(), bias)
        for name, bias in (("some", 0.0), ("all", 1e3), ("none", -1e3))
    }


def test_a_mask_is_what_the_model_marks_for_the_word_at_the_picture_s_size(clipseg, make_pictures):
    folder = make_pictures(3)
    open_picture(folder / "00.png").resize((96, 40)).save(folder / "00.png")
    model = CLIPSegForImageSegmentation.from_pretrained(clipseg["some"]).eval()
    processor = CLIPSegProcessor.from_pretrained(clipseg["some"])
    shares = {}
    for path in sorted(folder.glob("*.png")):
        inputs = processor(text=["cat"], images=[open_picture(path)], return_tensors="pt")
        with torch.no_grad():
            shares[path.name] = model(**inputs).logits.squeeze() > 0
    written = list(draw_masks(folder, "cat", clipseg["some"]))
    assert {path.name for path in written} == {
        name.replace(".png", ".mask.png") for name, share in shares.items() if share.any()
    }
    assert written
    for path in written:
        name = path.name.replace(".mask", "")
        mask, picture = open_picture(path).convert("L"), open_picture(folder / name)
        assert mask.size == picture.size
        expected = Image.fromarray(shares[name].numpy().astype(np.uint8) * 255).resize(picture.size)
        agree = (np.asarray(mask) > 127) == (np.asarray(expected) > 127)
        assert agree.mean() > 0.95


def test_masks_that_are_there_are_left_and_those_written_are_found(clipseg, make_pictures):
    folder = make_pictures(4)
    own = Image.new("L", (64, 64), 0)
    own.paste(255, (0, 0, 9, 9))
    own.save(folder / "01.mask.png")
    cut_out = Image.new("RGBA", (64, 64), (200, 10, 10, 255))
    cut_out.paste((0, 0, 0, 0), (0, 0, 32, 64))
    cut_out.save(folder / "02.png")
    before = (folder / "01.mask.png").read_bytes()
    assert [path.name for path in draw_masks(folder, "cat", clipseg["all"])] == ["00.mask.png", "03.mask.png"]
    assert (folder / "01.mask.png").read_bytes() == before
    assert [picture.mask_file and picture.mask_file.name for picture in find_pictures(folder)] == [
        "00.mask.png",
        "01.mask.png",
        None,
        "03.mask.png",
    ]
    assert np.asarray(open_picture(folder / "00.mask.png")).min() == 255
    assert list(draw_masks(folder, "cat", clipseg["all"])) == [], "once is enough"


def test_pictures_that_share_a_name_get_masks_that_say_whose_they_are(clipseg, make_pictures):
    folder = make_pictures(3)
    open_picture(folder / "00.png").save(folder / "00.jpg")
    written = [path.name for path in draw_masks(folder, "cat", clipseg["all"])]
    assert written == ["00.jpg.mask.png", "00.png.mask.png", "01.mask.png", "02.mask.png"]
    assert [picture.mask_file.name for picture in find_pictures(folder)] == written


def test_a_mask_that_marks_nothing_is_not_written(clipseg, make_pictures):
    folder = make_pictures(3)
    assert list(draw_masks(folder, "cat", clipseg["none"])) == []
    assert not list(folder.glob("*.mask.png"))


def test_what_is_no_clipseg_model_is_refused(clipseg, make_pictures, random_base_folder, tmp_path):
    folder = make_pictures(3)
    for model in (tmp_path / "nowhere", folder, random_base_folder() / "text_encoder"):
        with pytest.raises(RequestError, match="is not a CLIPSeg model"):
            list(draw_masks(folder, "cat", model))
    with pytest.raises(PicturesError, match="no folder of pictures"):
        list(draw_masks(tmp_path / "nowhere", "cat", clipseg["all"]))


def test_a_model_in_the_hub_s_cache_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_on_disk() is None
    kept = tmp_path / f"models--{KNOWN[0].replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    snapshot = kept / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert model_on_disk() == snapshot
