"""The recipe of a picture: all that is needed to draw it again, and who made what is in it.

One value, from which everything in the file is written: our own JSON, and the line of text that
Automatic1111's web UI writes and most tools read. Nothing in it is of this machine but what decides
the last bits: versions, the device, its threads. A path, a user or a host is never in it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import ConfigDict, Field

from mos_common.base_model import Base
from mos_common.control.drawn import DrawnControl
from mos_common.drawing import Drawing
from mos_common.drawn_regions import DrawnRegion
from mos_common.errors import PicturesError, RequestError
from mos_common.json_models import JsonModelError, Sha256, StrictModel, from_json
from mos_common.prompt_grammar import MOST_CHARACTERS
from mos_common.release import RELEASE
from mos_common.settings import settings_from_json, settings_to_json
from mos_common.texts import ShownText

MOST_PICTURES = 64
MOST_BYTES = 1 << 20
SOFTWARE = f"federated-mix-of-show {RELEASE}"
# What people call the samplers of diffusers.
SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "DDPMScheduler": "DDPM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "HeunDiscreteScheduler": "Heun",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "KDPM2DiscreteScheduler": "DPM2",
    "LCMScheduler": "LCM",
    "LMSDiscreteScheduler": "LMS",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}
Short = Annotated[ShownText, Field(max_length=500)]


class _Value(StrictModel):
    model_config = ConfigDict(frozen=True)


class CreditedConcept(_Value):
    """A concept that the prompts name."""

    token: Short
    digest: Sha256
    author: Short = ""
    licence: Short = ""


class Model(_Value):
    """A fused model, by the digest of its manifest, or a concept file, by that of its content."""

    kind: Literal["fused", "concept"]
    name: Short
    digest: Sha256


class Machine(_Value):
    """What decides the last bits of a picture. `device` is a kind of processor, never a name."""

    release: Short
    versions: Annotated[dict[Short, Short], Field(max_length=20)]
    device: Short
    dtype: Literal["float16", "float32", "bfloat16"]
    threads: Annotated[int, Field(ge=1, le=1024)]

    def differences(self, other: Machine) -> list[str]:
        """Return in words what is not the same here, `other` being this machine."""
        pairs = [
            (name, getattr(self, name), getattr(other, name)) for name in ("release", "device", "dtype", "threads")
        ]
        names = dict.fromkeys([*self.versions, *other.versions])
        pairs += [(name, self.versions.get(name, "none"), other.versions.get(name, "none")) for name in names]
        return [f"{name} {then} then, {now} now" for name, then, now in pairs if then != now]


class Recipe(_Value):
    """How a picture was drawn.

    Pictures are drawn in batches: `seeds` are those of the batch and `place` is that of this
    picture in it; None is the contact sheet of all. `settings` are those of `Drawing`, with the
    base's own values written out; `sampler` is the scheduler that was used. `own` are the
    concepts that were drawn by their own changes, `controls` the conditions that were followed.
    `pixels` is the digest of the picture as it was
    drawn.
    """

    format: Literal[1] = 1
    prompt: Annotated[str, Field(max_length=MOST_CHARACTERS)]
    regions: Annotated[list[DrawnRegion], Field(max_length=64)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1, max_length=MOST_PICTURES)]
    place: Annotated[int, Field(ge=0, lt=MOST_PICTURES)] | None
    settings: Annotated[dict[str, Any], Field(max_length=40)]
    sampler: Short
    model: Model
    base: Sha256
    base_name: Short
    concepts: Annotated[list[CreditedConcept], Field(max_length=1000)]
    own: Annotated[list[Short], Field(max_length=1000)] = Field(default_factory=list)
    controls: Annotated[list[DrawnControl], Field(max_length=64)] = Field(default_factory=list)
    machine: Machine
    pixels: Sha256

    def drawing(self) -> Drawing:
        """Return the settings as those of a drawing.

        Raises:
            RequestError: they are not, or are those of another release.

        """
        return settings_from_json(Drawing, self.settings)


def recipe_to_json(recipe: Recipe) -> str:
    """Return a recipe as JSON in ASCII, which every container of metadata takes.

    Raises:
        RequestError: its masks make it larger than any recipe that is read.

    """
    told = json.dumps(recipe.model_dump(mode="json"), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    if len(told) > MOST_BYTES:
        raise RequestError(
            f"the masks make a recipe of {len(told):,} bytes, at most {MOST_BYTES:,} are kept: give masks of plain "
            "white and black, or smaller ones"
        )
    return told


def recipe_from_json(text: str, where: str) -> Recipe:
    """Read a recipe from a stranger's picture; `where` names it.

    Raises:
        PicturesError: it is not a recipe, or one of a later release.

    """
    if len(text) > MOST_BYTES:
        raise PicturesError(f"the recipe in {where} is larger than {MOST_BYTES >> 20} MB: it is none of ours")
    try:
        recipe = from_json(Recipe, text)
        recipe.drawing()
        for region in recipe.regions:
            region.region()
    except JsonModelError as error:
        raise PicturesError(
            f"the recipe in {where} cannot be read ({error}): it is damaged, or of a later release than {RELEASE}"
        ) from error
    except RequestError as error:
        raise PicturesError(f"the recipe in {where} cannot be drawn: {str(error)[:300]}") from error
    if recipe.place is not None and recipe.place >= len(recipe.seeds):
        raise PicturesError(f"the recipe in {where} has place {recipe.place} in a batch of {len(recipe.seeds)}")
    return recipe


def settings_of(how: Drawing, base: Base) -> dict[str, Any]:
    """Return the settings of a drawing, with the base's own numbers in place of None."""
    height, width = how.sized_for(base)
    own = {
        "height": height,
        "width": width,
        "guidance": base.preset.guidance if how.guidance is None else how.guidance,
    }
    return settings_to_json(how) | own


