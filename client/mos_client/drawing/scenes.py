"""A scene file: everything that one drawing needs, in YAML or JSON.

`SceneFile` is the whole schema. A scene may come from a stranger: it is read without aliases and
with bounds, and all that its paths can do is to name pictures, and adapters, whose weights are read
from safetensors only.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mos_client.drawing.controls import MOST_CONTROLS, AskedControl
from mos_client.drawing.regions import read_layout, read_shape
from mos_client.drawing.seeds import listed_seeds
from mos_common.errors import RequestError
from mos_common.files import is_file
from mos_common.flags import MOST_SEED
from mos_common.regions import Region
from mos_common.shapes import Box, Mask, Shape
from mos_common.text_files import NotTextError, read_text_file
from mos_tiny import adapter_folders

MOST_BYTES = 64 << 10
MOST_REGIONS = 32
DEEPEST = 6  # a scene is a mapping with a list of mappings that have lists
SHAPES = ("box", "mask", "colour")
AutoLayout = Literal["side-by-side", "attention"]
_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SceneControl(BaseModel):
    """A picture that the drawing follows. The meanings are those of `Control`."""

    model_config = _STRICT
    adapter: str = Field(description="a T2I-Adapter's or ControlNet's folder, or for `tiny` sketch or keypoints")
    picture: str = Field(description="the picture that the adapter reads")
    weight: float = Field(1.0, description="how strongly it acts; 0: not at all")
    start: float = Field(0.0, description="share of the steps after which it begins to act")
    end: float = Field(1.0, description="share of the steps after which it ends to act")
    make: Literal["edges"] | None = Field(None, description="what to make of the picture first: edges")


class SceneRegion(BaseModel):
    """One region, with one of box, mask and colour. The meanings are those of `Region`."""

    model_config = _STRICT
    prompt: str = Field(description="what to draw in it")
    box: list[float] | None = Field(None, min_length=4, max_length=4, description="[x0, y0, x1, y1], from 0 to 1")
    mask: str | None = Field(None, description="a grey picture, white where the region is")
    colour: str | None = Field(None, description="its colour in the layout")
    negative: str | None = Field(None, description="what not to draw in it; by default the scene's")
    weight: float = Field(1.0, description="how much it counts where it overlaps regions of the same priority")
    priority: int = Field(0, description="it goes before regions of lower priority")
    edge: float = Field(0.0, description="width of its soft edge, as a share of the picture's shorter side")
    keeps: float = Field(0.0, description="share of the scene's prompt that it keeps")
    start: float = Field(0.0, description="share of the steps after which it begins to hold")
    end: float = Field(1.0, description="share of the steps after which it ends")
    controls: list[SceneControl] = Field(
        default_factory=list, max_length=MOST_CONTROLS, description="pictures to follow in it"
    )


class SceneFile(BaseModel):
    """The contents of a scene file. Paths are relative to it; what is missing is the base's own."""

    model_config = _STRICT
    prompt: str = Field(description="what to draw; it holds outside the regions")
    negative: str | None = Field(None, description="what not to draw")
    width: int | None = Field(None, description="width in pixels")
    height: int | None = Field(None, description="height in pixels")
    steps: int | None = Field(None, description="denoising steps")
    guidance: float | None = Field(None, description="scale of classifier-free guidance; 1: none")
    scheduler: str | None = Field(None, description="a diffusers scheduler that suits the base")
    seed: int | None = Field(None, ge=0, le=MOST_SEED, description="random seed")
    seeds: str | None = Field(None, description='seeds of several pictures, such as "0-3,7", in place of one')
    layout: str | None = Field(None, description="a painted picture with a colour for each region")
    auto_layout: AutoLayout | None = Field(None, description="lay out the concepts of the prompt")
    regions: list[SceneRegion] = Field(default_factory=list, max_length=MOST_REGIONS, description="parts of it")
    controls: list[SceneControl] = Field(
        default_factory=list, max_length=MOST_CONTROLS, description="pictures to follow"
    )


