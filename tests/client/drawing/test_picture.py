"""Drawing into a file, with a concept file or a fused model's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mos_client.drawing.picture import changes_and_words, draw_picture
from mos_common.concept_file import read_concept, write_concept
from mos_common.drawing import Drawing, draw
from mos_common.edlora import attached
from mos_common.errors import BaseModelError, ConceptError, DrawingError, FusionError, RequestError, StateError
from mos_common.fused_model import FusedModel, Manifest, fused_tensors
from mos_common.pictures import as_image
from mos_common.regions import Region

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
    folder.mkdir()
    save_file(fused_tensors(model), folder / "adapter.safetensors")
    save_file({token: words.clone() for token, words in model.vocabulary.items()}, folder / "embeddings.safetensors")
    (folder / "manifest.json").write_text(model.manifest.model_dump_json())
    return folder


def fused_of(base, concept, tokens: tuple[str, ...], fingerprint: str = "") -> FusedModel:
    manifest = Manifest(
        base=fingerprint or base.fingerprint, base_name="random", method="sum", settings={}, versions={}, concepts=[]
    )
    return FusedModel(concept.pairs, dict.fromkeys(tokens, concept.words[0].float()), manifest)


def test_a_concept_file_is_drawn_as_its_rounded_self(sixteen, concept_file, draws):
    concept = read_concept(concept_file)
    with attached(sixteen, concept.pairs):
        expected = draw(sixteen, ["a <cat>"], [3], vocabulary={"<cat>": concept.words[0].float()}, how=HOW)
    assert (
        np.abs(draws(concept_file, "a <cat>", seed=3).astype(int) - np.asarray(as_image(expected[0])).astype(int)).max()
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


def test_regions_are_drawn(concept_file, draws):
    everywhere = draws(concept_file, "dog", regions=[Region("a <cat>", 0, 0, 1, 1)]).astype(int)
    assert np.abs(everywhere - draws(concept_file, "a <cat>").astype(int)).max() <= 1


def test_a_concept_without_words_is_called_by_its_class_word(sixteen, make_concept, draws, tmp_path):
    file = tmp_path / "lora.safetensors"
    write_concept(make_concept(sixteen, words=0), file)
    assert len(changes_and_words(file, sixteen)[0]) > 0
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
    with pytest.raises(DrawingError, match=r"not finite.*--dtype float32.*float16"):
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
    assert "no concept is named in the prompt; this model has <cat>" in said
    assert "the negative prompt is not used: guidance is 1, which draws without it" in said
    caplog.clear()
    with caplog.at_level("INFO"):
        draws(concept_file, "a dog", regions=[Region("a <cat>", 0, 0, 0.5, 1)], how=HOW)
    assert not caplog.records
