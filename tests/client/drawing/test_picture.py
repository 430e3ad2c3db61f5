"""Drawing into a file, with a concept file or a fused model's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mos_client.drawing.again import draw_again
from mos_client.drawing.picture import draw_picture
from mos_common.concept_file import read_concept, write_concept
from mos_common.drawing import Drawing, draw
from mos_common.edlora import attached
from mos_common.errors import (
    BaseModelError,
    ConceptError,
    DrawingError,
    FusionError,
    RequestError,
    StateError,
    TrustError,
)
from mos_common.fused_model import FusedModel, Manifest
from mos_common.layers import Group
from mos_common.own.names import own_folder
from mos_common.pictures import as_image
from mos_common.pipeline.models import open_model
from mos_common.regions import Region
from mos_common.shapes import Box, Mask
from mos_server.fusion.settings import FusionSettings
from mos_server.models import publish
from mos_server.models.fuse_files import fuse_files
from mos_server.state.artefacts import remove_own

HOW = Drawing(steps=2)


@pytest.fixture
def concept_file(sixteen, make_concept, tmp_path) -> Path:
    write_concept(make_concept(sixteen), tmp_path / "cat.safetensors")
    return tmp_path / "cat.safetensors"


@pytest.fixture
def draws(random_base_folder, tmp_path):
    """Return a function that draws on the random base and returns the pixels."""

    def run(model: Path, prompt: str, **changes: object) -> np.ndarray:
        settings = {"base": str(random_base_folder()), "how": HOW, "device": "cpu", **changes}
        draw_picture(model, prompt, tmp_path / "picture.png", **settings)
        with Image.open(tmp_path / "picture.png") as picture:
            assert picture.format == "PNG"
            return np.asarray(picture)

    return run


def write_fused(folder: Path, model: FusedModel) -> Path:
    publish.write_fused(model, folder)
    return folder


def fused_of(base, concept, tokens: tuple[str, ...], fingerprint: str = "") -> FusedModel:
    manifest = Manifest(
        base=fingerprint or base.fingerprint, base_name="random", method="sum", settings={}, versions={}, concepts=[]
    )
    return FusedModel(concept.pairs, dict.fromkeys(tokens, concept.words[0].float()), manifest)


def with_own_changes(folder: Path, base, make_concept) -> tuple[Path, dict]:
    """Fuse two concepts by their mean into `folder`, with own changes beside; return these too."""
    for seed, name in enumerate(("<cat>", "<dog>")):
        write_concept(make_concept(base, name, seed=seed), folder.parent / f"{seed}.safetensors")
    files = [folder.parent / f"{seed}.safetensors" for seed in (0, 1)]
    settings = FusionSettings().changed(method="average")
    fuse_files(files, folder, base=base.name, settings=settings, device="cpu", own=True)
    spatial = {layer.name for layer in base.layout.by_group[Group.SPATIAL]}
    concepts = [read_concept(file) for file in files]
    return folder, {
        each.name: {name: pair for name, pair in each.pairs.items() if name in spatial} for each in concepts
    }


def test_a_concept_file_is_drawn_as_its_rounded_self(sixteen, concept_file, draws):
    concept = read_concept(concept_file)
    with attached(sixteen, concept.pairs):
        expected = draw(sixteen, ["a <cat>"], [3], vocabulary={"<cat>": concept.words[0].float()}, how=HOW)
    assert (
        np.abs(
            draws(concept_file, "a <cat>", seeds=(3,)).astype(int) - np.asarray(as_image(expected[0])).astype(int)
        ).max()
        <= 1
    )


def test_a_fused_folder_is_drawn_by_name_and_by_participant(sixteen, make_concept, concept_file, draws, tmp_path):
    """A model of one concept draws what the concept's own file draws."""
    folder = write_fused(tmp_path / "fused", fused_of(sixteen, read_concept(concept_file), ("<alice/cat>",)))
    alone = draws(concept_file, "a <cat>").astype(int)
    assert np.abs(draws(folder, "a <cat>").astype(int) - alone).max() <= 1
    assert np.abs(draws(folder, "a <alice/cat>").astype(int) - alone).max() <= 1


def test_an_ambiguous_name_lists_the_participants(sixteen, make_concept, draws, tmp_path):
    folder = write_fused(tmp_path / "fused", fused_of(sixteen, make_concept(sixteen), ("<alice/cat>", "<bob/cat>")))
    with pytest.raises(RequestError, match=r"<cat> could be any of <alice/cat>, <bob/cat>"):
        draws(folder, "a <cat>")


