"""Drawing a picture again: bit-equal in a fresh process, and refused with another model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mos_client.drawing.again import draw_again
from mos_client.drawing.picture import draw_picture
from mos_common.concept_file import content_digest, read_concept, write_concept
from mos_common.drawing import Drawing
from mos_common.errors import BaseModelError, RequestError
from mos_common.fused_model import FusedConcept, FusedModel, Manifest
from mos_common.picture_metadata import metadata, read_recipe
from mos_common.pictures import image_bytes
from mos_common.regions import Region
from mos_common.shapes import Box
from mos_server.models import publish

PROMPT = "a (<cat>:1.2) [dog:<cat>:0.5] in the snow, " + "by night " * 12
HOW = Drawing(steps=2, guidance=2.0, negative="rain", scheduler="DDIMScheduler")


@pytest.fixture
def concept_file(sixteen, make_concept, tmp_path) -> Path:
    folder = tmp_path / "private" / "of alice"
    folder.mkdir(parents=True)
    write_concept(make_concept(sixteen, author="Alice", licence="CC BY 4.0"), folder / "my-cat.safetensors")
    return folder / "my-cat.safetensors"


@pytest.fixture
def drawn(concept_file, random_base_folder, tmp_path):
    """Return a function that draws with the concept into a file of a name."""

    def draw(name: str, **changes: object) -> Path:
        settings = {"base": str(random_base_folder()), "how": HOW, "device": "cpu", **changes}
        draw_picture(concept_file, PROMPT, tmp_path / name, **settings)
        return tmp_path / name

    return draw


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from mos_client.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_picture_is_bit_equal_in_a_fresh_process(drawn, concept_file, random_base_folder, tmp_path):
    """With weights, changes, two chunks, a region, a scheduler, and other threads there."""
    picture = drawn("x.png", regions=[Region("a <cat>", Box(0, 0, 0.5, 1))], seeds=(5,))
    again = run("draw", concept_file, "--again", picture, "--base", random_base_folder(), "--out", tmp_path / "y.webp")
    assert again.returncode == 0, again.stderr
    assert f"y.webp: bit-equal to {picture} as it was drawn" in again.stdout
    assert np.array_equal(pixels(tmp_path / "y.webp"), pixels(picture))
    first, second = read_recipe(picture), read_recipe(tmp_path / "y.webp")
    assert first == second


@pytest.mark.parametrize("place", [0, 2])
def test_a_picture_of_a_batch_is_drawn_in_its_batch_and_place(drawn, concept_file, random_base_folder, tmp_path, place):
    sheet = drawn("x.png", seeds=(4, 9, 1))
    picture = tmp_path / f"x-{(4, 9, 1)[place]}.png"
    assert read_recipe(picture).place == place
    said = draw_again(concept_file, picture, tmp_path / "y.png", base=str(random_base_folder()))
    assert said.same
    assert np.array_equal(pixels(tmp_path / "y.png"), pixels(picture))
    assert draw_again(concept_file, sheet, tmp_path / "z.png", base=str(random_base_folder())).same


def test_a_jpeg_is_known_by_the_digest_of_what_was_drawn(drawn, concept_file, random_base_folder, tmp_path):
    picture, base = drawn("x.jpg"), str(random_base_folder())
    assert draw_again(concept_file, picture, tmp_path / "y.png", base=base).said_of(picture).startswith("bit-equal")
    other = read_recipe(picture).model_copy(update={"pixels": "0" * 64})
    picture.write_bytes(image_bytes(Image.open(picture).copy(), "JPEG", **metadata("JPEG", other)))
    said = draw_again(concept_file, picture, tmp_path / "y.png", base=base)
    assert "does not hold its pixels exactly, so by how much is unknown" in said.said_of(picture)


@pytest.mark.parametrize(
    ("by", "held"), [(1, r"not bit-equal to .*, but within 1/255 \(torch 1\.0 then, "), (9, "by up to 9/255")]
)
def test_what_held_is_said_with_what_changed(drawn, concept_file, random_base_folder, tmp_path, by, held):
    """As if other versions had drawn it: pixels and digest are not those of here."""
    picture = drawn("x.png")
    recipe = read_recipe(picture)
    changed = pixels(picture).copy()
    changed[0, 0, 0] = changed[0, 0, 0] + by if changed[0, 0, 0] < 128 else changed[0, 0, 0] - by
    machine = recipe.machine.model_copy(update={"versions": recipe.machine.versions | {"torch": "1.0"}})
    other = recipe.model_copy(update={"pixels": "0" * 64, "machine": machine})
    picture.write_bytes(image_bytes(Image.fromarray(changed), "PNG", **metadata("PNG", other)))
    said = draw_again(concept_file, picture, tmp_path / "y.png", base=str(random_base_folder()))
    assert said.most == by
    assert re.search(held, said.said_of(picture))


def test_pixels_that_were_painted_over_are_told(drawn, concept_file, random_base_folder, tmp_path):
    picture = drawn("x.png")
    recipe, changed = read_recipe(picture), pixels(picture).copy()
    changed[:4] = 0
    picture.write_bytes(image_bytes(Image.fromarray(changed), "PNG", **metadata("PNG", recipe)))
    said = draw_again(concept_file, picture, tmp_path / "y.png", base=str(random_base_folder()))
    assert said.said_of(picture).endswith("own pixels were changed since")


def test_another_model_is_refused_and_both_are_named(drawn, sixteen, make_concept, concept_file, tmp_path):
    picture, other = drawn("x.png"), tmp_path / "other.safetensors"
    write_concept(make_concept(sixteen, seed=1), other)
    digests = [content_digest(read_concept(file))[:12] for file in (concept_file, other)]
    with pytest.raises(
        RequestError, match=rf"<cat> \({digests[0]}\), and {other} is {digests[1]}: give the model that"
    ):
        draw_again(other, picture, tmp_path / "y.png")
    assert not (tmp_path / "y.png").exists()


def test_another_base_is_refused_and_both_are_named(drawn, concept_file, sixteen, tiny, tmp_path):
    picture = drawn("x.png")
    with pytest.raises(BaseModelError, match=rf"{sixteen.fingerprint[:12]}\), not on tiny \({tiny.fingerprint[:12]}\)"):
        draw_again(concept_file, picture, tmp_path / "y.png", base="tiny")


def test_a_fused_model_is_known_by_its_manifest_and_concepts_by_author_and_licence(
    sixteen, make_concept, random_base_folder, tmp_path
):
    concepts = [
        FusedConcept(
            token=f"<{name}/cat>", participant=name, name="<cat>", class_word="cat", digest=f"{i}" * 64,
            licence=licence, author=name.title(), survival={},
        )
        for i, (name, licence) in enumerate([("alice", "CC0"), ("bob", "none")])
    ]  # fmt: skip
    concept = make_concept(sixteen)
    manifest = Manifest(
        base=sixteen.fingerprint, base_name="random", method="sum", settings={}, versions={}, concepts=concepts
    )
    words = dict.fromkeys(("<alice/cat>", "<bob/cat>"), concept.words[0].float())
    folder = tmp_path / "fused"
    publish.write_fused(FusedModel(concept.pairs, words, manifest), folder)
    base, out = str(random_base_folder()), tmp_path / "x.png"
    draw_picture(folder, "[<bob/cat>:x:0.5]", out, base=base, how=Drawing(steps=2), device="cpu")
    recipe = read_recipe(out)
    assert [(each.token, each.author, each.licence) for each in recipe.concepts] == [("<bob/cat>", "Bob", "none")]
    assert draw_again(folder, out, tmp_path / "y.png", base=base).same
    other = manifest.model_copy(update={"method": "average"})
    publish.write_fused(FusedModel(concept.pairs, words, other), tmp_path / "other")
    with pytest.raises(RequestError, match="give the model that drew it"):
        draw_again(tmp_path / "other", out, tmp_path / "z.png", base=base)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp"])
def test_no_private_path_user_or_host_is_in_the_file(drawn, name, monkeypatch, random_base_folder, tmp_path):
    import getpass
    import platform

    data = drawn(name).read_bytes() + drawn(f"y{Path(name).suffix}", seeds=(1, 2)).read_bytes()
    data += data.decode("utf-16-be", "ignore").encode() + data[1:].decode("utf-16-be", "ignore").encode()
    named = [name for name in (platform.node(), getpass.getuser()) if len(name) > 4]  # "root" is a word
    for private in ("of alice", "my-cat", str(tmp_path), str(random_base_folder().parent), *named):
        assert private.encode() not in data, private


def test_flags_of_a_new_drawing_are_refused_with_again(tmp_path):
    for flags in (["a cat"], ["--steps", "3"], ["--count", "2"], ["--seed", "4"], ["--set", "steps=3"]):
        refused = run("draw", tmp_path, *flags, "--again", tmp_path / "x.png", "--out", tmp_path / "y.png")
        assert refused.returncode == 2
        assert "--again draws what the picture's recipe says" in refused.stderr
    refused = run("draw", tmp_path, "--out", tmp_path / "y.png")
    assert refused.returncode == 2
    assert "nothing to draw: give a prompt" in refused.stderr


def test_threads_are_those_of_the_recipe_and_then_as_before(
    drawn, concept_file, random_base_folder, tmp_path, monkeypatch
):
    picture = drawn("x.png")
    recipe, set_to = read_recipe(picture), []
    other = recipe.model_copy(update={"machine": recipe.machine.model_copy(update={"threads": 2})})
    picture.write_bytes(image_bytes(Image.open(picture).copy(), "PNG", **metadata("PNG", other)))
    own, setter = torch.get_num_threads(), torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda count: (set_to.append(count), setter(count)))
    draw_again(concept_file, picture, tmp_path / "y.png", base=str(random_base_folder()))
    assert set_to == [2, own]
    assert read_recipe(tmp_path / "y.png").machine.threads == 2
