"""Scene files: every key does what it says, and what is no scene is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mos_client.drawing.controls import AskedControl
from mos_client.drawing.scenes import Scene, SceneControl, SceneFile, SceneRegion, read_scene
from mos_common.drawing import Drawing, draw
from mos_common.errors import MosError, RequestError
from mos_common.regions import Region
from mos_common.shapes import Box

TOP = Path(__file__).parents[3]
EXAMPLES = sorted(file for file in (TOP / "docs" / "examples").iterdir() if file.suffix in (".yaml", ".json"))
WHOLE = {
    "prompt": "a cat and a dog",
    "negative": "snow",
    "width": 128,
    "height": 64,
    "steps": 6,
    "guidance": 3,
    "scheduler": "DDIMScheduler",
    "seed": 5,
    "layout": "painted.png",
    "controls": [{"adapter": "net", "picture": "masks/dog.png", "weight": 0.8, "start": 0.2, "end": 0.6}],
    "regions": [
        {
            "prompt": "a <cat>",
            "box": [0, 0, 0.5, 1],
            "negative": "rain",
            "weight": 2,
            "priority": -1,
            "edge": 0.1,
            "keeps": 0.2,
            "start": 0.1,
            "end": 0.9,
            "controls": [{"adapter": "sketch", "picture": "painted.png", "make": "edges"}],
        },
        {"prompt": "a <dog>", "mask": "masks/dog.png"},
        {"prompt": "a tree", "colour": "#ff0000"},
    ],
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the pictures and the adapter that WHOLE names, seen from it."""
    (tmp_path / "net").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("L", (4, 2), 255).save(tmp_path / "masks" / "dog.png")
    Image.new("RGB", (4, 2), "red").save(tmp_path / "painted.png")
    return tmp_path


def scene_of(folder: Path, content: object, name: str = "scene.yaml") -> Scene:
    write = json.dumps if name.endswith(".json") else yaml.safe_dump
    (folder / name).write_text(content if isinstance(content, str) else write(content), encoding="utf-8")
    return read_scene(folder / name)


@pytest.mark.parametrize("name", ["scene.yaml", "scene.yml", "scene.json"])
def test_a_whole_scene_comes_back_as_it_was_written(folder, name):
    scene = scene_of(folder, WHOLE, name)
    assert (scene.prompt, scene.seed, scene.auto_layout) == ("a cat and a dog", 5, None)
    drawing = Drawing(steps=6, guidance=3, height=64, width=128, negative="snow", scheduler="DDIMScheduler")
    assert Drawing(**scene.settings) == drawing
    first, second, third = scene.regions
    assert first == Region("a <cat>", Box(0, 0, 0.5, 1), "rain", 2, -1, 0.1, 0.2, 0.1, 0.9)
    assert (second.prompt, second.shape.cover(1, 1).tolist()) == ("a <dog>", [[1]])
    assert scene.controls == (
        AskedControl(str(folder / "net"), folder / "masks" / "dog.png", 0.8, 0.2, 0.6),
        AskedControl("sketch", folder / "painted.png", region=1, edges=True),
    )
    assert (third.prompt, third.shape.cover(1, 1).tolist()) == ("a tree", [[1]])


def test_the_example_here_has_every_key_but_those_that_exclude_one_of_it():
    assert set(SceneFile.model_fields) - set(WHOLE) == {"auto_layout", "seeds"}
    assert set().union(*WHOLE["regions"]) == set(SceneRegion.model_fields)


def test_what_a_scene_leaves_out_is_the_default(folder):
    scene = scene_of(folder, "prompt: a cat")
    assert scene == Scene("a cat", (), {})
    assert scene_of(folder, {"prompt": "a", "regions": [{"prompt": "b", "box": [0, 0, 1, 1]}]}).regions == (
        Region("b", Box(0, 0, 1, 1)),
    )


