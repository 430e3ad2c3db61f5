"""ComfyUI nodes that draw with a published fused model, or with a concept file.

Link this file into `custom_nodes/` of ComfyUI, after `pip install federated-mix-of-show` into its
Python. The pictures are those of `mos-client draw`: both draw by `mos_common.MixOfShow`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mos_common import Box, MixOfShow, Region, mask_of

CATEGORY = "Mix-of-Show"
OWN = "the base's own"
SHARE = {"min": 0.0, "max": 1.0, "step": 0.01}
SIDE = {"default": 0, "min": 0, "max": 16384, "step": 4, "tooltip": "in pixels; 0: the base's own"}


class MixOfShowModel:
    """Load a fused model's folder or a concept file, with its base."""

    CATEGORY, FUNCTION, RETURN_TYPES, RETURN_NAMES = CATEGORY, "load", ("MOS_MODEL",), ("model",)
    DESCRIPTION = "A published Mix-of-Show model (its folder), or a concept file, on its base."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 the names are ComfyUI's
        """Say what the node takes."""
        kit = "the operator's kit, against which the signature is checked; empty: that of its state folder"
        return {
            "required": {
                "model": ("STRING", {"default": "", "tooltip": "folder of a fused model, or a concept file"}),
                "base": ("STRING", {"default": "tiny", "tooltip": "name or folder of the base that it was made for"}),
                "device": (["auto", "cpu", "cuda", "mps"], {"tooltip": "auto: the one that ComfyUI uses"}),
                "dtype": (["auto", "float16", "bfloat16", "float32"], {"tooltip": "auto: float16 on a GPU"}),
                "offload": ("BOOLEAN", {"default": False, "tooltip": "on the device only while it draws"}),
            },
            "optional": {"kit": ("STRING", {"default": "", "tooltip": kit})},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model: str, kit: str = "") -> bool | str:  # noqa: N802
        """Check the paths before anything is loaded."""
        for name, path in (("model", model), ("kit", kit)):
            if (path or name == "model") and not Path(path or "?").expanduser().exists():
                return f"{name}: there is nothing at {path!r}; give the path of a folder or a file on this computer"
        return True

    @classmethod
    def IS_CHANGED(cls, model: str, **_: Any) -> str:  # noqa: N802
        """Load it again if the model, or what own changes lie beside it, is another one."""
        from mos_common.own.names import beside
        from mos_common.pipeline.models import digest_of_model

        path = Path(model).expanduser()
        own = sorted(each.name for each in beside(path).iterdir()) if beside(path).is_dir() else []
        return " ".join([digest_of_model(path), *own])

    def load(
        self, model: str, base: str, device: str, dtype: str, offload: bool = False, kit: str = ""
    ) -> tuple[MixOfShow]:
        """Return the model, ready to draw."""
        with torch.inference_mode(False):  # ComfyUI's own would make weights that nothing may exchange
            pipe = MixOfShow.from_pretrained(
                Path(model).expanduser(),
                base=base,
                device=_device_of_comfyui() if device == "auto" else device,
                dtype=None if dtype == "auto" else dtype,
                kit=Path(kit).expanduser() if kit else None,
            )
            if offload:
                pipe.enable_model_cpu_offload()
        return (pipe,)