@dataclass(frozen=True)
class Scene:
    """A scene that was read: `settings` are those of `Drawing` that it gives."""

    prompt: str
    regions: tuple[Region, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    seed: int | None = None
    seeds: str | None = None
    auto_layout: AutoLayout | None = None
    controls: tuple[AskedControl, ...] = ()


def read_scene(file: Path) -> Scene:
    """Read a scene, and the masks and the painted picture that it names.

    Raises:
        RequestError: it is no scene; the message names the file and the place in it.
        PicturesError: a picture cannot be read.

    """
    try:
        given = SceneFile.model_validate(_parsed(file))
    except ValidationError as error:
        raise RequestError(f"scene {file}: {_sentence(error)}") from error
    try:
        _check_seeds(given)
        regions, controls = _regions(given, file.parent), _controls(given, file.parent)
    except RequestError as error:
        raise RequestError(f"scene {file}: {error}") from error
    names = ("negative", "width", "height", "steps", "guidance", "scheduler")
    settings = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    return Scene(given.prompt, regions, settings, given.seed, given.seeds, given.auto_layout, controls)


def _check_seeds(scene: SceneFile) -> None:
    if scene.seeds is None:
        return
    if scene.seed is not None:
        raise RequestError("seed and seeds exclude each other: give one of them")
    listed_seeds(scene.seeds, "seeds")


def _regions(scene: SceneFile, folder: Path) -> tuple[Region, ...]:
    if scene.regions and scene.auto_layout:
        raise RequestError("regions and auto_layout exclude each other: give one of them")
    shapes: list[Shape | None] = []
    for number, region in enumerate(scene.regions, start=1):
        given = [name for name in SHAPES if getattr(region, name) is not None]
        if len(given) != 1:
            raise RequestError(
                f"region {number} has {' and '.join(given) or 'no shape'}: give it one of {', '.join(SHAPES)}"
                ' (a colour in quotes: "#ff0000")'
            )
        shapes.append(
            Box(*region.box) if region.box else read_shape(folder / region.mask) if region.mask is not None else None
        )
    painted = iter(_painted(scene, folder))
    return tuple(
        Region(shape=shape or next(painted), **region.model_dump(exclude={*SHAPES, "controls"}))
        for region, shape in zip(scene.regions, shapes, strict=True)
    )


def _controls(scene: SceneFile, folder: Path) -> tuple[AskedControl, ...]:
    """Return the conditions of a scene, then those of each region."""
    placed: list[tuple[int | None, SceneControl]] = [(None, control) for control in scene.controls]
    placed += [(number, control) for number, region in enumerate(scene.regions, start=1) for control in region.controls]
    asked = list[AskedControl]()
    for number, each in placed:
        adapter = each.adapter if each.adapter in adapter_folders() else str(folder / each.adapter)
        numbers = each.model_dump(include={"weight", "start", "end"})
        asked.append(AskedControl(adapter, folder / each.picture, region=number, edges=each.make == "edges", **numbers))
        asked[-1].check_is_there()
    return tuple(asked)


def _painted(scene: SceneFile, folder: Path) -> list[Mask]:
    """Return the masks of the regions that have a colour, in order."""
    colours = [region.colour for region in scene.regions if region.colour is not None]
    if scene.layout is None:
        if colours:
            raise RequestError(f"a region has the colour {colours[0]}: name the painted picture as layout")
        return []
    if not colours:
        raise RequestError(f"layout {scene.layout} is not used: give regions a colour of it")
    return read_layout(folder / scene.layout).masks(colours)


def _parsed(file: Path) -> object:
    """Return what a file of YAML or JSON says, within bounds.

    Raises:
        RequestError: it cannot be read, or is neither.

    """
    if not is_file(file):
        raise RequestError(f"no scene at {file}")
    try:
        text = read_text_file(file, most=MOST_BYTES)
        if file.suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=_without_duplicates)
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader that knows less
    except NotTextError as error:
        raise RequestError(f"scene {file} {error}") from error
    except OSError as error:
        raise RequestError(f"scene {file} cannot be read ({error.strerror})") from error
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise RequestError(f"scene {file} is not YAML{line}: {error.problem or error.context}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:  # as of numbers and dates that do not exist
        kind = "JSON" if file.suffix.lower() == ".json" else "YAML"
        raise RequestError(f"scene {file} is not {kind}: {str(error).splitlines()[0][:200]}") from error


class _Loader(yaml.SafeLoader):
    """Plain YAML: no alias, which could name a value a million times, and each key once."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"*{event.anchor}: aliases are not read", problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem="it is nested too deep", problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        _refuse_duplicates([key for key in keys if isinstance(key, str)])
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_duplicates([key for key, _ in pairs])
    return dict(pairs)


def _refuse_duplicates(keys: list[str]) -> None:
    if len(set(keys)) < len(keys):
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise ValueError(f"{twice!r} is given twice")


def _sentence(error: ValidationError) -> str:
    """Return the first problem of a scene in one line."""
    first = error.errors(include_url=False)[0]
    *above, last = [*first["loc"]] or [""]
    known = SceneRegion.model_fields if above else SceneFile.model_fields
    place = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    match first["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(str(last), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            return f"unknown key {place[:80]!r}: {hint}known: {', '.join(known)}"
        case "missing":
            return f"{place} is missing: {known[str(last)].description}"
        case "string_type":
            return f"{place} is {repr(first['input'])[:80]}: expected text; put it in quotes"
        case "model_type":
            return f"{place or 'it'} is {type(first['input']).__name__}: expected keys such as prompt: ..."
    return f"{place} is {repr(first['input'])[:80]}: {first['msg'].lower()}"
