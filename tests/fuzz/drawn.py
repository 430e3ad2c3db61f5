"""Readers of what people draw from: scenes, and pictures that say how they were drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from PIL import Image

from fuzz.reader import Reader
from mos_client.drawing.scenes import read_scene
from mos_common.drawing import Drawing
from mos_common.drawn_regions import drawn_region
from mos_common.picture_metadata import metadata, read_pixels, read_recipe
from mos_common.pictures import image_bytes
from mos_common.recipes import CreditedConcept, Machine, Model, Recipe
from mos_common.regions import Region
from mos_common.settings import settings_to_json
from mos_common.shapes import Box, Mask


def scene(folder: Path) -> Reader:
    """A scene file, beside the pictures that it names."""
    beside = folder / "scene"
    beside.mkdir()
    Image.linear_gradient("L").resize((24, 24)).save(beside / "mask.png")
    Image.new("RGB", (8, 8), "red").save(beside / "painted.png")
    regions = [
        {"prompt": "a <cat>", "box": [0, 0, 0.5, 1], "negative": "snow", "edge": 0.1, "keeps": 0.2, "weight": 2},
        {"prompt": "a <dog>", "mask": "mask.png", "start": 0.1, "end": 0.9, "priority": 1},
        {"prompt": "a tree", "colour": "#ff0000"},
    ]
    content = {"prompt": "a park", "layout": "painted.png", "width": 64, "seed": 3, "regions": regions}
    seeds = (yaml.safe_dump(content).encode(), yaml.safe_dump(content, default_flow_style=True).encode())

    def read(file: Path) -> object:
        (beside / file.name).write_bytes(file.read_bytes())
        return read_scene(beside / file.name)

    return Reader("scene.yaml", seeds, read)


def scene_json(folder: Path) -> Reader:
    """A scene file in JSON."""
    content = {"prompt": "a park", "guidance": 3.5, "regions": [{"prompt": "a <cat>", "box": [0, 0, 0.5, 1]}]}
    return Reader("scene.json", (json.dumps(content).encode(),), read_scene)


def recipe(_folder: Path) -> Reader:
    """The recipe in a picture that somebody sent."""
    drawn = Image.linear_gradient("L").resize((24, 24)).convert("RGB")
    regions = [Region("<cat>", Box(0, 0, 1, 0.5), negative="snow"), Region("x", Mask(2, 2, b"\0\1\2\3"), edge=0.1)]
    told = Recipe(
        prompt="a (<cat>:1.3)", regions=[drawn_region(region) for region in regions], seeds=[1, 2], place=1,
        settings=settings_to_json(Drawing(width=24, height=24)), sampler="DDIMScheduler",
        model=Model(kind="concept", name="<cat>", digest="ab" * 32), base="cd" * 32, base_name="tiny",
        concepts=[CreditedConcept(token="<cat>", digest="ab" * 32, author="Alice", licence="CC0")], pixels="ef" * 32,
        machine=Machine(release="0.2", versions={"torch": "2.9"}, device="cpu", dtype="float32", threads=2),
    )  # fmt: skip
    seeds = tuple(image_bytes(drawn, kind, **metadata(kind, told)) for kind in ("PNG", "JPEG", "WEBP"))

    def read(file: Path) -> object:
        return read_recipe(file), read_pixels(file)

    return Reader("cat.png", seeds, read)


MAKERS: Mapping[str, Callable[[Path], Reader]] = {"scene": scene, "scene_json": scene_json, "recipe": recipe}