def machine_of(base: Base) -> Machine:
    """Return what decides the last bits of what a base draws here."""
    import diffusers
    import transformers

    device = base.device.type
    if device == "cpu":
        device = f"cpu {torch.backends.cpu.get_cpu_capability()} {platform.machine()}"
    elif device == "cuda":
        device = torch.cuda.get_device_name(base.device)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
    told = {"release": RELEASE, "versions": versions, "device": device, "threads": torch.get_num_threads()}
    return Machine.model_validate(told | {"dtype": str(base.dtype).removeprefix("torch.")})


def digest_of_pixels(image: Image.Image) -> str:
    """Return the digest of a picture's size and pixels."""
    return hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode() + image.tobytes()).hexdigest()


def as_parameters(recipe: Recipe) -> str:
    """Return the text that Automatic1111's web UI writes under the key `parameters`.

    ComfyUI makes a graph of it if there is a line "Negative prompt:". Values have no commas: some
    readers split the last line at each.
    """
    told = recipe.settings
    line = {
        "Steps": told["steps"],
        "Sampler": SAMPLERS.get(recipe.sampler, recipe.sampler),
        "CFG scale": told["guidance"],
        "Seed": recipe.seeds[recipe.place or 0],
        "Size": f"{told['width']}x{told['height']}",
        "Model hash": recipe.model.digest[:10],
        "Model": recipe.model.name,
        "Base model": recipe.base_name,
        "Concepts": " ".join(concept.token for concept in recipe.concepts),
        "Regions": len(recipe.regions) or "",
        "Controls": " ".join(control.name for control in recipe.controls),
        "Batch size": len(recipe.seeds) if len(recipe.seeds) > 1 else "",
        "Batch pos": recipe.place if len(recipe.seeds) > 1 and recipe.place is not None else "",
        "Version": SOFTWARE,
    }
    written = ", ".join(f"{key}: {str(value).replace(',', ' ')}" for key, value in line.items() if value != "")
    return f"{recipe.prompt}\nNegative prompt: {told['negative']}\n{written}"