class MixOfShowRegion:
    """Say what is drawn in a part of the picture: a box, or a mask."""

    CATEGORY, FUNCTION, RETURN_TYPES, RETURN_NAMES = CATEGORY, "add", ("MOS_REGIONS",), ("regions",)
    DESCRIPTION = "A part of the picture with its own prompt. Chain several by `regions`."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Say what the node takes."""
        text = {"multiline": True, "default": ""}
        return {
            "required": {
                "prompt": ("STRING", {**text, "tooltip": "describe the whole picture, and name one concept"}),
                "left": ("FLOAT", {"default": 0.0, **SHARE, "tooltip": "left side of the box, of the width"}),
                "top": ("FLOAT", {"default": 0.0, **SHARE, "tooltip": "upper side, of the height"}),
                "right": ("FLOAT", {"default": 0.5, **SHARE, "tooltip": "right side, of the width"}),
                "bottom": ("FLOAT", {"default": 1.0, **SHARE, "tooltip": "lower side, of the height"}),
            },
            "optional": {
                "mask": ("MASK", {"tooltip": "instead of the box: white where the region is"}),
                "regions": ("MOS_REGIONS", {"tooltip": "the regions before this one"}),
                "negative": ("STRING", {**text, "tooltip": "what not to draw in it; empty: as for the picture"}),
                "weight": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 100.0, "step": 0.05, "tooltip": "overlaps"}),
                "priority": ("INT", {"default": 0, "min": -1000, "max": 1000, "tooltip": "goes before lower ones"}),
                "edge": ("FLOAT", {"default": 0.0, **SHARE, "tooltip": "width of its soft edge, of the shorter side"}),
                "keeps": ("FLOAT", {"default": 0.0, **SHARE, "tooltip": "share of the picture's prompt it keeps"}),
                "start": ("FLOAT", {"default": 0.0, **SHARE, "tooltip": "share of the steps after which it begins"}),
                "end": ("FLOAT", {"default": 1.0, **SHARE, "tooltip": "share of the steps after which it ends"}),
            },
        }

    def add(
        self,
        prompt: str,
        left: float,
        top: float,
        right: float,
        bottom: float,
        mask: torch.Tensor | None = None,
        regions: tuple[Region, ...] = (),
        negative: str = "",
        **how: Any,
    ) -> tuple[tuple[Region, ...]]:
        """Return the regions with one more."""
        shape = Box(left, top, right, bottom) if mask is None else mask_of(_grey(mask), "of the node")
        return ((*regions, Region(prompt, shape, negative or None, **how)),)


class MixOfShowDraw:
    """Draw a prompt, with regions if there are some."""

    CATEGORY, FUNCTION, RETURN_TYPES, RETURN_NAMES = CATEGORY, "draw", ("IMAGE",), ("images",)
    DESCRIPTION = "Draw pictures: those that `mos-client draw` draws with the same values."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Say what the node takes."""
        from mos_common.flags import MOST_SEED
        from mos_common.recipes import MOST_PICTURES
        from mos_common.samplers import KNOWN

        text = {"multiline": True, "default": ""}
        seed = {"default": 0, "min": 0, "max": MOST_SEED, "control_after_generate": True, "tooltip": "of the first"}
        guidance = {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": "0: the base's own; 1: none"}
        own = "auto: a concept is drawn by its own changes, where they lie beside the model"
        return {
            "required": {
                "model": ("MOS_MODEL", {"tooltip": "what loads a model"}),
                "prompt": ("STRING", {**text, "tooltip": "name concepts as <alice/cat>"}),
                "negative": ("STRING", {**text, "tooltip": "what not to draw"}),
                "seed": ("INT", seed),
                "steps": ("INT", {"default": 20, "min": 1, "max": 1000, "tooltip": "denoising steps"}),
                "guidance": ("FLOAT", guidance),
                "width": ("INT", SIDE),
                "height": ("INT", SIDE),
                "count": ("INT", {"default": 1, "min": 1, "max": MOST_PICTURES, "tooltip": "pictures in one batch"}),
                "scheduler": ([OWN, *sorted(KNOWN)], {"tooltip": "of those of diffusers that suit the base"}),
                "own": (["auto", "off"], {"tooltip": own}),
            },
            "optional": {"regions": ("MOS_REGIONS", {"tooltip": "parts of the picture with their own prompts"})},
        }

    def draw(
        self,
        model: MixOfShow,
        prompt: str,
        negative: str,
        seed: int,
        steps: int,
        guidance: float,
        width: int,
        height: int,
        count: int,
        scheduler: str,
        own: str,
        regions: tuple[Region, ...] = (),
    ) -> tuple[torch.Tensor]:
        """Return the pictures as ComfyUI has them: (pictures, height, width, 3), from 0 to 1."""
        import diffusers

        settings = model.base.scheduler.config
        chosen = model.base.scheduler if scheduler == OWN else getattr(diffusers, scheduler).from_config(settings)
        before, model.scheduler = model.scheduler, chosen
        try:
            drawn = model(
                prompt,
                regions=regions,
                negative_prompt=negative,
                num_inference_steps=steps,
                guidance_scale=guidance or None,
                width=width or None,
                height=height or None,
                num_images_per_prompt=count,
                seed=seed,
                own=own,
                callback_on_step_end=_Progress(),
                output_type="pt",
            )
        finally:
            model.scheduler = before
        return (drawn.images.permute(0, 2, 3, 1).contiguous(),)


class _Progress:
    """Tell ComfyUI of each step, and end where its user has interrupted."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, pipe: MixOfShow, step: int, _time: torch.Tensor, told: dict[str, Any]) -> dict[str, Any]:
        try:
            from comfy import model_management, utils
        except ImportError:  # without ComfyUI, as in our tests
            return told
        self.bar = self.bar or utils.ProgressBar(pipe.num_timesteps)
        self.bar.update_absolute(step + 1)
        model_management.throw_exception_if_processing_interrupted()
        return told


def _device_of_comfyui() -> str | None:
    try:
        from comfy import model_management
    except ImportError:
        return None
    return str(model_management.get_torch_device())


def _grey(mask: torch.Tensor) -> Image.Image:
    """Return a mask of ComfyUI, (1, height, width) or (height, width) from 0 to 1, as an image."""
    if mask.ndim == 3 and len(mask) != 1:
        raise ValueError(f"{len(mask)} masks: a region has one; take one of the batch")
    grey = (mask.reshape(mask.shape[-2:]).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(grey.cpu().numpy())


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "MixOfShowModel": MixOfShowModel,
    "MixOfShowRegion": MixOfShowRegion,
    "MixOfShowDraw": MixOfShowDraw,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "MixOfShowModel": "Mix-of-Show: model",
    "MixOfShowRegion": "Mix-of-Show: region",
    "MixOfShowDraw": "Mix-of-Show: draw",
}