def test_where_no_concept_is_named_the_picture_is_the_base_s_to_the_bit(
    sixteen, make_concept, concept_file, draws, tmp_path
):
    """With a fused model, with a concept file, with own changes beside, and with regions."""
    model, own = with_own_changes(tmp_path / "fused", sixteen, make_concept)
    assert own
    regions = [Region("a dog", Box(0, 0, 0.5, 1))]
    for places in ([], regions):
        expected = np.asarray(as_image(draw(sixteen, ["a cat"], [1], regions=places, how=HOW)[0]))
        for drawn_with in (model, concept_file):
            assert np.array_equal(draws(drawn_with, "a cat", seeds=[1], regions=places), expected)
    assert not np.array_equal(draws(model, "a cat", seeds=[1], how=replace(HOW, negative="a <cat>")), expected)


def test_own_changes_beside_a_model_draw_what_is_named(sixteen, make_concept, draws, tmp_path):
    """One name is drawn by its own spatial changes, and with `own=False` by the fused model."""
    model, own = with_own_changes(tmp_path / "fused", sixteen, make_concept)
    fused = open_model(model, sixteen)
    for changes, flag in ((fused.changes | own["<cat>"], True), (fused.changes, False)):
        with attached(sixteen, changes):
            expected = draw(sixteen, ["a <cat>"], [2], vocabulary=fused.vocabulary, how=HOW)[0]
        assert np.array_equal(draws(model, "a <cat>", seeds=[2], own=flag), np.asarray(as_image(expected)))


def test_a_picture_with_own_changes_is_drawn_again_with_them_or_not_at_all(
    sixteen, make_concept, draws, tmp_path, random_base_folder
):
    """Its recipe names them; without them the picture would be another one."""
    model, _ = with_own_changes(tmp_path / "fused", sixteen, make_concept)
    drawn = draws(model, "a <cat>")
    again = {"base": str(random_base_folder()), "device": "cpu"}
    compared = draw_again(model, tmp_path / "picture.png", tmp_path / "again.png", **again)
    assert compared.same
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png")), drawn)
    remove_own(model, ["<cat>"])
    with pytest.raises(RequestError, match=r"with the own changes of <cat>, which are not beside .*--own"):
        draw_again(model, tmp_path / "picture.png", tmp_path / "again.png", **again)


def test_own_changes_that_are_not_here_are_drawn_fused_and_said(sixteen, make_concept, draws, tmp_path, caplog):
    model, _ = with_own_changes(tmp_path / "fused", sixteen, make_concept)
    fused = draws(model, "a <cat>", own=False)
    remove_own(model, ["<cat>"])
    with caplog.at_level("INFO"):
        assert np.array_equal(draws(model, "a <cat>"), fused)
    assert (
        "the own changes of <cat> are not here: the fused model draws it (download --own fetches them)" in caplog.text
    )


def test_own_changes_that_the_model_does_not_name_are_refused(sixteen, make_concept, draws, tmp_path):
    model, _ = with_own_changes(tmp_path / "fused", sixteen, make_concept)
    own_folder(model, "<dog>").rename(tmp_path / "aside")
    own_folder(model, "<cat>").rename(own_folder(model, "<dog>"))
    with pytest.raises(TrustError, match=r"dog is not what the model names for <dog>"):
        draws(model, "a <dog>")
    draws(model, "a <dog>", own=False)


def test_regions_are_drawn(concept_file, draws):
    everywhere = draws(concept_file, "dog", regions=[Region("a <cat>", Box(0, 0, 1, 1))]).astype(int)
    assert np.abs(everywhere - draws(concept_file, "a <cat>").astype(int)).max() <= 1


def test_a_concept_without_words_is_called_by_its_class_word(sixteen, make_concept, draws, tmp_path):
    file = tmp_path / "lora.safetensors"
    write_concept(make_concept(sixteen, words=0), file)
    assert len(open_model(file, sixteen).changes) > 0
    assert np.array_equal(draws(file, "a <cat> here"), draws(file, "a cat here"))


def test_progress_is_reported(concept_file, draws):
    progress = []
    draws(concept_file, "a <cat>", on_step=lambda done, total: progress.append((done, total)))
    assert progress[-1][0] == progress[-1][1] == len(progress)


def test_what_cannot_be_drawn_is_named(concept_file, draws, tmp_path, random_base_folder):
    with pytest.raises(RequestError, match=r"no model at .*nowhere"):
        draws(tmp_path / "nowhere", "a cat")
    with pytest.raises(RequestError, match="unknown concept <dog>; known: <cat>"):
        draws(concept_file, "a <dog>")
    with pytest.raises(FusionError, match=r"is not a fused model: manifest\.json is missing"):
        draws(tmp_path, "a cat")
    with pytest.raises(ConceptError, match=r"not a usable concept file"):
        (tmp_path / "bad.safetensors").write_bytes(b"0" * 100)
        draws(tmp_path / "bad.safetensors", "a cat")
    with pytest.raises(ConceptError, match="use the base it was tuned on"):
        draws(concept_file, "a <cat>", base=str(random_base_folder(seed=1)))