def test_every_field_of_a_region_is_a_key_of_a_scene_with_its_default(folder):
    """The schema and the value say the same: a scene can tell all that Python can."""
    names = {name for name in Region.__dataclass_fields__ if name != "shape"}
    assert names | {"box", "mask", "colour", "controls"} == set(SceneRegion.model_fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"promt": "x"}, r"unknown key 'promt': did you mean prompt\? known: prompt, negative, width"),
        ({"regions": [{"prompt": "x", "box": [0, 0, 1, 1], "wieght": 2}]}, r"'regions\[1\].wieght': did you mean weig"),
        ({"prompt": None}, r"prompt is None: expected text"),
        ({"negative": False}, r"negative is False: expected text; put it in quotes"),
        ({"steps": "many"}, r"steps is 'many': input should be a valid integer"),
        ({"steps": True}, r"steps is True: input should be a valid integer"),
        ({"guidance": float("inf")}, r"guidance is inf: input should be a finite number"),
        ({"seed": -1}, r"seed is -1: input should be greater than or equal to 0"),
        ({"seed": 2**63}, r"seed is 9223372036854775808: input should be less"),
        ({"seed": 1, "seeds": "0-3"}, r"seed and seeds exclude each other: give one of them"),
        ({"seeds": "3-1"}, r"seeds 3-1: expected a range upwards, of at most 64"),
        ({"seeds": "many"}, r"seeds many: expected seeds and ranges of them"),
        ({"seeds": 7}, r"seeds is 7: expected text; put it in quotes"),
        ({"auto_layout": "left"}, r"auto_layout is 'left': input should be 'side-by-side' or 'attention'"),
        ({"regions": "none"}, r"regions is 'none': input should be a valid list"),
        ({"regions": ["x"]}, r"regions\[1\] is str: expected keys such as prompt"),
        ({"regions": [{"box": [0, 0, 1, 1]}]}, r"regions\[1\].prompt is missing: what to draw in it"),
        ({"regions": [{"prompt": "x"}]}, r"region 1 has no shape: give it one of box, mask, colour"),
        ({"regions": [{"prompt": "x", "box": [0, 0, 1, 1], "mask": "m.png"}]}, r"region 1 has box and mask: give"),
        ({"regions": [{"prompt": "x", "box": [0, 0, 1]}]}, r"regions\[1\].box is \[0, 0, 1\]: list should have at"),
        ({"regions": [{"prompt": "x", "box": [0.5, 0, 0, 1]}]}, r"box 0.5,0,0,1: expected x0,y0,x1,y1 with x0 < x1"),
        ({"regions": [{"prompt": "x", "box": [0, 0, 1, 1], "edge": 2}]}, r"region 'x': edge 2: expected a share"),
        ({"regions": [{"prompt": "x", "mask": "no.png"}]}, r"no mask at .*no\.png"),
        ({"regions": [{"prompt": "x", "mask": "no" * 200}]}, "no mask at"),  # longer than a name can be
        ({"regions": [{"prompt": "x", "colour": "#ff0000"}], "layout": "no" * 200}, "no painted picture at"),
        ({"controls": [{"adapter": "no" * 200, "picture": "no.png"}]}, "no adapter at"),
        ({"controls": [{"adapter": "sketch", "picture": "no" * 200}]}, "no picture of a condition at"),
        ({"regions": [{"prompt": "x", "colour": "red"}]}, r"a region has the colour red: name the painted picture"),
        (
            {"auto_layout": "attention", "regions": [{"prompt": "x", "box": [0, 0, 1, 1]}]},
            r"exclude each other: give one",
        ),
        ({"layout": "painted.png"}, r"layout painted\.png is not used: give regions a colour of it"),
        ({"regions": [{"prompt": "x", "box": [0, 0, 1, 1]} for _ in range(33)]}, r"regions is .*at most 32 items"),
    ],
)
def test_what_is_no_scene_is_refused_by_file_and_place(folder, change, message):
    with pytest.raises(RequestError, match=rf"scene .*scene\.yaml: .*{message}"):
        scene_of(folder, {"prompt": "a cat", **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt: [", r"is not YAML \(line 1\)"),
        ("prompt: a\nprompt: b", "is not YAML: 'prompt' is given twice"),
        ("a: &x [lol]\nb: *x", r"is not YAML \(line 2\): \*x: aliases are not read"),
        ("prompt: !!python/object/apply:os.system [true]", "is not YAML.*could not determine a constructor"),
        ("prompt: " + "[" * 50 + "]" * 50, "it is nested too deep"),
        ("- a\n- b", "it is list: expected keys such as prompt"),
        ("", "it is NoneType: expected keys such as prompt"),
        ("prompt: 2026-99-99", "is not YAML: month must be in 1..12"),
        ("prompt: a\0", "holds zero bytes"),
        ("prompt: " + "a" * (1 << 17), "is larger than 64 KiB"),
        ("prompt: x\nregions:\n - prompt: y\n   colour: #ff0000", r"region 1 has no shape.*in quotes: \"#ff0000\""),
    ],
)
def test_hostile_and_broken_yaml_ends_in_a_sentence(folder, text, message):
    with pytest.raises(RequestError, match=message):
        scene_of(folder, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"', "is not JSON"),
        ('{"prompt": "a", "prompt": "b"}', "is not JSON: 'prompt' is given twice"),
        ('{"prompt": ' + "[" * 20000 + "]" * 20000 + "}", "is not JSON|expected text"),
        ('{"prompt": "a", "guidance": NaN}', "guidance is nan"),
    ],
)
def test_hostile_and_broken_json_ends_in_a_sentence(folder, text, message):
    with pytest.raises(RequestError, match=message):
        scene_of(folder, text, "scene.json")


def test_a_scene_that_is_not_there_is_named(tmp_path):
    for missing in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(RequestError, match="no scene at"):
            read_scene(missing)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_every_example_is_drawn(file, sixteen):
    """With random words for the people that they name; each region changes the picture."""
    scene = read_scene(file)
    names = ("<alice/cat>", "<alice/dog>", "<bob/dog>", "<carol/dog>", "<carol/garden>")
    vocabulary = {name: 0.02 * sixteen.token_table.new_tensor([[[i] * 24] * 2]) for i, name in enumerate(names)}
    how = Drawing(**scene.settings | {"steps": 2})
    drawn = draw(sixteen, [scene.prompt], [0], vocabulary=vocabulary, regions=scene.regions, how=how)
    assert drawn.shape[2:] == how.sized_for(sixteen)
    for i in range(len(scene.regions)):
        others = [*scene.regions[:i], *scene.regions[i + 1 :]]
        without = draw(sixteen, [scene.prompt], [0], vocabulary=vocabulary, regions=others, how=how)
        assert (drawn - without).abs().max() > 1e-4, f"region {i + 1} changes nothing"
    assert scene.regions or scene.auto_layout


def test_every_key_is_on_the_page_with_its_meaning():
    page = (TOP / "docs" / "regions.md").read_text(encoding="utf-8")
    for schema in (SceneFile, SceneRegion, SceneControl):
        for name, field in schema.model_fields.items():
            assert f"| `{name}` | {field.description}" in page, name


def test_errors_are_ours_whatever_the_picture_is(folder):
    (folder / "masks" / "dog.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    with pytest.raises(MosError, match=r"dog\.png cannot be read"):
        scene_of(folder, WHOLE)
