"""The pipeline: `pipe = MixOfShow.from_pretrained(model, base=…)`, then `pipe("<alice/cat>")`.

Names and defaults are those of diffusers' pipelines where they have one. What is drawn is what
`mos-client draw` draws: both go through `mos_common.pipeline.request`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mos_common.base_model import Base, load_base
from mos_common.control.adapters import Adapter, read_adapter
from mos_common.control.condition import Control
from mos_common.drawing import Drawing, scheduler_for
from mos_common.errors import RequestError
from mos_common.pipeline.arguments import Own, checked_own, dtype_name, pictures_of
from mos_common.pipeline.attaching import with_own_named
from mos_common.pipeline.callbacks import TENSORS, StepEnd, after_step_of
from mos_common.pipeline.models import Opened, check_model_is_there, open_model
from mos_common.pipeline.offload import Offload, execution_device
from mos_common.pipeline.output import Drawn, OutputType, as_output, check_output
from mos_common.pipeline.request import Request, draw_request, recipe_of, say_what_is_not_used
from mos_common.recipes import MOST_PICTURES
from mos_common.region_texts import regions_of
from mos_common.regions import Region, check_masks
from mos_common.samplers import sampler_like, scheduler_name
from mos_tiny import adapter_folders

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
    from PIL import Image


class MixOfShow:
    """A fused model or a concept on its base, ready to draw.

    `scheduler` may be exchanged for any of diffusers that suits the base. `num_timesteps` is the
    number of evaluations of the last drawing.
    """

    def __init__(self, base: Base, opened: Opened, model: Path, *, kit: Path | None = None, own: Own = "auto") -> None:
        self.base = base
        self.own = checked_own(own)
        self.scheduler: SchedulerMixin = base.scheduler
        self.num_timesteps = 0
        self._interrupt = False
        self._opened, self._model, self._kit = opened, model, kit
        self._adapters: dict[Path, Adapter] = {}
        self._offload: Offload | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        base: str | Path | Base = "tiny",
        device: str | torch.device | None = None,
        torch_dtype: str | torch.dtype | None = None,
        dtype: str | torch.dtype | None = None,
        kit: str | Path | None = None,
        own: Own = "auto",
    ) -> MixOfShow:
        """Load a fused model's folder or a concept file, with its base.

        `base` is a name or a folder, or a base that is loaded already and may be shared. `device`
        and `dtype` (or `torch_dtype`) default to a GPU in float16 if there is one, else the CPU in
        float32. The signature of a fused model is checked against `kit`, or the kit of the state
        folder that it lies in. With `own` "off", concepts are drawn by the fused model alone.

        Raises:
            RequestError: there is no such model, device or number format.
            BaseModelError, ConceptError, FusionError, TrustError: the base cannot be used, or the
                model is damaged, not signed by the kit's operator, or of another base.

        """
        path, signed_by = Path(model), Path(kit) if kit is not None else None
        check_model_is_there(path, signed_by)
        if torch_dtype is not None and dtype is not None:
            raise RequestError("torch_dtype and dtype are two names of one thing: give one of them")
        named = dtype_name(dtype if torch_dtype is None else torch_dtype)
        if isinstance(base, Base):
            if device is not None or named is not None:
                raise RequestError("the base is loaded already: its device and number format are its own")
            loaded = base
        else:
            loaded = load_base(str(base), device=None if device is None else str(device), dtype=named)
        return cls(loaded, open_model(path, loaded, signed_by), path, kit=signed_by, own=own)

    @property
    def interrupt(self) -> bool:
        """Whether the running drawing ends after its step; callbacks set `pipe._interrupt` too."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, ends: bool) -> None:
        self._interrupt = ends

    @property
    def concepts(self) -> list[str]:
        """The tokens of the model's concepts, as prompts name them."""
        return sorted(self._opened.vocabulary)

    @property
    def device(self) -> torch.device:
        """Where drawings are computed."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the UNet."""
        return self.base.dtype

    @property
    def unet(self) -> UNet2DConditionModel:
        """The UNet of the base."""
        return self.base.unet

    @property
    def vae(self) -> AutoencoderKL:
        """The VAE of the base."""
        return self.base.vae

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        regions: Sequence[Region | str] = (),
        control: Sequence[Control] = (),
        negative_prompt: str | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
        own: Own | None = None,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = TENSORS,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> Drawn | tuple[Any]:
        """Draw a prompt, or several in one batch.

        `regions` are `Region`s or texts such as "PROMPT @ 0,0,0.5,1", and `control` pictures that
        `pipe.control` has made; both hold for every picture.
        What is None is the base's own. `seed` is one number, counted on from picture to picture,
        or one for each; without it and without a `generator`, torch's global one decides. `own` is
        by default what the pipeline was loaded with.
        `callback_on_step_end` is called as by diffusers, and may change the latents.

        Raises:
            RequestError: a prompt names a concept that the model does not have, or something asked
                for does not fit; the message says what.
            DrawingError: a picture is not finite.
            ConceptError, TrustError: own changes that are named are damaged, or not the model's.

        """
        check_output(output_type)
        prompts, seeds = pictures_of(prompt, num_images_per_prompt, generator, seed)
        if not isinstance(negative_prompt, str | None):
            raise RequestError("negative_prompt: expected one text; it holds for every picture")
        named = scheduler_name(self.base, self.scheduler)
        how = Drawing(num_inference_steps, guidance_scale, height, width, negative_prompt or "", named or None)
        request = Request(prompts, seeds, regions_of(regions), how, tuple(control))
        check_masks(request.regions, *how.sized_for(self.base))
        after_step = after_step_of(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        opened = self._opened_for(request, self.own if own is None else checked_own(own))
        say_what_is_not_used(request, opened, self.base)
        known = named is not None  # what no name says in full is taken as it is
        scheduler = scheduler_for(self.base, how) if known else sampler_like(self.base, self.scheduler, how.steps)
        self._interrupt, self.num_timesteps = False, len(scheduler.timesteps)
        with self._offloading():
            drawn = draw_request(
                request,
                self.base,
                opened,
                scheduler=scheduler,
                after_step=after_step,
                decoded=output_type != "latent",
            )
        images = as_output(drawn, output_type)
        if not return_dict:
            return (images,)
        known = known and after_step is None and len(set(prompts)) == 1 and len(seeds) <= MOST_PICTURES
        known = known and not control and all(isinstance(each, int) for each in seeds)
        recipe = recipe_of(request, self.base, opened) if known else None
        return Drawn(images, tuple(each if isinstance(each, int) else None for each in seeds), recipe)

    def control(
        self,
        adapter: str | Path,
        picture: Image.Image,
        *,
        weight: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        region: int | None = None,
    ) -> Control:
        """Return a picture that drawings follow, for `control` of a call; it is resized to them.

        `adapter` is a T2I-Adapter's or a ControlNet's folder, or the name of one that comes with
        `tiny`; it is loaded once. It acts with `weight` from `start` to `end` of the steps, each a
        share of them, everywhere or by the share of one region, which is numbered from 1.

        Raises:
            RequestError: there is no such adapter, it does not fit the base, or a number is wrong.

        """
        folder = adapter_folders().get(str(adapter)) or Path(adapter)
        if not folder.is_dir():
            raise RequestError(f"no adapter at {adapter}: give a folder in diffusers' layout")
        if folder not in self._adapters:
            self._adapters[folder] = read_adapter(folder, self.base)
        return Control(self._adapters[folder], picture, weight, start, end, None if region is None else region - 1)

    def to(self, device: str | torch.device) -> MixOfShow:
        """Move the base to a device, and return the pipeline.

        Raises:
            RequestError: its modules are moved by `enable_model_cpu_offload`.

        """
        if self._offload is not None:
            raise RequestError("enable_model_cpu_offload moves the modules: call disable_model_cpu_offload first")
        for module in (*self.base.text_encoders, self.base.unet, self.base.vae):
            torch.nn.Module.to(module, torch.device(device))
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: str | torch.device | None = None) -> None:
        """Keep all modules in host memory, and each on the device only until another one runs.

        Raises:
            RequestError: there is no accelerator, and no `device` is given.

        """
        target = execution_device(gpu_id, device)
        if target is None:
            raise RequestError("enable_model_cpu_offload needs an accelerator, and none is here: leave it out")
        self.disable_model_cpu_offload()
        self._offload = Offload(self.base, target)
        self.base = replace(self.base, runs_on=target)

    def disable_model_cpu_offload(self) -> None:
        """Leave all modules in host memory, where they run from now on; `to` moves them back."""
        if self._offload is not None:
            self._offload.close()
            self._offload, self.base = None, replace(self.base, runs_on=None)

    def compile_repeated_blocks(self, **options: Any) -> None:
        """Compile the UNet's transformer blocks, as diffusers' `compile_repeated_blocks` does.

        `options` are those of `torch.compile`. Another concept or prompt compiles nothing again.
        """
        self.base.unet.compile_repeated_blocks(**options)

    @contextmanager
    def _offloading(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._offload is not None:
                self._offload.rest()

    def _opened_for(self, request: Request, own: Own) -> Opened:
        """Return the model with the own changes that are named; they are read once."""
        if own == "off":
            return replace(self._opened, own={})
        opened = with_own_named(self._opened, self._model, self.base, request.drawn(), self._kit)
        self._opened = replace(opened, own={**self._opened.own, **opened.own})
        return opened