def test_a_fused_model_of_another_base_is_refused(sixteen, make_concept, draws, tmp_path):
    folder = write_fused(tmp_path / "fused", fused_of(sixteen, make_concept(sixteen), ("<cat>",), "0" * 64))
    with pytest.raises(BaseModelError, match="give that base model with --base"):
        draws(folder, "a <cat>")


def test_a_fused_model_that_names_a_layer_the_base_lacks_is_refused(sixteen, make_concept, draws, tmp_path):
    concept = make_concept(sixteen)
    concept = replace(concept, pairs={"unet.nowhere": next(iter(concept.pairs.values()))})
    folder = write_fused(tmp_path / "fused", fused_of(sixteen, concept, ("<cat>",)))
    with pytest.raises(ConceptError, match=r"unet\.nowhere is not a layer"):
        draws(folder, "a <cat>")


def test_a_place_that_cannot_be_written_is_said_before_drawing(concept_file, tmp_path):
    def never(_done: int, _total: int) -> None:
        pytest.fail("drew")

    for out in (concept_file / "picture.png", tmp_path):
        with pytest.raises(StateError):
            draw_picture(concept_file, "a <cat>", out, how=HOW, on_step=never)


def test_pixels_go_from_black_at_minus_one_to_white_at_one():
    picture = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(3, 1, 5)
    assert np.asarray(as_image(picture))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_picture_that_is_not_finite_is_an_error_and_no_file(draws, sixteen, make_concept, tmp_path):
    """float16 has no number above 65504: such changes draw NaN, which a PNG would show as black."""
    write_concept(make_concept(sixteen, strength=3e4), tmp_path / "huge.safetensors")
    with pytest.raises(
        DrawingError, match=r"not finite from step .*--dtype bfloat16 or float32 \(it was drawn in float16"
    ):
        draws(tmp_path / "huge.safetensors", "a <cat>", dtype="float16")
    assert not (tmp_path / "picture.png").exists()


def test_a_guidance_beyond_all_numbers_is_an_error_and_no_file(draws, concept_file, tmp_path):
    with pytest.raises(DrawingError, match="lower --guidance"):
        draws(concept_file, "a <cat>", how=Drawing(steps=2, guidance=1e38))
    assert not (tmp_path / "picture.png").exists()


def test_what_is_asked_and_changes_nothing_is_said(draws, concept_file, caplog):
    with caplog.at_level("INFO"):
        draws(concept_file, "a cat", how=Drawing(steps=1, guidance=1, negative="rain"))
    said = [record.getMessage() for record in caplog.records]
    assert "no concept is named in the prompt, so the base alone draws it; this model has <cat>" in said
    assert "the negative prompt is not used: guidance is 1, which draws without it" in said
    caplog.clear()
    with caplog.at_level("INFO"):
        draws(concept_file, "a dog", regions=[Region("a <cat>", Box(0, 0, 0.5, 1))], how=HOW)
    assert not caplog.records


def test_concepts_without_regions_are_laid_out(sixteen, concept_file, draws):
    """Alone side by side a concept has the whole picture; by attention it has a part of it."""
    alone = draws(concept_file, "a <cat>").astype(int)
    assert np.abs(draws(concept_file, "a <cat>", auto_layout="side-by-side").astype(int) - alone).max() <= 1
    assert draws(concept_file, "a <cat>", auto_layout="attention").shape == alone.shape


def test_a_mask_of_another_shape_is_refused_before_drawing(concept_file, draws):
    region = Region("a <cat>", Mask(4, 2, bytes([255]) * 8, "wide.png"))
    with pytest.raises(RequestError, match=r"mask wide\.png is 4 x 2, the picture 16 x 16"):
        draws(concept_file, "a dog", regions=[region])


def test_a_region_that_others_hide_is_said(concept_file, draws, caplog):
    hidden = Region("a tree", Box(0, 0, 1, 1))
    draws(concept_file, "a <cat>", regions=[hidden, Region("a <cat>", Box(0, 0, 1, 1), priority=1)])
    assert "region 'a tree' is hardly seen: it is smaller than a cell, hidden by others, or keeps all" in caplog.text
    assert "region 'a <cat>'" not in caplog.text
