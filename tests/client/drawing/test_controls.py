"""Conditions on the command line: what is read, drawn, told in the recipe and drawn again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from mos_client.drawing.again import draw_again
from mos_client.drawing.controls import AskedControl, parse_controls, read_controls
from mos_client.drawing.picture import draw_picture
from mos_client.drawing.scenes import read_scene
from mos_common.concept_file import write_concept
from mos_common.drawing import Drawing
from mos_common.errors import RequestError
from mos_common.picture_metadata import read_recipe
from mos_common.recipes import as_parameters
from mos_common.regions import Region
from mos_common.shapes import Box
from reference.control_adapters import picture, write_controlnet, write_t2i

HOW = Drawing(steps=2, guidance=2.0, scheduler="DDIMScheduler")
LEFT = Region("a <cat>", Box(0, 0, 0.5, 1))


@pytest.fixture
def files(sixteen, make_concept, tmp_path) -> Path:
    """A folder with a concept, two adapters and two pictures."""
    write_concept(make_concept(sixteen), tmp_path / "cat.safetensors")
    write_t2i(tmp_path / "t2i")
    write_controlnet(tmp_path / "net", sixteen)
    picture(32, 32).save(tmp_path / "one.png")
    picture(32, 32, seed=1).save(tmp_path / "other.png")
    return tmp_path


@pytest.fixture
def draw(files, random_base_folder):
    def drawn(name: str, *controls: str, **changes: object) -> Path:
        asked = parse_controls([control.replace("HERE", str(files)) for control in controls])
        settings = {"base": str(random_base_folder()), "how": HOW, "device": "cpu", "controls": asked, **changes}
        draw_picture(files / "cat.safetensors", "a <cat>", files / name, **settings)
        return files / name

    return drawn


def pixels(file: Path) -> bytes:
    with Image.open(file) as opened:
        return opened.convert("RGB").tobytes()


def test_everything_after_at_is_read(files):
    (asked,) = parse_controls([f"{files / 't2i'}: {files / 'one.png'} @ weight=0.8, start=0.1,end=0.6, region=2"])
    assert asked == AskedControl(str(files / "t2i"), files / "one.png", 0.8, 0.1, 0.6, 2)
    (plain,) = parse_controls([f"{files / 't2i'}: {files / 'one.png'}"])
    assert plain == AskedControl(str(files / "t2i"), files / "one.png")
    (made,) = parse_controls([f"sketch: {files / 'one.png'} @ make=edges"])
    assert made.edges and made.folder.name == "sketch"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one.png", 'expected "ADAPTER: PICTURE"'),
        ("HERE/t2i: ", 'expected "ADAPTER: PICTURE"'),
        ("HERE/t2i: HERE/one.png @ weigth=1", "'weigth=1': expected each once of weight, start"),
        ("HERE/t2i: HERE/one.png @ weight=1, weight=1", "expected each once"),
        ("HERE/t2i: HERE/one.png @ weight=much", "weight=much: expected a number"),
        ("HERE/t2i: HERE/one.png @ region=1.5", "region=1.5: expected the number of a region"),
        ("HERE/t2i: HERE/one.png @ make=depth", "make=depth: expected edges"),
        ("HERE/none: HERE/one.png", "no adapter at .*none: give a folder in diffusers' layout, or for tiny sketch"),
        ("HERE/t2i: HERE/none.png", "no picture of a condition at .*none.png"),
    ],
)
def test_other_texts_are_refused_with_what_is_wrong(text, said, files):
    with pytest.raises(RequestError, match=said):
        parse_controls([text.replace("HERE", str(files))])


def test_every_condition_changes_the_picture_and_a_weight_of_0_does_not(draw):
    without = pixels(draw("without.png"))
    drawn = [pixels(draw(f"{kind}.png", f"HERE/{kind}: HERE/one.png")) for kind in ("t2i", "net")]
    both = pixels(draw("both.png", "HERE/t2i: HERE/one.png", "HERE/net: HERE/one.png"))
    assert len({without, *drawn, both}) == 4
    assert pixels(draw("none.png", "HERE/t2i: HERE/one.png @ weight=0")) == without


def test_a_picture_with_conditions_is_drawn_again_bit_for_bit(draw, files, random_base_folder):
    texts = ("HERE/t2i: HERE/one.png @ weight=0.7, region=1, end=0.5", "HERE/net: HERE/other.png @ start=0.5")
    first = draw("first.png", *texts, regions=[LEFT])
    told = read_recipe(first).controls
    assert [(each.name, each.weight, each.start, each.end, each.region) for each in told] == [
        ("t2i", 0.7, 0.0, 0.5, 1),
        ("net", 1.0, 0.5, 1.0, None),
    ]
    assert str(files) not in first.read_bytes().decode("latin-1")
    assert "Controls: t2i net," in as_parameters(read_recipe(first))
    again = [text.partition(" @ ")[0].replace("HERE", str(files)) for text in texts]
    place = {"base": str(random_base_folder()), "device": "cpu"}
    assert draw_again(files / "cat.safetensors", first, files / "b.png", controls=again, **place).same


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], r"drawn with 1 controls \(t2i\) and 0 are given"),
        (["HERE/t2i: HERE/other.png"], "other.png is not the picture of the condition t2i that was drawn with"),
        (["HERE/net: HERE/one.png"], "net is not the adapter of the condition t2i"),
        (["HERE/t2i: HERE/one.png @ weight=1.5"], "leave out what is after @"),
    ],
)
def test_other_files_are_not_drawn_with_again(given, said, draw, files, random_base_folder):
    first = draw("first.png", "HERE/t2i: HERE/one.png @ weight=0.5")
    texts = [text.replace("HERE", str(files)) for text in given]
    place = {"base": str(random_base_folder()), "device": "cpu"}
    with pytest.raises(RequestError, match=said):
        draw_again(files / "cat.safetensors", first, files / "b.png", controls=texts, **place)


def test_a_picture_of_another_shape_and_a_region_that_is_not_there_are_refused(draw, files):
    picture(16, 32).save(files / "wide.png")
    with pytest.raises(RequestError, match=re.escape("wide.png of a condition is 32 x 16, the drawing 16 x 16")):
        draw("x.png", "HERE/t2i: HERE/wide.png")
    with pytest.raises(RequestError, match="no region 2; known: 1 to 1"):
        draw("x.png", "HERE/t2i: HERE/one.png @ region=2", regions=[LEFT])
    with pytest.raises(RequestError, match="no region 1; known: none"):
        draw("x.png", "HERE/t2i: HERE/one.png @ region=1")
    assert not (files / "x.png").exists()


def test_edges_are_read_of_a_picture(draw, files):
    """A picture of its edges, and edges made of the picture, draw the same."""
    cv2 = pytest.importorskip("cv2")
    image = Image.new("RGB", (16, 16), "white")
    image.paste("black", (4, 4, 12, 12))
    image.save(files / "square.png")
    with Image.open(files / "square.png") as square:
        import numpy as np

        Image.fromarray(cv2.Canny(np.asarray(square), 100, 200)).save(files / "edges.png")
    made = draw("made.png", "HERE/t2i: HERE/square.png @ make=edges")
    assert pixels(made) == pixels(draw("given.png", "HERE/t2i: HERE/edges.png"))
    assert read_recipe(made).controls[0].edges


def test_without_opencv_the_extra_is_named(draw, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(RequestError, match=re.escape('pip install "federated-mix-of-show[control]"')):
        draw("made.png", "HERE/t2i: HERE/one.png @ make=edges")


def test_the_example_with_a_sketch_is_read_for_tiny(tiny):
    scene = read_scene(Path(__file__).parents[3] / "docs" / "examples" / "three-with-a-sketch.yaml")
    (read,) = read_controls(scene.controls, tiny, scene.settings["height"], scene.settings["width"])
    assert (read.told.name, read.weight, read.end) == ("sketch", 1.0, 0.8)
    assert read.pixels(64, 192).mean() > 0.02  # there are lines
