"""diffusers' `callback_on_step_end`, for a drawing of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mos_common.drawing_steps import AfterStep
from mos_common.errors import RequestError

if TYPE_CHECKING:
    from mos_common.pipeline.mix_of_show import MixOfShow

# (pipe, number of the evaluation from 0, its time, {"latents": …}) -> the same dict, or another.
StepEnd = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]
TENSORS = ("latents",)


def after_step_of(pipe: MixOfShow, callback: StepEnd | None, tensors: Sequence[str]) -> AfterStep | None:
    """Return what calls a callback after each evaluation, and stops when it sets `pipe.interrupt`.

    Raises:
        RequestError: it asks for a tensor that there is not; prompts are one encoding for each
            layer here, so there are no `prompt_embeds` to change.

    """
    if callback is None:
        return None
    tensors = getattr(callback, "tensor_inputs", tensors)  # of diffusers' PipelineCallback
    if unknown := [name for name in tensors if name not in TENSORS]:
        raise RequestError(
            f"callback_on_step_end asks for {unknown[0]!r}, known: {', '.join(TENSORS)}: a prompt is one encoding for "
            "each layer, and a callback cannot exchange it"
        )

    def after_step(number: int, time: Tensor, latents: Tensor) -> tuple[Tensor, bool]:
        returned = callback(pipe, number, time, dict.fromkeys(tensors, latents))
        if not isinstance(returned, dict):
            raise RequestError(
                f"callback_on_step_end returned {type(returned).__name__}: return the dict that it was given"
            )
        changed = returned.get("latents", latents)
        if not isinstance(changed, Tensor) or changed.shape != latents.shape:
            found = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise RequestError(f"callback_on_step_end returned latents {found}: expected {tuple(latents.shape)}")
        return changed.to(latents), not pipe.interrupt

    return after_step
